"""The T5 v1.1 encoder (Raffel et al., 2020, arXiv 1910.10683; Shazeer, 2020, arXiv 2002.05202)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int32

from reangle_jax.nn.attention import attention
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import RMSNorm
from reangle_jax.nn.stack import Stack


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Everything that the encoder's shapes and arithmetic depend on; every field can be written as JSON."""

    vocab_size: int  # rows of the token table
    d_model: int  # width of the tokens
    d_kv: int  # width of a head
    d_ff: int  # width between the feed-forward's two layers
    num_layers: int  # blocks
    num_heads: int  # heads of each block; ``num_heads * d_kv`` need not be ``d_model``
    relative_buckets: int = 32  # distances told apart, half of them for each direction; even
    relative_max_distance: int = 128  # from this distance on all are one
    norm_eps: float = 1e-6  # epsilon of the norms
    param_dtype: str = "float32"  # what the parameters are stored in

    def __post_init__(self):
        if self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 4:
            raise ValueError(
                f"relative_buckets {self.relative_buckets} must be a multiple of 4, "
                f"and a quarter of it below relative_max_distance {self.relative_max_distance}"
            )

    @classmethod
    def t5_v1_1_xxl(cls) -> "T5Config":
        """The encoder of google/t5-v1_1-xxl, 4.76 G parameters: CogVideoX's and FLUX's."""
        return cls(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            param_dtype="bfloat16",
        )

    @classmethod
    def tiny(cls) -> "T5Config":
        """The project's own small encoder, over the ids of ``tokenizers.ByteTokenizer``."""
        return cls(vocab_size=256 + 3, d_model=128, d_kv=32, d_ff=256, num_layers=4, num_heads=4)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int32[np.ndarray, "{length} {length}"]:
    """Which of the buckets, from 0, the way from each query (row) to each key (column) falls into.

    Half of the buckets are for keys after the query. In each half, half are single distances and the others grow
    with the logarithm of the distance up to ``max_distance``, where the last one begins.
    """
    way = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, exact = buckets // 2, buckets // 4
    distance = np.abs(way)
    # float32, as the published model: a distance on a bucket's edge must fall to the same side.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    grown = exact + (ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(grown, half - 1))
    return (bucket + half * (way > 0)).astype(np.int32)


class SelfAttention(nnx.Module):
    """Attention without a factor on the logits; the positions' bias comes from outside."""

    def __init__(self, config: T5Config, execution: Execution, *, rngs: nnx.Rngs):
        inner = config.num_heads * config.d_kv
        types = {**execution.dtypes(config.param_dtype), "rngs": rngs}
        into = {"use_bias": False, "axes": ("embed", "heads"), **types}
        # The missing 1/sqrt(d_kv) sits in the queries' initial values.
        self.q = Linear(config.d_model, inner, init_scale=config.d_kv**-0.5, **into)
        self.k = Linear(config.d_model, inner, **into)
        self.v = Linear(config.d_model, inner, **into)
        self.o = Linear(inner, config.d_model, use_bias=False, axes=("heads", "embed"), **types)
        self.config = config
        self.impl = execution.attention

    def __call__(self, x: Float[Array, "B L D"], bias: Float[Array, "1 N L L"]) -> Float[Array, "B L D"]:
        """Mixes the tokens."""
        config = self.config
        q, k, v = (layer(x).reshape(*x.shape[:2], config.num_heads, config.d_kv) for layer in (self.q, self.k, self.v))
        y = attention(q, k, v, bias=bias, scale=1.0, impl=self.impl)
        return self.o(y.reshape(*x.shape[:2], -1))


class GatedFeedForward(nnx.Module):
    """GELU (tanh form) of one layer times another, then a third."""

    def __init__(self, config: T5Config, execution: Execution, *, rngs: nnx.Rngs):
        types = {**execution.dtypes(config.param_dtype), "rngs": rngs}
        self.gate = Linear(config.d_model, config.d_ff, use_bias=False, axes=("embed", "mlp"), **types)
        self.up = Linear(config.d_model, config.d_ff, use_bias=False, axes=("embed", "mlp"), **types)
        self.down = Linear(config.d_ff, config.d_model, use_bias=False, axes=("mlp", "embed"), **types)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Applies all three."""
        return self.down(jax.nn.gelu(self.gate(x), approximate=True) * self.up(x))


def _norm(config: T5Config, execution: Execution) -> RMSNorm:
    return RMSNorm(config.d_model, epsilon=config.norm_eps, **execution.dtypes(config.param_dtype))


class Block(nnx.Module):
    """Attention and feed-forward, each after a norm and added to what comes in."""

    def __init__(self, config: T5Config, execution: Execution, *, rngs: nnx.Rngs):
        self.norm1 = _norm(config, execution)
        self.attn = SelfAttention(config, execution, rngs=rngs)
        self.norm2 = _norm(config, execution)
        self.ff = GatedFeedForward(config, execution, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], bias: Float[Array, "1 N L L"]) -> Float[Array, "B L D"]:
        """Applies the block."""
        x = x + self.attn(self.norm1(x), bias)
        return x + self.ff(self.norm2(x))


class T5Encoder(nnx.Module):
    """Embeds tokens in context."""

    def __init__(self, config: T5Config, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        param_dtype = jnp.dtype(config.param_dtype)
        tokens = jax.random.normal(rngs.params(), (config.vocab_size, config.d_model), param_dtype)
        positions = jax.random.normal(rngs.params(), (config.relative_buckets, config.num_heads), param_dtype)
        self.embedding = nnx.Param(tokens, axes=("vocab", "embed"))
        # The published model keeps it in its first block; all blocks use it.
        self.relative_bias = nnx.Param(positions * config.d_model**-0.5, axes=(None, "heads"))
        self.blocks = Stack(Block, config, execution, config.num_layers, rngs=rngs)
        self.norm = _norm(config, execution)
        self.config = config
        self.execution = execution

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Encodes.

        Args:
            ids: tokens. There is no mask: CogVideoX and FLUX let padding be attended to.

        Returns:
            One vector for each token, in the dtype computed in.
        """
        config = self.config
        where = relative_buckets(ids.shape[1], config.relative_buckets, config.relative_max_distance)
        bias = self.relative_bias[...][where].transpose(2, 0, 1)[None]
        x = self.embedding[...][ids].astype(self.execution.dtype)
        return self.norm(self.blocks(x, bias))
