"""What every kind of source offers: named tensors, each read on its own, and the files behind them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies.

    Attributes:
        name: as published.
        shape: as published.
        dtype: of the values, little-endian.
        file: that holds it.
        offset: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        count = 1
        for size in self.shape:  # Python's integers: a product of hostile sizes must not wrap
            count *= size
        return count * self.dtype.itemsize


@runtime_checkable
class Source(Protocol):
    """A checkpoint whose header was read and found sound."""

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor, in memory of their own."""
        ...
