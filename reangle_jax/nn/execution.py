"""How a network is computed: what no weights depend on and no config.json holds."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from reangle_jax.errors import InputError
from reangle_jax.nn.attention import platform
from reangle_jax.nn.choices import ATTENTION, AUTO, IMPLEMENTATIONS, PLATFORMS, REMATS, Choice


@dataclasses.dataclass(frozen=True)
class Execution:
    """The choices of one network; see `reangle_jax.nn.attention.attention` and `reangle_jax.nn.remat.rematerialised`.

    It computes in ``dtype``.

    Raises:
        ValueError: there is no such attention or remat.
    """

    attention: str = "plain"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        if self.attention not in IMPLEMENTATIONS:
            raise ValueError(f"attention {self.attention!r} is not one of {', '.join(IMPLEMENTATIONS)}")
        if self.remat not in REMATS:
            raise ValueError(f"remat {self.remat!r} is not one of {', '.join(REMATS)}")

    @classmethod
    def chosen(cls, stored: str, choice: Choice = AUTO) -> "Execution":
        """A diffusion transformer's: self-attention of many tokens without a bias, in a deep stack.

        Raises:
            InputError: a kernel of another platform, or of other types.
        """
        attention, dtype = choice.attention, stored if choice.dtype == "auto" else choice.dtype
        narrow = jnp.dtype(dtype).itemsize == 2
        if attention == "auto":
            fused = {needed: impl for impl, needed in PLATFORMS.items()}.get(platform())
            attention = fused if fused and narrow else "mapped"
        check(attention)
        if attention in PLATFORMS and not narrow:
            raise InputError(
                f"config.execution.attention={attention!r} is for 16-bit types, not {dtype}: use auto, or "
                "config.execution.dtype=bfloat16"
            )
        return cls(attention, ATTENTION if choice.remat == "auto" else choice.remat, dtype)

    @classmethod
    def in_type(cls, stored: str, choice: Choice = AUTO) -> "Execution":
        """The reference's attention, nothing recomputed; only the choice's dtype counts."""
        return cls(dtype=stored if choice.dtype == "auto" else choice.dtype)

    def dtypes(self, stored: str) -> dict[str, Any]:
        """The keyword arguments that tell a layer what to compute in and what to store."""
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(stored)}


def check(attention: str) -> None:
    """Refuses a kernel of another platform.

    Raises:
        InputError: this process's devices are of another platform.
    """
    needed, here = PLATFORMS.get(attention), platform()
    if needed and needed != here:
        raise InputError(
            f"config.execution.attention={attention!r} needs a {needed.upper()}, and this is a {here.upper()}: use auto"
        )
