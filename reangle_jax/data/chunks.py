"""How an array is cut into chunks on the disk, and brought into their order in memory."""

import math

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
