"""A ControlNet for inpainting beside FLUX (alimama-creative, 2024; after Zhang et al., 2023, arXiv 2302.05543)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.flux.blocks import Embedders, JointBlock, block_linear, linear
from reangle_jax.models.flux.tokens import divided, divided_rope
from reangle_jax.models.flux.transformer_config import ControlNetConfig
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.stack import Stack


class _Controlled(nnx.Module):
    """A joint block in the stack, and the map from its picture's tokens to a residual."""

    def __init__(self, config: ControlNetConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.block = JointBlock(config, execution, rngs=rngs)
        # A fresh ControlNet changes nothing (zero convolutions).
        self.residual: Linear = block_linear(config, execution, rngs)(
            config.inner_dim, config.inner_dim, (None, "embed"), init_scale=0.0
        )

    def __call__(self, carry, time, rope, lengths):
        picture, text, _ = carry
        picture, text = self.block(picture, text, time, rope, lengths)
        return picture, text, self.residual(picture)


class FluxControlNet(nnx.Module):
    """Residuals for a transformer's joint blocks, from its own inputs and a masked picture."""

    def __init__(self, config: ControlNetConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution.chosen(config.param_dtype)
        build, width = linear(config, execution, rngs), config.inner_dim
        self.embed_picture = build(config.in_channels, width, (None, "embed"))
        self.embed_condition = build(config.condition_channels, width, (None, "embed"), init_scale=0.0)
        self.embed_text = build(config.text_embed_dim, width, (None, "embed"))
        self.embedders = Embedders(config, execution, rngs=rngs)
        self.blocks = Stack(_Controlled, config, execution, config.num_layers, tokens=True, rngs=rngs)
        self.config = config
        self.execution = execution

    def __call__(
        self,
        tokens: Float[Array, "B S Cin"],
        condition: Float[Array, "B S Ccond"],
        text: Float[Array, "B L D"],
        pooled: Float[Array, "B P"],
        times: Float[Array, " B"],
        guidance: Float[Array, " B"] | None,
        grid: tuple[int, int],
        scale: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "R B F inner"]:
        """The residuals that reach the transformer; blocks whose would not are not computed.

        Args:
            tokens: packed noised latents; this and what is not said here is as the transformer's.
            condition: packed latents of the masked picture, and the mask of what is known as one channel more.
            text: of tokens.
            pooled: of the whole text.
            times: of each picture.
            guidance: of each picture.
            grid: rows and columns of tokens.
            scale: factor on all residuals.

        Returns:
            ``config.used_layers`` residuals, of tokens filled up as the mesh wants them.
        """
        config = self.config
        picture = self.embed_picture(divided(tokens)) + self.embed_condition(divided(condition))
        time = self.embedders(times, guidance, pooled)
        rope, lengths = divided_rope(config, text.shape[1], grid), (text.shape[1], tokens.shape[1])
        carry = (picture, self.embed_text(divided(text)), jnp.zeros_like(picture))
        _, (_, _, residuals) = self.blocks.with_taps(carry, time, rope, lengths, depth=config.used_layers)
        return jax.tree.map(lambda r: r * jnp.asarray(scale, r.dtype), residuals)
