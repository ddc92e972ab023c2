"""What every kind of source offers: named tensors, each read on its own, and the files behind them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from reangle_jax.data.safetensors import Tensor


@runtime_checkable
class Source(Protocol):
    """A checkpoint whose header was read and found sound."""

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor, in memory of their own."""
        ...
