"""Losses of video diffusion training, with a visibility mask (Reangle-A-Video, stage 2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def masked_loss(
    v_pred: Float[Array, "B T H W C"], v_true: Float[Array, "B T H W C"], mask: Shaped[Array, "B T H W"] | None
) -> Float[Array, ""]:
    """Mean over ALL elements of ``mask * (v_pred - v_true)^2``, float32: it is not divided by the visible count.

    ``v_true`` is what the model should predict: a velocity, the schedule's or flow matching's. The mask is 1 (or True)
    where the latent is to be learnt; None for everywhere.
    """
    square = jnp.square(v_pred.astype(jnp.float32) - v_true.astype(jnp.float32))
    if mask is not None:
        square = square * mask.astype(jnp.float32)[..., None]
    return jnp.mean(square)
