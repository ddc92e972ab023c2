"""safetensors files, read without trust: the whole header is checked before a byte of data is believed.

Tensors are read by position, one at a time, into memory that is freed with the array: pages of a memory-mapped file
would count as this process's own. Format: github.com/huggingface/safetensors.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceError
from converters.sources.tensors import DTYPES, Tensor

MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_INDEX = 64 << 20


class SafetensorsSource:
    """One file, or the shards of an index.

    Args:
        files: the files; their names must not repeat a tensor.
        expected: which file each tensor must be in, from the index; None for a file without one.

    Raises:
        SourceError: a file is missing, truncated, malformed, or does not match the index.
    """

    def __init__(self, files: Iterable[Path], expected: dict[str, str] | None = None):
        self.files = tuple(files)
        found: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {}
        for file in self.files:
            tensors, metadata = read_header(file)
            twice = sorted(found.keys() & tensors.keys())
            if twice:
                raise SourceError(f"{file}: {twice[0]} is in {found[twice[0]].file.name} too; download both again")
            found |= tensors
            self.metadata |= metadata
        if expected is not None:
            _check_index(expected, found)
        self.tensors: Mapping[str, Tensor] = found

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor.

        Raises:
            SourceError: the file ends before they do, or cannot be read.
        """
        out = np.empty(tensor.nbytes, np.uint8)
        try:
            with open(tensor.file, "rb", buffering=0) as file:
                file.seek(tensor.offset)
                view, done = memoryview(out.data), 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise SourceError(f"{tensor.file}: ends inside of {tensor.name}; download the file again")
                    done += count
        except OSError as error:
            raise SourceError(f"{tensor.file}: cannot be read ({error.strerror}); check the disk") from None
        return out.view(tensor.dtype).reshape(tensor.shape)


def read_header(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one file, from its header alone.

    Raises:
        SourceError: anything about the header that is not as the format says.
    """
    try:
        size = os.stat(file).st_size
        with open(file, "rb") as handle:
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise SourceError(f"{file}: {size} bytes are no safetensors file; download it again")
            if length > MAX_HEADER or length < 2:
                raise SourceError(f"{file}: is no safetensors file (a header of {length} bytes); check what it is")
            if 8 + length > size:
                raise SourceError(f"{file}: ends inside of its header ({size} bytes); download it again")
            text = handle.read(length)
    except FileNotFoundError:
        raise SourceError(f"{file}: no such file; download it, or check --source") from None
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror})") from None
    header = _parse(text, file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{file}: __metadata__ is no map of strings; download the file again")
    tensors = {name: _entry(name, entry, file, 8 + length) for name, entry in header.items()}
    _check_extent(tensors, file, 8 + length, size)
    return tensors, metadata


def read_index(file: Path) -> dict[str, str]:
    """Which shard holds each tensor, from ``*.safetensors.index.json``.

    Raises:
        SourceError: it cannot be read, or a shard's name leaves the folder.
    """
    try:
        if os.stat(file).st_size > MAX_INDEX:
            raise SourceError(f"{file}: is too large for an index; check what it is")
        shards = _parse(file.read_bytes(), file).get("weight_map")
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise SourceError(f"{file}: has no weight_map of names; download it again")
    for shard in set(shards.values()):
        if not shard or shard in (".", "..") or any(mark in shard for mark in ("/", "\\", "\0")):
            raise SourceError(f"{file}: the shard {shard!r} is not in this folder; do not use this download")
    return shards


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file}: its header is damaged ({error}); download the file again") from None
    if not isinstance(header, dict):
        raise SourceError(f"{file}: its header is no JSON object; download the file again")
    return header


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(name: str, entry: Any, file: Path, start: int) -> Tensor:
    def damaged(what: str) -> SourceError:
        return SourceError(f"{file}: {name!r} {what}; download the file again")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise damaged(f"has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > 32 or not all(map(_is_count, shape)):
        raise damaged(f"has no usable shape ({str(shape)[:60]})")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise damaged(f"has no usable data_offsets ({str(offsets)[:60]})")
    tensor = Tensor(name, tuple(shape), DTYPES[dtype], file, start + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise damaged(f"has {offsets[1] - offsets[0]} bytes where {dtype} {shape} needs {tensor.nbytes}")
    return tensor


def _check_extent(tensors: dict[str, Tensor], file: Path, start: int, size: int) -> None:
    """The tensors follow one another without a gap or an overlap, to the end of the file."""
    end, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            what = "overlaps" if tensor.offset < end else "leaves a gap after"
            raise SourceError(f"{file}: {tensor.name!r} {what} {before}; download the file again")
        end, before = tensor.offset + tensor.nbytes, repr(tensor.name)
    if end > size:
        raise SourceError(f"{file}: is truncated, {size} bytes of {end}; download it again")
    if end < size:
        raise SourceError(f"{file}: has {size - end} bytes that belong to no tensor; download it again")


def _check_index(expected: dict[str, str], tensors: dict[str, Tensor]) -> None:
    faults = [f"{name}: the index puts it in {shard}" for name, shard in expected.items() if name not in tensors]
    faults += [
        f"{name}: is in {tensor.file.name}, the index says {expected.get(name, 'nothing of it')}"
        for name, tensor in tensors.items()
        if expected.get(name) != tensor.file.name
    ]
    if faults:
        folder = next(iter(tensors.values())).file.parent if tensors else "the folder"
        raise SourceError(
            f"{folder}: the shards are not those of the index; download them again", tuple(sorted(faults))
        )
