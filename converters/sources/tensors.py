"""What every kind of source offers: named tensors, each read on its own, and the files behind them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from reangle_jax.data.safetensors import Tensor
from reangle_jax.errors import InputError


@runtime_checkable
class Source(Protocol):
    """A checkpoint whose header was read and found sound."""

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor, in memory of their own."""
        ...


class JoinedSource:
    """One network whose tensors lie in several files of different origin, as if they were one file's.

    Raises:
        InputError: one has a tensor of another.
    """

    def __init__(self, sources: Sequence[Source]):
        self.files = tuple(file for source in sources for file in source.files)
        tensors: dict[str, Tensor] = {}
        self._owners = {file: source for source in sources for file in source.files}
        for source in sources:
            for name, tensor in source.tensors.items():
                if name in tensors:
                    raise InputError(
                        f"{tensor.file}: {name} is in {tensors[name].file.name} too; leave out one of them"
                    )
                tensors[name] = tensor
        self.tensors: Mapping[str, Tensor] = tensors

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor, from the source that has it."""
        return self._owners[tensor.file].read(tensor)
