"""Arrays as Orbax keeps them without OCDBT: a folder with ``.zarray`` and one uncompressed file a chunk (Zarr 2).

A chunk never spans two entries of a stack, so that a layer can be written as soon as it is read.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

CHUNK_BYTES = 16 << 20  # at most, so that a process that needs a shard of a layer reads little else
_BLOCK = 256  # a transposition goes block by block: whole columns at once miss the cache on every value
_MOVED_AS = {1: np.uint8, 2: np.uint16, 4: np.int32}  # what OpenCV's transposition, which is vectorised, takes


def chunk_shape(shape: tuple[int, ...], depth: int, itemsize: int) -> tuple[int, ...]:
    """The chunks of an array whose first `depth` axes are stacked; every axis is divided evenly.

    The largest axis that can be divided is, by its smallest factor, until a chunk is small enough.
    """
    tail = list(shape[depth:])
    while math.prod(tail) * itemsize > CHUNK_BYTES:
        for axis in sorted(range(len(tail)), key=lambda axis: -tail[axis]):
            factor = next((f for f in (2, 3, 5, 7, 11, 13) if tail[axis] % f == 0), None)
            if factor:
                tail[axis] //= factor
                break
        else:
            break
    return (*((1,) * depth), *tail)


def create(folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype) -> None:
    """Makes the folder of an array and describes it; nothing of the array is written."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {
        "chunks": list(chunks) if shape else [],
        "compressor": None,
        "dimension_separator": ".",
        "dtype": "bfloat16" if dtype.name == "bfloat16" else dtype.newbyteorder("<").str,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(shape),
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps(header), encoding="utf-8")


def chunks_of(piece: np.ndarray, index: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """File name and contiguous values of every chunk of one entry of the stack.

    Args:
        piece: the entry, in any memory order.
        index: its place in the stack.
        chunks: see `chunk_shape`.
    """
    tail = chunks[len(index) :]
    for cell in np.ndindex(*(size // step for size, step in zip(piece.shape, tail, strict=True))):
        part = piece[tuple(slice(i * step, (i + 1) * step) for i, step in zip(cell, tail, strict=True))]
        yield ".".join(map(str, (*index, *cell))) or "0", contiguous(part)


def contiguous(x: np.ndarray) -> np.ndarray:
    """The same values in C order."""
    if x.flags.c_contiguous:
        return x
    if x.ndim != 2 or x.nbytes < 1 << 16 or x.dtype.itemsize not in _MOVED_AS or x.strides[0] != x.dtype.itemsize:
        return np.ascontiguousarray(x)
    out = np.empty(x.shape, x.dtype)
    source, target = x.view(_MOVED_AS[x.dtype.itemsize]), out.view(_MOVED_AS[x.dtype.itemsize])
    for i in range(0, x.shape[0], _BLOCK):
        for j in range(0, x.shape[1], _BLOCK):
            block = source[i : i + _BLOCK, j : j + _BLOCK]
            target[i : i + _BLOCK, j : j + _BLOCK] = cv2.transpose(np.ascontiguousarray(block.T))
    return out
