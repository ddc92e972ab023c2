"""One network whose tensors lie in several files of different origin, as if they were one file's."""

from collections.abc import Mapping, Sequence

import numpy as np

from converters.sources.tensors import Source
from reangle_jax.data.safetensors import Tensor
from reangle_jax.errors import InputError


class JoinedSource:
    """Several sources as one.

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
