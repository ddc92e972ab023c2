"""The safetensors format: read without trust, and written so that bytes depend on content alone.

The whole header is checked before a byte of data is believed. Tensors are read by position, one at a time, into memory
that is freed with the array: pages of a memory-mapped file would count as this process's own. Format:
github.com/huggingface/safetensors.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from reangle_jax.data import files
from reangle_jax.errors import InputError

_BLOCK = 1 << 18  # values that stay in the cache
MAX_HEADER = 100_000_000  # bytes; the format's own limit
# Names in the safetensors format, and NumPy's.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor, called and shaped as published, lies: its little-endian values begin at an offset in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize  # Python's: a product of hostile sizes must not wrap


def read(tensor: Tensor, index: tuple[Any, ...] = ()) -> np.ndarray:
    """The values of one tensor, or what lies at an index of numbers and slices.

    Raises:
        InputError: the file ends before they do, or cannot be read.
    """
    if index and tensor.nbytes:
        return np.array(np.memmap(tensor.file, tensor.dtype, "r", tensor.offset, tensor.shape)[index])
    try:
        out = np.fromfile(tensor.file, np.uint8, tensor.nbytes, offset=tensor.offset)
    except OSError as error:
        raise InputError(f"{tensor.file}: cannot be read ({error.strerror}); check the disk") from None
    if len(out) < tensor.nbytes:
        raise InputError(f"{tensor.file}: ends inside of {tensor.name}; download the file again")
    return out.view(tensor.dtype).reshape(tensor.shape)


def is_finite(values: np.ndarray) -> bool:
    """Whether floats of any width hold no NaN and no infinity.

    Compared as integers, block by block: twenty times as fast as NumPy's test where the type is not its own.
    """
    bits = np.dtype(f"u{values.dtype.itemsize}").type
    infinity = np.full((), np.inf, values.dtype).view(bits)
    flat = values.reshape(-1).view(bits)
    unsigned = bits(np.iinfo(bits).max >> 1)
    blocks = (flat[i : i + _BLOCK] & unsigned for i in range(0, flat.size, _BLOCK))
    return all(block.max() < infinity for block in blocks)


def header(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What stands before the values, which follow in the order of the tensors' dtypes and shapes, without a gap."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def to_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """A whole file. Wide values come first, so that each lies at a multiple of its size; then names in order."""
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    start = header({name: (arrays[name].dtype, arrays[name].shape) for name in names}, metadata)
    return start + b"".join(arrays[name].tobytes() for name in names)


def read_header(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one file, from its header alone.

    Raises:
        InputError: anything about the header that is not as the format says.
    """
    try:
        size = os.stat(file).st_size
        with open(file, "rb") as handle:
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise InputError(f"{file}: {size} bytes are no safetensors file; download it again")
            if length > MAX_HEADER or length < 2:
                words = f"is no safetensors file (a header of {length} bytes); check what it is"
                raise InputError(f"{file}: {files.stand_in(file) or words}")
            if 8 + length > size:
                raise InputError(f"{file}: ends inside of its header ({size} bytes); download it again")
            text = handle.read(length)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; download it, or check --source") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    header = parse(text, file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{file}: __metadata__ is no map of strings; download the file again")
    tensors = {name: _entry(name, entry, file, 8 + length) for name, entry in header.items()}
    _check_extent(tensors, file, 8 + length, size)
    return tensors, metadata


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def parse(text: bytes, file: Path) -> dict[str, Any]:
    """A JSON object without a name twice; anything else is refused."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: its header is damaged ({error}); download the file again") from None
    if not isinstance(header, dict):
        raise InputError(f"{file}: its header is no JSON object; download the file again")
    return header


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _entry(name: str, entry: Any, file: Path, start: int) -> Tensor:
    try:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError("is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"has the unknown dtype {dtype!r}")
        if not isinstance(shape, list) or len(shape) > 32 or not all(map(_is_count, shape)):
            raise ValueError(f"has no usable shape ({str(shape)[:60]})")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
            raise ValueError(f"has no usable data_offsets ({str(offsets)[:60]})")
        tensor = Tensor(name, tuple(shape), DTYPES[dtype], file, start + offsets[0])
        if offsets[1] - offsets[0] != tensor.nbytes:
            raise ValueError(f"has {offsets[1] - offsets[0]} bytes where {dtype} {shape} needs {tensor.nbytes}")
    except ValueError as error:
        raise InputError(f"{file}: {name!r} {error}; download the file again") from None
    return tensor


def _check_extent(tensors: dict[str, Tensor], file: Path, start: int, size: int) -> None:
    """The tensors follow one another without a gap or an overlap, to the end of the file."""
    end, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            what = "overlaps" if tensor.offset < end else "leaves a gap after"
            raise InputError(f"{file}: {tensor.name!r} {what} {before}; download the file again")
        end, before = tensor.offset + tensor.nbytes, repr(tensor.name)
    if end > size:
        raise InputError(f"{file}: is truncated, {size} bytes of {end}; download it again")
    if end < size:
        raise InputError(f"{file}: has {size - end} bytes that belong to no tensor; download it again")
