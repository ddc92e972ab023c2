"""FlowEdit (Kulikov et al., 2024, arXiv 2412.08629): a picture edited by a flow model, without inverting it.

The picture is noised afresh at every step. How the velocity towards the target differs, at the edit noised alike, from
the velocity towards the source moves the edit: what the two texts have in common stays.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from reangle_jax.diffusion.flow import Coefficients

Velocities = Callable[[Float[Array, "*s"], Float[Array, "*s"], Float[Array, ""]], tuple[Array, Array]]
"""``(noised source, noised edit, time)`` to the velocity of the source there, and the target's at the edit."""


def edit_step(
    edited: Float[Array, "*s"],
    source: Float[Array, "*s"],
    velocities: Velocities,
    c: Coefficients,
    *,
    key: Array,
) -> Float[Array, "*s"]:
    """One step of clean latents edited so far; before the first of them the edit is the source."""
    noised = c.rest * source + c.time * jax.random.normal(key, source.shape, source.dtype)
    from_source, to_target = velocities(noised, edited + (noised - source), c.time)
    return edited + c.span * (to_target - from_source)
