"""The dense prediction head of Depth Anything V2 (DPT, Ranftl et al., 2021, arXiv 2103.13413)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.depth_anything.config import DepthAnythingConfig
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.linear import uniform_fan_in
from reangle_jax.nn.resize import resize_bilinear

FACTORS = (4, 2, 1, None)  # how each level is enlarged, shallow to deep; None is a convolution of stride 2


class UpConv(nnx.Module):
    """Transposed convolution whose stride is its kernel size: every pixel becomes a block; kernel [f, f, in, out]."""

    def __init__(self, in_features: int, out_features: int, factor: int, *, rngs: nnx.Rngs, dtype, param_dtype):
        kernel = uniform_fan_in(rngs.params(), (factor, factor, in_features, out_features), param_dtype)
        self.kernel = nnx.Param(kernel, axes=(None,) * 4)
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype), axes=(None,))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W out"]:
        """Enlarges by the factor."""
        batch, height, width, _ = x.shape
        kernel = self.kernel[...].astype(self.dtype)
        factor = kernel.shape[0]
        y = jnp.einsum("bhwc,ijco->bhiwjo", x.astype(self.dtype), kernel)
        y = y.reshape(batch, height * factor, width * factor, -1)
        return y + self.bias[...].astype(self.dtype)[None, None, None, :]


class Reassemble(nnx.Module):
    """Tokens of one tap to an image-like map of one level: a projection, then a change of size."""

    def __init__(self, in_features: int, features: int, factor: int | None, *, rngs: nnx.Rngs, dtype, param_dtype):
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.project = Conv2D(in_features, features, 1, rngs=rngs, **dtypes)
        if factor is None:
            self.resize = Conv2D(features, features, 3, stride=2, padding=1, rngs=rngs, **dtypes)
        elif factor > 1:
            self.resize = UpConv(features, features, factor, rngs=rngs, **dtypes)
        else:
            self.resize = None

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W features"]:
        """Projects and resizes."""
        x = self.project(x)
        return x if self.resize is None else self.resize(x)


class ResidualUnit(nnx.Module):
    """Two 3x3 convolutions, each after a ReLU, around a skip."""

    def __init__(self, features: int, *, rngs: nnx.Rngs, dtype, param_dtype):
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = Conv2D(features, features, 3, padding=1, rngs=rngs, **dtypes)
        self.conv2 = Conv2D(features, features, 3, padding=1, rngs=rngs, **dtypes)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the unit."""
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Fusion(nnx.Module):
    """Adds a level to the path from below, refines it and enlarges it; the deepest one has no path from below."""

    def __init__(self, features: int, *, deepest: bool, rngs: nnx.Rngs, dtype, param_dtype):
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.skip = None if deepest else ResidualUnit(features, rngs=rngs, **dtypes)
        self.refine = ResidualUnit(features, rngs=rngs, **dtypes)
        self.project = Conv2D(features, features, 1, rngs=rngs, **dtypes)

    def __call__(self, path: Float[Array, "B h w C"], level: Array | None, size: tuple[int, int]) -> Array:
        """Fuses; the result is [B, *size, C].

        Raises:
            ValueError: a level is given to the deepest block, or none to another.
        """
        if (level is None) != (self.skip is None):
            raise ValueError("the deepest fusion block takes no level from above, every other one does")
        if level is not None and self.skip is not None:
            path = path + self.skip(level)
        # The published order is enlarge, then project. The two commute (interpolation weights sum to one), and this
        # order projects a quarter of the pixels.
        return resize_bilinear(self.project(self.refine(path)), *size, align_corners=True)


class DPTHead(nnx.Module):
    """Four taps of the backbone to one map at the image's size, before the last activation."""

    def __init__(self, config: DepthAnythingConfig, *, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        features, levels = config.fusion_width, list(zip(config.neck_widths, FACTORS, strict=True))
        self.reassemble = nnx.List([Reassemble(config.width, n, f, rngs=rngs, **dtypes) for n, f in levels])
        self.convs = nnx.List(
            [Conv2D(n, features, 3, padding=1, use_bias=False, rngs=rngs, **dtypes) for n in config.neck_widths]
        )
        # Deep to shallow, the order in which they run.
        self.fusion = nnx.List([Fusion(features, deepest=k == 0, rngs=rngs, **dtypes) for k in range(len(levels))])
        self.conv1 = Conv2D(features, features // 2, 3, padding=1, rngs=rngs, **dtypes)
        self.conv2 = Conv2D(features // 2, config.head_width, 3, padding=1, rngs=rngs, **dtypes)
        self.conv3 = Conv2D(config.head_width, 1, 1, rngs=rngs, **dtypes)
        self.patch_size = config.patch_size

    def levels(self, taps: Sequence[Float[Array, "B S C"]], rows: int, columns: int) -> list[Float[Array, "B h w F"]]:
        """The four levels before fusion, shallow to deep; the taps' class tokens are dropped."""
        maps = [tap[:, 1:].reshape(tap.shape[0], rows, columns, -1) for tap in taps]
        return [conv(reassemble(x)) for x, reassemble, conv in zip(maps, self.reassemble, self.convs, strict=True)]

    def fuse(self, levels: Sequence[Float[Array, "B h w F"]]) -> Float[Array, "B H W F"]:
        """Fuses the levels, deep to shallow; the result is twice the shallowest one's size."""
        deep = list(levels)[::-1]
        path, level = deep[0], None
        for k, block in enumerate(self.fusion):
            level = deep[k] if k else None
            height, width = deep[k].shape[1:3]
            size = deep[k + 1].shape[1:3] if k + 1 < len(deep) else (2 * height, 2 * width)
            path = block(path, level, (size[0], size[1]))
        return path

    def __call__(self, taps: Sequence[Float[Array, "B S C"]], rows: int, columns: int) -> Float[Array, "B H W"]:
        """The map [B, rows * patch, columns * patch] before the last activation, in float32."""
        x = self.conv1(self.fuse(self.levels(taps, rows, columns)))
        x = resize_bilinear(x, rows * self.patch_size, columns * self.patch_size, align_corners=True)
        return self.conv3(jax.nn.relu(self.conv2(x)))[..., 0].astype(jnp.float32)
