"""Losses of video diffusion training, with a visibility mask (Reangle-A-Video, stage 2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from reangle_jax.diffusion.schedule import Schedule, look_up


def _masked_mean_square(difference: Array, mask: Array | None) -> Array:
    square = jnp.square(difference)
    if mask is not None:
        square = square * mask.astype(jnp.float32)[..., None]
    return jnp.mean(square)


def masked_v_loss(
    v_pred: Float[Array, "B T H W C"], v_true: Float[Array, "B T H W C"], mask: Shaped[Array, "B T H W"] | None
) -> Float[Array, ""]:
    """Mean over ALL elements of ``mask * (v_pred - v_true)^2``: it is not divided by the visible count.

    Args:
        v_pred: the model's prediction.
        v_true: ``Schedule.velocity`` of the clean latents and their noise.
        mask: 1 (or True) where the latent is to be learnt; None for everywhere.

    Returns:
        The loss, float32.
    """
    return _masked_mean_square(v_pred.astype(jnp.float32) - v_true.astype(jnp.float32), mask)


def masked_x0_loss(
    v_pred: Float[Array, "B T H W C"],
    z_t: Float[Array, "B T H W C"],
    z0: Float[Array, "B T H W C"],
    mask: Shaped[Array, "B T H W"] | None,
    t: Int[Array, " B"],
    schedule: Schedule,
) -> Float[Array, ""]:
    """The same loss as the released training scripts write it: mean of ``mask * (z0_hat - z0)^2 / (1 - abar)``.

    Since z0_hat - z0 = -sqrt(1 - abar) (v_pred - v), it equals ``masked_v_loss``. It is here to be compared with.

    Args:
        v_pred: the model's prediction at ``z_t``.
        z_t: noised latents.
        z0: clean latents.
        mask: as in ``masked_v_loss``.
        t: the times.
        schedule: the noise schedule.

    Returns:
        The loss, float32.
    """
    root = look_up((1.0 - schedule.alphas_cumprod) ** -0.5, t, z_t.ndim)
    clean = schedule.to_x0(z_t.astype(jnp.float32), v_pred, t)
    return _masked_mean_square(root * (clean - z0.astype(jnp.float32)), mask)
