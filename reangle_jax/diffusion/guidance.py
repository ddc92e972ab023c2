"""Classifier-free guidance (Ho and Salimans, 2022, arXiv 2207.12598) and CogVideoX's schedule of its strength."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int


def guidance_scales(
    timesteps: Int[np.ndarray, " {steps}"], steps: int, scale: float, dynamic: bool
) -> Float32[np.ndarray, " {steps}"]:
    """Strength of guidance at each step: `scale`; ``dynamic``: 1 + scale (1 - cos(pi ((steps - t) / steps)^5)) / 2.

    The published code sets the time t, up to 999, not the step's number, against the count of steps, so that the
    strength jumps about rather than rises; the published results were made with it, and it is kept.
    """
    if not dynamic:
        return np.full(len(timesteps), scale, np.float32)
    values = [1 + scale * (1 - math.cos(math.pi * ((steps - int(t)) / steps) ** 5.0)) / 2 for t in timesteps]
    return np.array(values, np.float32)


def is_guided(scale: float) -> bool:
    """Whether a strength calls for the unconditional pass; as published, 1 and less do not, dynamic or not."""
    return scale > 1.0


def guided(predict: Callable[..., Array], scales: Float32[np.ndarray, " steps"] | None) -> Callable[..., Array]:
    """Makes a sampler's ``denoise`` out of a model's prediction.

    Args:
        predict: ``predict(latents [2B, ...], t int32 [2B], *args)`` gives v; the first half of the batch is to be
            unconditional, the second conditional (the caller's ``args`` are laid out so).
        scales: of each step; None for no guidance: then ``predict`` gets the batch once, conditional.

    Returns:
        ``denoise(latents [B, ...], t int32 scalar, step int32 scalar, *args)``, the guided v in float32.
    """

    def denoise(latents: Array, t: Array, step: Array, *args) -> Array:
        batch = latents.shape[0]
        if scales is None:
            return predict(latents, jnp.broadcast_to(t, (batch,)), *args).astype(jnp.float32)
        v = predict(jnp.concatenate([latents, latents]), jnp.broadcast_to(t, (2 * batch,)), *args).astype(jnp.float32)
        unconditional, conditional = v[:batch], v[batch:]
        return unconditional + jnp.asarray(scales)[step] * (conditional - unconditional)

    return denoise
