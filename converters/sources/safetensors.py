"""Published safetensors: one file, or the shards of an index."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from reangle_jax.data import safetensors
from reangle_jax.data.safetensors import Tensor
from reangle_jax.errors import InputError

MAX_INDEX = 64 << 20


class SafetensorsSource:
    """One file, or the shards of an index, which says (``expected``) which file each tensor must be in.

    Raises:
        InputError: a file is missing, truncated or malformed, does not match the index, or repeats a tensor.
    """

    def __init__(self, files: Iterable[Path], expected: dict[str, str] | None = None):
        self.files = tuple(files)
        found: dict[str, Tensor] = {}
        for file in self.files:
            tensors, _ = safetensors.read_header(file)
            twice = sorted(found.keys() & tensors.keys())
            if twice:
                raise InputError(f"{file}: {twice[0]} is in {found[twice[0]].file.name} too; download both again")
            found |= tensors
        if expected is not None:
            _check_index(expected, found)
        self.tensors: Mapping[str, Tensor] = found

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor."""
        return safetensors.read(tensor)


def read_index(file: Path) -> dict[str, str]:
    """Which shard holds each tensor, from ``*.safetensors.index.json``.

    Raises:
        InputError: it cannot be read, or a shard's name leaves the folder.
    """
    try:
        if os.stat(file).st_size > MAX_INDEX:
            raise InputError(f"{file}: is too large for an index; check what it is")
        shards = safetensors.parse(file.read_bytes(), file).get("weight_map")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise InputError(f"{file}: has no weight_map of names; download it again")
    for shard in set(shards.values()):
        if not shard or shard in (".", "..") or any(mark in shard for mark in ("/", "\\", "\0")):
            raise InputError(f"{file}: the shard {shard!r} is not in this folder; do not use this download")
    return shards


def _check_index(expected: dict[str, str], tensors: dict[str, Tensor]) -> None:
    faults = [f"{name}: the index puts it in {shard}" for name, shard in expected.items() if name not in tensors]
    faults += [
        f"{name}: is in {tensor.file.name}, the index says {expected.get(name, 'nothing of it')}"
        for name, tensor in tensors.items()
        if expected.get(name) != tensor.file.name
    ]
    if faults:
        folder = next(iter(tensors.values())).file.parent if tensors else "the folder"
        raise InputError(f"{folder}: the shards are not those of the index; download them again", tuple(sorted(faults)))
