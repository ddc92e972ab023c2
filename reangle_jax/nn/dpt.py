"""The building blocks of dense prediction heads (DPT, Ranftl et al., 2021, arXiv 2103.13413)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.linear import uniform_fan_in
from reangle_jax.nn.products import einsum
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
        y = einsum("bhwc,ijco->bhiwjo", x.astype(self.dtype), kernel)
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

    def __call__(
        self, path: Float[Array, "B h w C"], level: Float[Array, "B h w C"] | None, size: tuple[int, int]
    ) -> Float[Array, "B {size[0]} {size[1]} C"]:
        """Fuses a level into the path, and enlarges the result to ``size``.

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
