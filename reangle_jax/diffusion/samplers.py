"""Samplers: every coefficient is computed on the host in float64, and one update serves them all.

A step predicts the clean latents, x0 = signal * z - spread * v, and moves on to

    z' = keep * z + pull * (now * x0 - before * x0 of the step before) + noise * xi,   xi ~ N(0, I).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reangle_jax.arrays import AnyArray
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.errors import InputError

SAMPLERS = ("ddim", "dpm")

Denoise = Callable[..., Array]
"""``denoise(latents, t, step, *args)``: the guided v at time ``t`` (int32 scalar) of step ``step`` (int32 scalar)."""


class Coefficients(NamedTuple):
    """A sampler's table, [steps] each: int32 times, the rest float64 on the host. Or one row, as float32 scalars."""

    timestep: AnyArray
    signal: AnyArray
    spread: AnyArray
    keep: AnyArray
    pull: AnyArray
    now: AnyArray
    before: AnyArray
    noise: AnyArray


class SamplerState(NamedTuple):
    """All that a sampler carries from step to step; an unfinished run continues from it."""

    latents: Array
    clean: Array
    """The clean latents predicted by the step before, float32."""


def coefficients(sampler: str, schedule: Schedule, steps: int) -> Coefficients:
    """The coefficients of ``steps`` steps.

    ``ddim`` is the deterministic sampler (Song et al., 2020, arXiv 2010.02502); the published one takes an ``eta`` and
    does not use it. ``dpm`` is the stochastic
    DPM-Solver++ (Lu et al., 2022, arXiv 2211.01095) as CogVideoX ships it: second order but in the first step, which
    has no past, and in the last, which lands on x0. Where the last time of the spacing lies a whole stride or more
    above 0, as at 48 steps, the published sampler stops short of x0, and so does this.

    Raises:
        InputError: the sampler is unknown or the count of steps impossible.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"config.sample.sampler: {sampler!r} is unknown; give one of {', '.join(SAMPLERS)}")
    timesteps = schedule.timesteps(steps)
    abar = schedule.alphas_cumprod
    # The published step is a whole stride back, not the next time of the spacing: they differ if steps does not
    # divide 1000.
    targets = timesteps - schedule.train_steps // steps
    here = abar[timesteps]
    there = np.where(targets >= 0, abar[np.maximum(targets, 0)], schedule.final_alpha_cumprod)
    zeros, ones = np.zeros(steps), np.ones(steps)
    if sampler == "ddim":
        keep = np.sqrt((1 - there) / (1 - here))
        pull = np.sqrt(there) - np.sqrt(here) * keep
        now, before, noise = ones, zeros, zeros
    else:
        # Ratio of the signal-to-noise ratios, exp(-2h) for a step h in log signal-to-noise: 0 from pure noise, and
        # 0 into x0, where h itself is infinite.
        ratio = here * (1 - there) / ((1 - here) * there)
        keep = (1 - there) / (1 - here) * np.sqrt(here / there)
        pull = (1 - ratio) * np.sqrt(there)
        noise = np.sqrt((1 - there) * (1 - ratio))
        before = _extrapolation(here, there, targets)
        now = 1 + before
    return Coefficients(timesteps, np.sqrt(here), np.sqrt(1 - here), keep, pull, now, before, noise)


def _extrapolation(here: np.ndarray, there: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weight of the step before in the second-order estimate, h / (2 h_before); 0 where a step is infinite."""
    result = np.zeros(len(here))
    for i in range(1, len(here)):
        if here[i - 1] == 0.0 or targets[i] < 0:
            continue
        past, now, next_ = (0.5 * np.log(a / (1 - a)) for a in (here[i - 1], here[i], there[i]))
        result[i] = (next_ - now) / (2 * (now - past))
    return result


def init_state(latents: Float[Array, "B ..."]) -> SamplerState:
    """The state before the first step; ``latents`` are unit noise."""
    return SamplerState(latents, jnp.zeros_like(latents, dtype=jnp.float32))


def update(
    state: SamplerState, v: Float[Array, " B *rest"], c: Coefficients, xi: Float[Array, " B *rest"] | None
) -> SamplerState:
    """One step from the guided prediction, float32; the latents keep their dtype.

    The coefficients are this step's, float32 scalars; ``xi`` is unit noise, or None for a sampler that adds none.
    """
    z = state.latents.astype(jnp.float32)
    signal, spread, keep, pull, now, before, noise = (jnp.asarray(scalar) for scalar in c[1:])
    clean = signal * z - spread * v
    # The order of the sums is the published one: it decides the last bit.
    following = keep * z + pull * (now * clean - before * state.clean)
    if xi is not None:
        following = following + noise * xi
    return SamplerState(following.astype(state.latents.dtype), clean)


def _noise(key: Array, index: Array, shape: tuple[int, ...]) -> Array:
    """Of one key for a batch; or of a key for each video, which then gets what it would get alone."""
    if key.ndim:
        return jax.vmap(lambda own: _noise(own, index, shape[1:]))(key)
    return jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)


def make_step(denoise: Denoise, *, sampler: str, steps: int, schedule: Schedule) -> Callable[..., SamplerState]:
    """A sampler's step, which a caller repeats, and may stop and go on with: one compiled program for all steps.

    ``state = init_state(noise)``, then ``state = step(state, jnp.int32(i), key, *args)`` for i = 0 .. steps - 1, with
    the same ``key`` throughout: ``dpm``'s noise of step i is drawn with ``fold_in(key, i)``. ``args``, any pytrees of
    arrays, are handed to ``denoise`` (``guidance.guided``): weights, and what changes from video to video.

    Raises:
        InputError: the sampler is unknown or the count of steps impossible.
    """
    host = coefficients(sampler, schedule, steps)

    @jax.jit
    def step(state: SamplerState, index: Array, key: Array, *args) -> SamplerState:
        table = Coefficients(
            jnp.asarray(host.timestep), *(jnp.asarray(column.astype(np.float32)) for column in host[1:])
        )
        c = jax.tree.map(lambda column: column[index], table)
        v = denoise(state.latents, c.timestep, index, *args).astype(jnp.float32)
        # The published DPM step draws twice and throws the first draw away; one draw is the same in distribution.
        stochastic = bool(host.noise.any())
        return update(state, v, c, _noise(key, index, v.shape) if stochastic else None)

    return step


@functools.partial(jax.jit, static_argnames=("denoise", "sampler", "steps", "schedule"))
def sample(
    denoise: Denoise,
    latents: Float[Array, "B ..."],
    *args,
    sampler: str,
    steps: int,
    schedule: Schedule,
    key: Array,
) -> Float[Array, "B ..."]:
    """From unit noise to clean latents in one compiled program: a scan over `make_step`'s step.

    It is compiled anew for each new ``denoise``: make that once, and pass what changes, and the weights, in ``args``.
    """
    step, numbers = make_step(denoise, sampler=sampler, steps=steps, schedule=schedule), jnp.arange(steps)
    state, _ = jax.lax.scan(lambda state, k: (step(state, k, key, *args), None), init_state(latents), numbers)
    return state.latents
