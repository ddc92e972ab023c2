"""CLIP's text tower (Radford et al., 2021, arXiv 2103.00020)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from reangle_jax.nn.attention import attention
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import LayerNorm
from reangle_jax.nn.stack import Stack
from reangle_jax.nn.vit import quick_gelu


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Everything that the tower's shapes and arithmetic depend on; the defaults are those of CLIP ViT-L/14.

    Raises:
        ValueError: the heads do not divide the width.
    """

    vocab_size: int = 49408  # rows of the token table; the last is the end token's
    max_length: int = 77  # rows of the position table: the longest text in tokens
    width: int = 768  # of the tokens
    mlp_width: int = 3072  # between the feed-forward's two layers
    num_layers: int = 12  # blocks
    num_heads: int = 12  # heads of each block; divides the width
    norm_eps: float = 1e-5  # epsilon of the norms
    param_dtype: str = "float32"  # what the parameters are stored in

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the width {self.width}")

    @classmethod
    def clip_l(cls) -> "CLIPConfig":
        """The text tower of openai/clip-vit-large-patch14, 123 M parameters: FLUX's."""
        return cls(param_dtype="bfloat16")


class SelfAttention(nnx.Module):
    """Multi-head attention; who sees whom comes from outside."""

    def __init__(self, config: CLIPConfig, execution: Execution, *, rngs: nnx.Rngs):
        types = {**execution.dtypes(config.param_dtype), "rngs": rngs}
        self.q = Linear(config.width, config.width, axes=("embed", "heads"), **types)
        self.k = Linear(config.width, config.width, axes=("embed", "heads"), **types)
        self.v = Linear(config.width, config.width, axes=("embed", "heads"), **types)
        self.o = Linear(config.width, config.width, axes=("heads", "embed"), **types)
        self.heads = config.num_heads
        self.impl = execution.attention

    def __call__(self, x: Float[Array, "B L D"], bias: Float[Array, "1 N L L"]) -> Float[Array, "B L D"]:
        """Mixes the tokens."""
        q, k, v = (layer(x).reshape(*x.shape[:2], self.heads, -1) for layer in (self.q, self.k, self.v))
        return self.o(attention(q, k, v, bias=bias, impl=self.impl).reshape(x.shape))


class Block(nnx.Module):
    """Attention and feed-forward, each after a norm and added to what comes in."""

    def __init__(self, config: CLIPConfig, execution: Execution, *, rngs: nnx.Rngs):
        types = execution.dtypes(config.param_dtype)
        self.norm1 = LayerNorm(config.width, epsilon=config.norm_eps, **types)
        self.attn = SelfAttention(config, execution, rngs=rngs)
        self.norm2 = LayerNorm(config.width, epsilon=config.norm_eps, **types)
        self.fc1 = Linear(config.width, config.mlp_width, axes=("embed", "mlp"), **types, rngs=rngs)
        self.fc2 = Linear(config.mlp_width, config.width, axes=("mlp", "embed"), **types, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], bias: Float[Array, "1 N L L"]) -> Float[Array, "B L D"]:
        """Applies the block."""
        x = x + self.attn(self.norm1(x), bias)
        return x + self.fc2(quick_gelu(self.fc1(self.norm2(x))))


class CLIPTextEncoder(nnx.Module):
    """Embeds tokens in the context of those before them, and a text as its end token."""

    def __init__(self, config: CLIPConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        param_dtype = jnp.dtype(config.param_dtype)
        tokens = 0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.width), param_dtype)
        places = 0.01 * jax.random.normal(rngs.params(), (config.max_length, config.width), param_dtype)
        self.embedding = nnx.Param(tokens, axes=("vocab", "embed"))
        self.positions = nnx.Param(places, axes=(None, "embed"))
        self.blocks = Stack(Block, config, execution, config.num_layers, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.norm_eps, **execution.dtypes(config.param_dtype))
        self.config = config
        self.execution = execution

    def __call__(self, ids: Int[Array, "B L"]) -> tuple[Float[Array, "B L D"], Float[Array, "B D"]]:
        """Encodes.

        Args:
            ids: tokens, at most ``max_length``. There is no mask of the padding: every token sees those before it
                alone, and padding comes last.

        Returns:
            One vector for each token after the last norm, and that of the first end token, both in the dtype computed
            in. The end token is the one with the highest id, which padding may share.

        Raises:
            ValueError: the texts are longer than the position table.
        """
        config, length = self.config, ids.shape[1]
        if length > config.max_length:
            raise ValueError(f"{length} tokens are more than CLIP's {config.max_length}: cut them")
        unseen = np.triu(np.ones((length, length), bool), 1)
        bias = jnp.asarray(np.where(unseen, -np.inf, 0.0), jnp.float32)
        bias = jnp.broadcast_to(bias[None, None], (1, config.num_heads, length, length))
        dtype = jnp.dtype(self.execution.dtype)
        x = self.embedding[...][ids].astype(dtype)
        x = x + jnp.broadcast_to(self.positions[...][:length].astype(dtype)[None], x.shape)
        x = self.norm(self.blocks(x, bias))
        ends = jnp.argmax(ids, axis=1)
        return x, jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
