"""The vision transformer (Dosovitskiy et al., 2020, arXiv 2010.11929) as DINO, DINOv2 and CroCo build it.

Its blocks serve all of them; `VisionTransformer`, with a class token and learned positions, is that of DINO (Caron et
al., 2021, arXiv 2104.14294) and DINOv2 (Oquab et al., 2023, arXiv 2304.07193).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.nn.attention import attention
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.embeddings import Rope, rotate_grid
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear, uniform_fan_in
from reangle_jax.nn.norms import LayerNorm
from reangle_jax.nn.products import einsum
from reangle_jax.nn.resize import apply_separable, bicubic_matrix
from reangle_jax.nn.stack import Stack

POS_INTERPOLATIONS = ("authors", "hf")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Every number of the transformer."""

    width: int  # token width
    depth: int  # number of blocks
    heads: int  # attention heads
    patch_size: int = 14  # pixels per token and side
    native_grid: int = 37  # tokens per side that the position table was made for
    layer_scale: bool = True  # whether each branch is scaled by a learned vector (DINOv2 yes, DINO no)
    mlp_ratio: int = 4  # hidden width of the feed-forward part over ``width``
    epsilon: float = 1e-6  # of the layer norms
    quick_gelu: bool = False  # whether the feed-forward part has CLIP's approximate GELU, and not the exact one
    # ``authors`` resizes the position table by the factor (n + 0.1) / native_grid, as the published training code does;
    # ``hf`` exactly to n, as transformers does.
    pos_interpolation: str = "authors"
    param_dtype: str = "float32"  # what is stored

    def __post_init__(self):
        if self.pos_interpolation not in POS_INTERPOLATIONS:
            raise ValueError(f"pos_interpolation {self.pos_interpolation!r} is not one of {POS_INTERPOLATIONS}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")


def interpolate_positions(
    table: Float[Array, "1 N C"], native_grid: int, rows: int, columns: int, *, rule: str
) -> Float[Array, "1 M C"]:
    """Resizes a square table of position embeddings (class token first) to ``rows`` x ``columns`` tokens, in float32.

    PyTorch's bicubic without antialiasing. Under ``authors`` the step between samples is that of the scale factor
    (n + 0.1) / native_grid, not n / native_grid; the native size itself is returned as it is.
    """
    table = table.astype(jnp.float32)
    if rows == columns == native_grid:
        return table
    offset = 0.1 if rule == "authors" else 0.0
    matrices = [bicubic_matrix(native_grid, n, step=native_grid / (n + offset)) for n in (rows, columns)]
    grid = table[:, 1:].reshape(1, native_grid, native_grid, -1)
    grid = apply_separable(grid, *matrices).reshape(1, rows * columns, -1)
    return jnp.concatenate([table[:, :1], grid], axis=1)


def exact_gelu(x: Array) -> Array:
    """By the error function."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Array) -> Array:
    """CLIP's (Radford et al., 2021), by a sigmoid."""
    return x * jax.nn.sigmoid(1.702 * x)


class SelfAttention(nnx.Module):
    """Multi-head self-attention; query, key and value weights lie on a leading axis of size 3, in this order."""

    def __init__(self, config: ViTConfig, execution: Execution, *, rngs: nnx.Rngs):
        width = config.width
        dtypes = execution.dtypes(config.param_dtype)
        kernel = uniform_fan_in(rngs.params(), (width, 3 * width), dtypes["param_dtype"])
        kernel = kernel.reshape(width, 3, width).transpose(1, 0, 2)
        self.qkv_kernel = nnx.Param(kernel, axes=(None, "embed", "heads"))
        self.qkv_bias = nnx.Param(jnp.zeros((3, width), dtypes["param_dtype"]), axes=(None, "heads"))
        self.proj = Linear(width, width, axes=("heads", "embed"), rngs=rngs, **dtypes)
        self.heads = config.heads
        self.impl = execution.attention
        self.dtype = dtypes["dtype"]

    def __call__(self, x: Float[Array, "B S C"], rope: Rope | None = None) -> Float[Array, "B S C"]:
        """Attends; ``rope`` turns queries and keys by their places in the grid (see `rotate_grid`)."""
        x = x.astype(self.dtype)
        qkv = einsum("bsc,kcd->kbsd", x, self.qkv_kernel[...].astype(self.dtype))
        qkv = qkv + self.qkv_bias[...].astype(self.dtype)[:, None, None, :]
        q, k, v = qkv.reshape(3, *x.shape[:2], self.heads, -1)
        if rope is not None:
            q, k = rotate_grid(q, rope), rotate_grid(k, rope)
        return self.proj(attention(q, k, v, impl=self.impl).reshape(x.shape))


class Block(nnx.Module):
    """A pre-norm transformer block with optional LayerScale, and exact (erf) GELU or CLIP's."""

    def __init__(self, config: ViTConfig, execution: Execution, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.width * config.mlp_ratio
        dtypes = execution.dtypes(config.param_dtype)
        self.norm1 = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.attn = SelfAttention(config, execution, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.fc1 = Linear(width, hidden, axes=("embed", "mlp"), rngs=rngs, **dtypes)
        self.fc2 = Linear(hidden, width, axes=("mlp", "embed"), rngs=rngs, **dtypes)
        ones = jnp.ones((width,), dtypes["param_dtype"])
        self.scale1 = nnx.Param(ones, axes=(None,)) if config.layer_scale else None
        self.scale2 = nnx.Param(ones, axes=(None,)) if config.layer_scale else None
        self.gelu = quick_gelu if config.quick_gelu else exact_gelu

    def __call__(self, x: Float[Array, "B S C"], rope: Rope | None = None) -> Float[Array, "B S C"]:
        """Applies the block; ``rope`` as in `SelfAttention`."""
        x = x + _scaled(self.attn(self.norm1(x), rope), self.scale1)
        return x + _scaled(self.fc2(self.gelu(self.fc1(self.norm2(x)))), self.scale2)


def _scaled(x: Array, scale: nnx.Param | None) -> Array:
    return x if scale is None else x * scale[...].astype(x.dtype)[None, None, :]


class VisionTransformer(nnx.Module):
    """Patches, a class token and learned positions through a stack of blocks; each tap passes the final norm."""

    def __init__(self, config: ViTConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        dtypes = execution.dtypes(config.param_dtype)
        size = config.patch_size
        self.patch_embed = Conv2D(3, config.width, size, stride=size, rngs=rngs, **dtypes)
        tokens = config.native_grid**2 + 1
        table = 0.02 * jax.random.normal(rngs.params(), (1, tokens, config.width), dtypes["param_dtype"])
        self.cls_token = nnx.Param(jnp.zeros((1, 1, config.width), dtypes["param_dtype"]), axes=(None,) * 3)
        self.pos_embed = nnx.Param(table, axes=(None,) * 3)
        self.blocks = Stack(Block, config, execution, config.depth, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon, **dtypes)
        self.config = config

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B S C"]:
        """Tokens before the first block, the class token first; S = 1 + H / patch * W / patch.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        batch, height, width, _ = images.shape
        size = self.config.patch_size
        if height % size or width % size:
            raise ValueError(f"images of {height}x{width} are no multiple of the patch size {size}: resize them first")
        patches = self.patch_embed(images)
        rows, columns = patches.shape[1:3]
        patches = patches.reshape(batch, rows * columns, -1)
        cls = jnp.broadcast_to(self.cls_token[...].astype(patches.dtype), (batch, 1, patches.shape[-1]))
        tokens = jnp.concatenate([cls, patches], axis=1)
        positions = interpolate_positions(
            self.pos_embed[...], self.config.native_grid, rows, columns, rule=self.config.pos_interpolation
        )
        return tokens + jnp.broadcast_to(positions.astype(tokens.dtype), tokens.shape)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B S C"]:
        """Normalised tokens after the last block, the class token first."""
        return self.norm(self.blocks(self.embed(images)))

    def features(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Normalised patch tokens after the last block, as an image of one pixel per patch."""
        size = self.config.patch_size
        rows, columns = images.shape[1] // size, images.shape[2] // size
        return self(images)[:, 1:].reshape(images.shape[0], rows, columns, -1)

    def taps(self, images: Float[Array, "B H W 3"], blocks: Sequence[int]) -> list[Float[Array, "B S C"]]:
        """Normalised tokens after each of ``blocks`` (counted from 1), the class token first."""
        _, outputs = self.blocks.with_taps(self.embed(images))
        return [self.norm(outputs[block - 1]) for block in blocks]
