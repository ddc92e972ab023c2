"""FLUX's diffusion transformer: predicts a flow's velocity from packed latents, text, time and guidance."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.flux.blocks import Embedders, Head, JointBlock, SingleBlock, linear
from reangle_jax.models.flux.tokens import divided, divided_rope
from reangle_jax.models.flux.transformer_config import FluxConfig
from reangle_jax.nn import layouts
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.stack import Stack


class _Joint(JointBlock):
    """A joint block in the stack: it counts itself, and takes what the ControlNet has for it."""

    def __call__(self, carry, time, rope, lengths, residuals, interval):  # pyright: ignore[reportIncompatibleMethodOverride]
        picture, text, number = carry
        picture, text = super().__call__(picture, text, time, rope, lengths)
        if residuals is not None:
            picture = picture + residuals[number // interval].astype(picture.dtype)
        return picture, text, number + 1


class FluxTransformer(nnx.Module):
    """Predicts ``v = noise - picture`` of packed latents (`reangle_jax.models.flux.tokens`)."""

    def __init__(self, config: FluxConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution.chosen(config.param_dtype)
        build, width = linear(config, execution, rngs), config.inner_dim
        self.embed_picture = build(config.in_channels, width, (None, "embed"))
        self.embed_text = build(config.text_embed_dim, width, (None, "embed"))
        self.embedders = Embedders(config, execution, rngs=rngs)
        self.joint = Stack(_Joint, config, execution, config.num_layers, tokens=True, rngs=rngs)
        self.single = Stack(SingleBlock, config, execution, config.num_single_layers, tokens=True, rngs=rngs)
        self.head = Head(config, execution, rngs=rngs)
        self.config = config
        self.execution = execution

    def __call__(
        self,
        tokens: Float[Array, "B S Cin"],
        text: Float[Array, "B L D"],
        pooled: Float[Array, "B P"],
        times: Float[Array, " B"],
        guidance: Float[Array, " B"] | None,
        grid: tuple[int, int],
        residuals: Float[Array, "R B F inner"] | None = None,
    ) -> Float[Array, "B S Cout"]:
        """Predicts.

        Args:
            tokens: packed noised latents; FLUX.1-Fill's condition follows on the channels.
            text: the text encoder's output; pads are attended to.
            pooled: the vector of the whole text.
            times: one for each picture, 1 for noise and 0 for the picture; multiplied by 1000 within.
            guidance: one for each picture; None for models that take none.
            grid: rows and columns of tokens.
            residuals: a ControlNet's: R of them, each added after as many joint blocks as share it; of tokens filled up
                as the mesh wants them (`reangle_jax.nn.layouts.fill`).

        Returns:
            The velocity of each token, in the dtype computed in.

        Raises:
            ValueError: sizes that the model cannot take.
        """
        config, lengths = self.config, (text.shape[1], tokens.shape[1])
        if tokens.shape[1:] != (grid[0] * grid[1], config.in_channels):
            raise ValueError(f"tokens {tokens.shape} are not {grid} of {config.in_channels} channels")
        picture, words = self.embed_picture(divided(tokens)), self.embed_text(divided(text))
        time = self.embedders(times, guidance, pooled)
        rope = divided_rope(config, lengths[0], grid)
        # As many joint blocks share one residual: the last residual may serve fewer.
        interval = 1 if residuals is None else -(-config.num_layers // residuals.shape[0])
        picture, words, _ = self.joint((picture, words, jnp.int32(0)), time, rope, lengths, residuals, interval)
        x = self.single(layouts.join(words, picture), time, rope, lengths)
        velocities = layouts.constrain(self.head(layouts.part(x, lengths)[1], time), layouts.WHOLE)
        return velocities[:, : lengths[1]]
