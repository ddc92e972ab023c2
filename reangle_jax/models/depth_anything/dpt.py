"""The dense prediction head of Depth Anything V2 (DPT, Ranftl et al., 2021, arXiv 2103.13413)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.depth_anything.config import DepthAnythingConfig
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.dpt import FACTORS, Fusion, Reassemble
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.resize import resize_bilinear


class DPTHead(nnx.Module):
    """Four taps of the backbone to one map at the image's size, before the last activation."""

    def __init__(self, config: DepthAnythingConfig, execution: Execution, *, rngs: nnx.Rngs):
        dtypes = execution.dtypes(config.param_dtype)
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

    def levels(self, taps: Sequence[Float[Array, "B S C"]], rows: int, columns: int) -> list[Float[Array, "B _ _ F"]]:
        """The four levels before fusion, shallow to deep; the taps' class tokens are dropped."""
        maps = [tap[:, 1:].reshape(tap.shape[0], rows, columns, -1) for tap in taps]
        return [conv(reassemble(x)) for x, reassemble, conv in zip(maps, self.reassemble, self.convs, strict=True)]

    def fuse(self, levels: Sequence[Float[Array, "B _ _ F"]]) -> Float[Array, "B H W F"]:
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
