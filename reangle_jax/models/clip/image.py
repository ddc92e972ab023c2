"""CLIP's image tower (Radford et al., 2021, arXiv 2103.00020); its text tower is `models.text.clip`."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import LayerNorm
from reangle_jax.nn.stack import Stack
from reangle_jax.nn.vit import Block, ViTConfig


@dataclasses.dataclass(frozen=True)
class ClipImageConfig(ViTConfig):
    """A `ViTConfig` that is CLIP's, and ``projection``, the width of what comes out."""

    layer_scale: bool = False
    epsilon: float = 1e-5
    quick_gelu: bool = True
    projection: int = 512

    @classmethod
    def vitb32(cls) -> "ClipImageConfig":
        """CLIP ViT-B/32's, 87.8 million parameters."""
        return cls(width=768, depth=12, heads=12, patch_size=32, native_grid=7)

    @classmethod
    def vitl14(cls) -> "ClipImageConfig":
        """CLIP ViT-L/14's, 304.0 million parameters."""
        return cls(width=1024, depth=24, heads=16, patch_size=14, native_grid=16, projection=768)


class ClipImage(nnx.Module):
    """A norm before the blocks; the class token's vector after them, normed and projected."""

    def __init__(self, config: ClipImageConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        dtypes, width = execution.dtypes(config.param_dtype), config.width
        size = config.patch_size
        self.patch_embed = Conv2D(3, width, size, stride=size, use_bias=False, rngs=rngs, **dtypes)
        places = (config.native_grid**2 + 1, width)
        table = 0.02 * jax.random.normal(rngs.params(), places, dtypes["param_dtype"])
        self.cls_token = nnx.Param(jnp.zeros((width,), dtypes["param_dtype"]), axes=(None,))
        self.pos_embed = nnx.Param(table, axes=(None, None))
        self.norm_in = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.blocks = Stack(Block, config, execution, config.depth, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.projection = Linear(width, config.projection, axes=("embed", None), use_bias=False, rngs=rngs, **dtypes)
        self.config = config

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B C"]:
        """The vectors of images of CLIP's colours (`nn.colours.normalise`).

        Raises:
            ValueError: a side is not the patch size times the grid's.
        """
        side = self.config.patch_size * self.config.native_grid
        if images.shape[1:3] != (side, side):
            raise ValueError(f"images of {images.shape[1:3]}: this CLIP sees {side}x{side}")
        patches = self.patch_embed(images)
        batch, width = len(images), patches.shape[-1]
        patches = patches.reshape(batch, -1, width)
        cls = jnp.broadcast_to(self.cls_token[...].astype(patches.dtype)[None, None], (batch, 1, width))
        tokens = jnp.concatenate([cls, patches], axis=1)
        tokens = tokens + jnp.broadcast_to(self.pos_embed[...].astype(tokens.dtype)[None], tokens.shape)
        return self.projection(self.norm(self.blocks(self.norm_in(tokens))[:, 0]))


@dataclasses.dataclass(frozen=True)
class AestheticConfig:
    """The width of the vectors that are judged."""

    width: int = 768
    param_dtype: str = "float32"


class Aesthetic(nnx.Module):
    """LAION's linear aesthetic predictor: a mark of 1 to 10 of a picture's vector, whose length is 1."""

    def __init__(self, config: AestheticConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        self.head = Linear(config.width, 1, axes=(None, None), rngs=rngs, **execution.dtypes(config.param_dtype))
        self.config = config

    def __call__(self, vectors: Float[Array, "B C"]) -> Float[Array, " B"]:
        """The marks."""
        return self.head(vectors)[:, 0]
