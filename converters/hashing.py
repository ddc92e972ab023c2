"""SHA-256 of a source's files, of bytes that are read anyway."""

import hashlib
import os
from pathlib import Path

import numpy as np

from converters.sources.tensors import Source
from reangle_jax.data.safetensors import Tensor


def hash_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Hasher:
    """SHA-256 of every file of a source.

    Where its tensors follow one another without a gap, every byte is read only once: give `take` all of them, as they
    lie. Otherwise each file is read on its own at the end.
    """

    def __init__(self, source: Source):
        self._source = source
        self._digests = {file: hashlib.sha256() for file in source.files}
        self._ends = dict.fromkeys(source.files, 0)

    def take(self, tensor: Tensor, values: np.ndarray) -> None:
        """The next tensor and its values."""
        digest = self._digests[tensor.file]
        if not self._ends[tensor.file]:  # the header lies before the first tensor
            with open(tensor.file, "rb") as handle:
                digest.update(handle.read(tensor.offset))
        digest.update(values.reshape(-1).view(np.uint8).data)
        self._ends[tensor.file] = tensor.offset + tensor.nbytes

    def result(self) -> dict[Path, str]:
        """The hashes, in hexadecimal."""
        return {
            file: digest.hexdigest() if self._ends[file] == os.stat(file).st_size else hash_file(file)
            for file, digest in self._digests.items()
        }
