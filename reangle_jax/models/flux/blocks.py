"""FLUX's blocks (Black Forest Labs, 2024; after Esser et al., 2024, arXiv 2403.03206), which its ControlNet shares.

Heads are laid out for rotation by halves: pair k of a head is channels k and k + D/2, where the published weights
have 2k and 2k + 1. Converters permute queries, keys and their norms; attention sees only products of the two.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.flux.tokens import Rope
from reangle_jax.models.flux.transformer_config import FluxConfig
from reangle_jax.nn import layouts, remat
from reangle_jax.nn.attention import attention
from reangle_jax.nn.diffusion_blocks import (
    GATHERED,
    SMALL_INIT,
    EmbeddingMLP,
    FeedForward,
    Modulation,
    TimestepMLP,
    linear_builder,
)
from reangle_jax.nn.embeddings import rotate_halves
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import LayerNorm, RMSNorm

EPSILON = 1e-6
TIME_WIDTH = 256  # of the sinusoids of time and guidance


def linear(config: FluxConfig, execution: Execution, rngs: nnx.Rngs) -> Callable[..., Linear]:
    """What builds a model's maps outside of its blocks."""
    return linear_builder(config.param_dtype, execution, rngs)


def block_linear(config: FluxConfig, execution: Execution, rngs: nnx.Rngs) -> Callable[..., Linear]:
    """What builds the maps of its blocks."""
    return linear_builder(config.param_dtype, execution, rngs, kernel_dtype=config.kernel_dtype)


class Embedders(nnx.Module):
    """What every block knows besides the tokens: the time, the guidance and the text as a whole."""

    def __init__(self, config: FluxConfig, execution: Execution, *, rngs: nnx.Rngs):
        build, width = linear(config, execution, rngs), config.inner_dim
        self.timestep = TimestepMLP(TIME_WIDTH, width, build)
        self.guidance = TimestepMLP(TIME_WIDTH, width, build) if config.guidance_embeds else None
        self.text = EmbeddingMLP(config.pooled_embed_dim, width, build)
        self.dtype = jnp.dtype(execution.dtype)

    def __call__(
        self, times: Float[Array, " B"], guidance: Float[Array, " B"] | None, pooled: Float[Array, "B P"]
    ) -> Float[Array, "B inner"]:
        """The activated embedding. Times (0..1) and guidance are rounded, then taken a thousandfold, as published.

        Raises:
            ValueError: the model takes a guidance and there is none.
        """

        def thousandfold(x: Array) -> Array:
            return x.astype(self.dtype) * jnp.asarray(1000.0, self.dtype)

        time = self.timestep(thousandfold(times))
        if self.guidance is not None:
            if guidance is None:
                raise ValueError("this model takes a guidance for each picture, and was given none")
            time = time + self.guidance(thousandfold(guidance))
        return jax.nn.silu(time + self.text(pooled))


class ModulatedNorm(nnx.Module):
    """Layer norm without parameters, shifted and scaled by the time; each further count of three is one more norm."""

    def __init__(self, count: int, config: FluxConfig, execution: Execution, *, rngs: nnx.Rngs):
        width = config.inner_dim
        build = block_linear(config, execution, rngs)
        self.linear = build(width, count * width, (None, GATHERED), init_scale=SMALL_INIT)
        self.norm = LayerNorm(width, epsilon=EPSILON, use_affine=False)
        self.count = count
        self.dtype = jnp.dtype(execution.dtype)

    def modulations(self, time: Float[Array, "B inner"]) -> list[Modulation]:
        """What the time does, to one norm after the other."""
        parts = jnp.split(self.linear(time).astype(jnp.float32)[:, None, :], self.count, axis=-1)
        return [Modulation(*parts[k : k + 3]) for k in range(0, self.count, 3)]

    def __call__(self, x: Float[Array, "B S inner"], by: Modulation) -> Float[Array, "B S inner"]:
        """Norms, scales and shifts."""
        return (self.norm(x) * (1.0 + by.scale) + by.shift).astype(self.dtype)


class HeadProjections(nnx.Module):
    """Queries, keys and values of a stream of tokens, queries and keys normed head by head."""

    def __init__(self, config: FluxConfig, execution: Execution, *, adapted: bool, rngs: nnx.Rngs):
        build, width = block_linear(config, execution, rngs), config.inner_dim
        lora = config.lora if adapted else None
        self.to_q, self.to_k, self.to_v = (build(width, width, ("embed", GATHERED), lora) for _ in range(3))
        # The results stay float32 for the rotation, and are rounded once after it.
        param_dtype = jnp.dtype(config.param_dtype)
        self.norm_q = RMSNorm(config.attention_head_dim, epsilon=EPSILON, param_dtype=param_dtype)
        self.norm_k = RMSNorm(config.attention_head_dim, epsilon=EPSILON, param_dtype=param_dtype)
        self.heads = (config.num_attention_heads, config.attention_head_dim)

    def __call__(
        self, x: Float[Array, "B S inner"]
    ) -> tuple[Float[Array, "B S N D"], Float[Array, "B S N D"], Float[Array, "B S N D"]]:
        """Queries and keys, both float32, and values."""
        shape = (*x.shape[:2], *self.heads)
        q, k, v = (remat.product(to(x)).reshape(shape) for to in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v


def attend(
    q: Float[Array, "B S N D"],
    k: Float[Array, "B S N D"],
    v: Float[Array, "B S N D"],
    rope: Rope,
    lengths: tuple[int, int],
    impl: str,
) -> Float[Array, "B S inner"]:
    """Attention of tokens that know their places, ``lengths`` of text and of the picture."""
    q, k = (rotate_halves(x, *rope).astype(v.dtype) for x in (q, k))
    return attention(q, k, v, impl=impl, lengths=lengths).reshape(*v.shape[:2], -1)


class Stream(nnx.Module):
    """One side of a joint block, the text's or the picture's: its norms, projections and feed-forward."""

    def __init__(self, config: FluxConfig, execution: Execution, *, adapted: bool, rngs: nnx.Rngs):
        build, width = block_linear(config, execution, rngs), config.inner_dim
        self.norm = ModulatedNorm(6, config, execution, rngs=rngs)
        self.heads = HeadProjections(config, execution, adapted=adapted, rngs=rngs)
        self.to_out = build(width, width, (GATHERED, "embed"), config.lora if adapted else None)
        self.ff = FeedForward(width, build)
        self.dtype = jnp.dtype(execution.dtype)

    def close(
        self, x: Float[Array, "B S inner"], attended: Float[Array, "B S inner"], first: Modulation, second: Modulation
    ) -> Float[Array, "B S inner"]:
        """What follows the attention."""
        x = x + first.gate.astype(self.dtype) * self.to_out(attended)
        return x + second.gate.astype(self.dtype) * self.ff(self.norm(x, second))


class JointBlock(nnx.Module):
    """Attention over text and picture together, everything else apart."""

    def __init__(self, config: FluxConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.picture = Stream(config, execution, adapted=True, rngs=rngs)
        self.text = Stream(config, execution, adapted=False, rngs=rngs)
        self.impl = execution.attention

    def __call__(
        self,
        picture: Float[Array, "B S inner"],
        text: Float[Array, "B L inner"],
        time: Float[Array, "B W"],
        rope: Rope,
        lengths: tuple[int, int],
    ) -> tuple[Float[Array, "B S inner"], Float[Array, "B L inner"]]:
        """Applies the block; ``time`` is the activated embedding, ``lengths`` count tokens of text and picture."""
        of_picture, of_text = self.picture.norm.modulations(time), self.text.norm.modulations(time)
        theirs = self.text.heads(self.text.norm(text, of_text[0]))
        ours = self.picture.heads(self.picture.norm(picture, of_picture[0]))
        q, k, v = (layouts.join(*pair) for pair in zip(theirs, ours, strict=True))
        of_theirs, of_ours = layouts.part(attend(q, k, v, rope, lengths, self.impl), lengths)
        return self.picture.close(picture, of_ours, *of_picture), self.text.close(text, of_theirs, *of_text)


class SingleBlock(nnx.Module):
    """Attention and feed-forward beside each other over all tokens, text first (`layouts.join`)."""

    def __init__(self, config: FluxConfig, execution: Execution, *, rngs: nnx.Rngs):
        build, width = block_linear(config, execution, rngs), config.inner_dim
        self.norm = ModulatedNorm(3, config, execution, rngs=rngs)
        self.heads = HeadProjections(config, execution, adapted=True, rngs=rngs)
        self.up = build(width, 4 * width, ("embed", GATHERED))
        self.out = build(5 * width, width, (GATHERED, "embed"))
        self.dtype, self.impl = jnp.dtype(execution.dtype), execution.attention

    def __call__(
        self, x: Float[Array, "B S inner"], time: Float[Array, "B W"], rope: Rope, lengths: tuple[int, int]
    ) -> Float[Array, "B S inner"]:
        """Applies the block; ``time`` is the activated embedding, ``lengths`` count tokens of text and picture."""
        (by,) = self.norm.modulations(time)
        y = self.norm(x, by)
        attended = attend(*self.heads(y), rope, lengths, self.impl)
        wide = jax.nn.gelu(remat.product(self.up(y)), approximate=True)
        return x + by.gate.astype(self.dtype) * self.out(jnp.concatenate([attended, wide], axis=-1))


class Head(nnx.Module):
    """From the picture's tokens to the prediction."""

    def __init__(self, config: FluxConfig, execution: Execution, *, rngs: nnx.Rngs):
        build, width = linear(config, execution, rngs), config.inner_dim
        self.linear = build(width, 2 * width, (None, None), init_scale=SMALL_INIT)
        self.norm = LayerNorm(width, epsilon=EPSILON, use_affine=False)
        self.proj_out = build(width, config.out_channels, ("embed", None), init_scale=SMALL_INIT)

    def __call__(self, x: Float[Array, "B S inner"], time: Float[Array, "B W"]) -> Float[Array, "B S out"]:
        """Norms, modulates and projects; ``time`` is the activated embedding."""
        scale, shift = jnp.split(self.linear(time).astype(jnp.float32)[:, None, :], 2, axis=-1)
        return self.proj_out(self.norm(x) * (1.0 + scale) + shift)
