"""The decoders of CroCo v2 (Weinzaepfel et al., 2023, arXiv 2211.10408) as DUSt3R pairs them."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.nn.attention import attention
from reangle_jax.nn.embeddings import Rope, rotate_grid
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import LayerNorm
from reangle_jax.nn.vit import SelfAttention, ViTConfig


class CrossAttention(nnx.Module):
    """Multi-head attention of one image's tokens to the other's, both turned by their places."""

    def __init__(self, config: ViTConfig, execution: Execution, *, rngs: nnx.Rngs):
        width = config.width
        dtypes = execution.dtypes(config.param_dtype)
        self.to_q = Linear(width, width, axes=("embed", "heads"), rngs=rngs, **dtypes)
        self.to_k = Linear(width, width, axes=("embed", "heads"), rngs=rngs, **dtypes)
        self.to_v = Linear(width, width, axes=("embed", "heads"), rngs=rngs, **dtypes)
        self.proj = Linear(width, width, axes=("heads", "embed"), rngs=rngs, **dtypes)
        self.heads = config.heads
        self.impl = execution.attention

    def __call__(
        self, x: Float[Array, "B S C"], memory: Float[Array, "B M C"], rope: Rope, memory_rope: Rope
    ) -> Float[Array, "B S C"]:
        """Attends."""
        q = rotate_grid(self._split(self.to_q(x)), rope)
        k = rotate_grid(self._split(self.to_k(memory)), memory_rope)
        return self.proj(attention(q, k, self._split(self.to_v(memory)), impl=self.impl).reshape(x.shape))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class DecoderBlock(nnx.Module):
    """Self-attention, cross-attention and a feed-forward part, each behind a norm and around a skip."""

    def __init__(self, config: ViTConfig, execution: Execution, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.width * config.mlp_ratio
        dtypes = execution.dtypes(config.param_dtype)
        self.norm1 = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.attn = SelfAttention(config, execution, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.norm_memory = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.cross = CrossAttention(config, execution, rngs=rngs)
        self.norm3 = LayerNorm(width, epsilon=config.epsilon, **dtypes)
        self.fc1 = Linear(width, hidden, axes=("embed", "mlp"), rngs=rngs, **dtypes)
        self.fc2 = Linear(hidden, width, axes=("mlp", "embed"), rngs=rngs, **dtypes)

    def __call__(
        self, x: Float[Array, "B S C"], memory: Float[Array, "B M C"], rope: Rope, memory_rope: Rope
    ) -> Float[Array, "B S C"]:
        """Applies the block."""
        x = x + self.attn(self.norm1(x), rope)
        x = x + self.cross(self.norm2(x), self.norm_memory(memory), rope, memory_rope)
        return x + self.fc2(jax.nn.gelu(self.fc1(self.norm3(x)), approximate=False))


class DecoderPair(nnx.Module):
    """One layer of both decoders: each reads what the other one's previous layer gave."""

    def __init__(self, config: ViTConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.first = DecoderBlock(config, execution, rngs=rngs)
        self.second = DecoderBlock(config, execution, rngs=rngs)

    def __call__(
        self, tokens: tuple[Float[Array, "B S1 C"], Float[Array, "B S2 C"]], ropes: tuple[Rope, Rope]
    ) -> tuple[Float[Array, "B S1 C"], Float[Array, "B S2 C"]]:
        """Applies both blocks to the two images' tokens."""
        (x, y), (rope_x, rope_y) = tokens, ropes
        return self.first(x, y, rope_x, rope_y), self.second(y, x, rope_y, rope_x)
