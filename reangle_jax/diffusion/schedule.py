"""CogVideoX's noise schedule: how signal and noise mix at each of 1000 times, and what the model predicts of it.

z_t = sqrt(abar) z0 + sqrt(1 - abar) eps, and the model predicts v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans and
Ho, 2022, arXiv 2202.00512). The last time is pure noise, abar = 0 (Lin et al., 2023, arXiv 2305.08891).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Int32

from reangle_jax.errors import InputError

SPACINGS = ("trailing", "leading", "linspace")

# Our fields: the published name of each, and what a published file means where it is silent.
_PUBLISHED: dict[str, tuple[str, Any]] = {
    "beta_start": ("beta_start", 0.00085),
    "beta_end": ("beta_end", 0.012),
    "snr_shift_scale": ("snr_shift_scale", 3.0),
    "train_steps": ("num_train_timesteps", 1000),
    "spacing": ("timestep_spacing", "leading"),
    "steps_offset": ("steps_offset", 0),
    "ends_clean": ("set_alpha_to_one", True),
}
# What it must say, and what it means where it is silent.
_REQUIRED: dict[str, tuple[Any, Any]] = {
    "beta_schedule": ("scaled_linear", "scaled_linear"),
    "trained_betas": (None, None),
    "clip_sample": (False, True),
    "prediction_type": ("v_prediction", "epsilon"),
    "rescale_betas_zero_snr": (True, False),
}


def look_up(table: Float[np.ndarray, " N"], t: Int[Array, " B"], ndim: int) -> Float32[Array, "B ..."]:
    """``table[t]`` in float32, with axes of size 1 behind up to ``ndim`` in all."""
    # A select and a sum, exact since all terms but one are 0: a gather by sharded indices has no sharding of its own.
    hit = t[:, None] == jnp.arange(len(table), dtype=t.dtype)[None, :]
    row = jnp.asarray(table.astype(np.float32))[None, :]
    return jnp.where(hit, row, jnp.float32(0)).sum(-1).reshape((-1,) + (1,) * (ndim - 1))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Scaled-linear betas, shifted in signal-to-noise ratio, rescaled to zero terminal ratio.

    The defaults are those of CogVideoX-5B, 5B-I2V and the 1.5 models.

    It holds numbers only, so that it is hashable and can be a static argument of ``jax.jit``; the tables are float64
    on the host and are rounded to float32 where they meet arrays.
    """

    beta_start: float = 0.00085  # the first beta
    beta_end: float = 0.012  # the last beta
    snr_shift_scale: float = 1.0  # divides the signal-to-noise ratio; 1 leaves it as it is; 3 in CogVideoX-2B
    train_steps: int = 1000  # how many times there are
    spacing: str = "trailing"  # which times a sampler visits (:meth:`timesteps`), one of SPACINGS
    steps_offset: int = 0  # added to the times of "leading" spacing
    # A step past time 0 lands on the clean latents; otherwise on time 0, which has a little noise.
    ends_clean: bool = True

    def __post_init__(self):
        if self.spacing not in SPACINGS:
            raise InputError(f"timestep_spacing {self.spacing!r} is unknown: there are {', '.join(SPACINGS)}")

    @classmethod
    def from_published(cls, fields: Mapping[str, Any]) -> "Schedule":
        """The schedule that a published ``scheduler_config.json`` describes; what is absent is as in diffusers' class.

        Raises:
            InputError: it describes a schedule of another kind.
        """
        for name, (expected, silent) in _REQUIRED.items():
            if (found := fields.get(name, silent)) != expected:
                raise InputError(
                    f"scheduler_config.json: {name} is {found!r}, and only {expected!r} can be sampled here: "
                    "give the file that CogVideoX is published with"
                )
        return cls(**{ours: fields.get(theirs, silent) for ours, (theirs, silent) in _PUBLISHED.items()})

    @property
    def final_alpha_cumprod(self) -> float:
        """The share of signal where a sampler's last step ends."""
        return 1.0 if self.ends_clean else float(self.alphas_cumprod[0])

    @functools.cached_property
    def alphas_cumprod(self) -> Float64[np.ndarray, " train_steps"]:
        """The share of signal in z_t by power, abar; the last is exactly 0."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps, dtype=np.float64) ** 2
        abar = np.cumprod(1.0 - betas)
        abar = abar / (self.snr_shift_scale + (1.0 - self.snr_shift_scale) * abar)
        root = np.sqrt(abar)
        first, last = root[0], root[-1]
        table = ((root - last) * (first / (first - last))) ** 2
        table.flags.writeable = False
        return table

    def timesteps(self, steps: int) -> Int32[np.ndarray, " {steps}"]:
        """The times that a sampler of ``steps`` steps visits, from noise to clean.

        "trailing", as all published models have it, counts down from the last time in equal strides; "leading" counts
        up from the first and never sees pure noise; "linspace" has both ends.

        Raises:
            InputError: the schedule has fewer times than ``steps``, or ``steps`` is not positive.
        """
        if not 1 <= steps <= self.train_steps:
            raise InputError(f"config.sample.steps: {steps} is out of range; give 1 to {self.train_steps}")
        if self.spacing == "linspace":
            return np.linspace(0, self.train_steps - 1, steps).round()[::-1].astype(np.int32)
        if self.spacing == "leading":
            return (np.arange(steps) * (self.train_steps // steps))[::-1].astype(np.int32) + self.steps_offset
        # arange's own rounding decides ties, as in diffusers; for some counts it ends with one value too many (a
        # time of -1), which is cut off here.
        times = np.round(np.arange(self.train_steps, 0, -self.train_steps / steps))[:steps]
        return times.astype(np.int32) - 1

    def _factors(self, t: Array, ndim: int) -> tuple[Array, Array]:
        signal = look_up(np.sqrt(self.alphas_cumprod), t, ndim)
        return signal, look_up(np.sqrt(1.0 - self.alphas_cumprod), t, ndim)

    def add_noise(
        self, z: Float[Array, " B *rest"], eps: Float[Array, " B *rest"], t: Int[Array, " B"]
    ) -> Float[Array, " B *rest"]:
        """z_t = sqrt(abar) z + sqrt(1 - abar) eps, computed in float32, in the dtype of ``z``."""
        signal, noise = self._factors(t, z.ndim)
        return (signal * z.astype(jnp.float32) + noise * eps.astype(jnp.float32)).astype(z.dtype)

    def velocity(
        self, z: Float[Array, " B *rest"], eps: Float[Array, " B *rest"], t: Int[Array, " B"]
    ) -> Float[Array, " B *rest"]:
        """What the model learns to predict, v = sqrt(abar) eps - sqrt(1 - abar) z, in the dtype of ``z``."""
        signal, noise = self._factors(t, z.ndim)
        return (signal * eps.astype(jnp.float32) - noise * z.astype(jnp.float32)).astype(z.dtype)
