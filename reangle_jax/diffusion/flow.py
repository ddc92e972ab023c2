"""Flow matching: z_t = (1 - t) z0 + t eps for t from 1 to 0, and the model predicts v = eps - z0 (arXiv 2210.02747).

From z_t and v follow the clean estimate z0 = z_t - t v and the noise estimate eps = z_t + (1 - t) v. A step goes to

    z_t' = (1 - t') z0 + sqrt(t'^2 - s^2) eps + s xi,   xi ~ N(0, I),

which is Euler's z_t + (t' - t) v where s = 0. All coefficients are computed on the host in float64.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from reangle_jax.arrays import AnyArray

NOISES = ("ddim", "constant")
QUIET = 2
"""Steps at the end without noise: what is added there stays in the picture."""


@dataclasses.dataclass(frozen=True)
class Shift:
    """How times are shifted towards the noise, the more the larger a picture is: FLUX.1-dev's numbers by default."""

    base_tokens: int = 256  # of the smallest picture
    max_tokens: int = 4096  # of the largest
    base: float = 0.5  # exponent for the smallest; linear between
    max: float = 1.15  # exponent for the largest

    def exponent(self, tokens: int) -> float:
        """The exponent, mu, for a picture of so many tokens."""
        return self.base + (self.max - self.base) * (tokens - self.base_tokens) / (self.max_tokens - self.base_tokens)


def times(steps: int, tokens: int, shift: Shift | None = None, *, strength: float = 1.0) -> Float64[np.ndarray, " _"]:
    """The times of a sampler, from noise (1) to clean (0), both ends included: ``steps`` + 1 of them.

    All of them are multiplied by the ``strength``: less than 1 begins at something `noised` to that time.
    """
    growth = np.exp((shift or Shift()).exponent(tokens))
    even = np.linspace(1.0, 1.0 / steps, steps)
    return strength * np.append(growth / (growth + 1.0 / even - 1.0), 0.0)


def noised(clean: Float[Array, "*s"], noise: Float[Array, "*s"], time: Float[Array, ""] | float) -> Float[Array, "*s"]:
    """Something clean as it is at a time."""
    return (1 - time) * clean + time * noise


def noise_levels(
    times: Float64[np.ndarray, " _"], eta: float, form: str, quiet: int = QUIET
) -> Float64[np.ndarray, " _"]:
    """The noise s that each step of stochastic sampling adds, of strength eta, 0 to 1; the last ``quiet`` add none.

    ``ddim`` is eta t' sqrt(1 - ((1 - t) t' / ((1 - t') t))^2), the posterior's: the noise shrinks with the steps, so
    that what is sampled keeps its spread as they grow. ``constant`` is eta t', which takes spread away: a third at eta
    = 1 and 50 steps, next to none up to eta = 0.2.
    """
    if form not in NOISES:
        raise ValueError(f"noise {form!r} is not one of {', '.join(NOISES)}")
    now, after = times[:-1], times[1:]
    levels = eta * after
    if form == "ddim":
        levels = levels * np.sqrt(np.maximum(0.0, 1.0 - ((1.0 - now) * after / ((1.0 - after) * now)) ** 2))
    levels[max(0, len(levels) - quiet) :] = 0.0
    return levels


class Coefficients(NamedTuple):
    """Of one step, scalars; or of all steps, [steps] each, float64."""

    time: Any  # t
    after: Any  # t'
    span: Any  # t' - t
    rest: Any  # 1 - t
    pull: Any  # sqrt(t'^2 - s^2) - t', what the noise estimate gives way to fresh noise
    noise: Any  # s

    @classmethod
    def of(cls, times: Float64[np.ndarray, " _"], noise: Float64[np.ndarray, " _"]) -> "Coefficients":
        """Of a sampler's times and the noise that each step adds."""
        now, after = times[:-1], times[1:]
        return cls(now, after, after - now, 1.0 - now, np.sqrt(after**2 - noise**2) - after, noise)

    def step(self, index: int) -> "Coefficients":
        """One step's, float32: what a compiled program takes."""
        return Coefficients(*(jnp.float32(column[index]) for column in self))


def clean(x: Float[Array, "*s"], v: Float[Array, "*s"], time: Float[AnyArray, ""]) -> Float[Array, "*s"]:
    """The clean estimate, of a state and the velocity predicted there."""
    return x - time * v


def advance(x: Float[Array, "*s"], v: Float[Array, "*s"], c: Coefficients) -> Float[Array, "*s"]:
    """The next state without noise: Euler's step."""
    return x + c.span * v


def propose(
    x: Float[Array, "*s"], v: Float[Array, "*s"], c: Coefficients, xi: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """A next state with noise ``xi``, which is unit noise."""
    return advance(x, v, c) + c.pull * (x + c.rest * v) + c.noise * xi
