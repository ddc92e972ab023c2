"""Pickles of NumPy arrays in nested dictionaries, by an unpickler that knows nothing else: arrays, never code."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.data import files
from reangle_jax.data.safetensors import DTYPES, Tensor
from reangle_jax.errors import InputError

MAX_SIZE = 1 << 30  # bytes of the file, which is held in memory whole

# All that a pickle of arrays calls, of protocols up to 4 and of 5. NumPy has moved both.
_PLAIN, _BUFFERED = (np.zeros(1).__reduce_ex__(protocol)[0] for protocol in (4, 5))
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _PLAIN,
    ("numpy._core.multiarray", "_reconstruct"): _PLAIN,
    ("numpy.core.numeric", "_frombuffer"): _BUFFERED,
    ("numpy._core.numeric", "_frombuffer"): _BUFFERED,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class PickleSource:
    """A file of ``{name: {name: array}}``, as flax's first checkpoints were kept; names are joined by slashes.

    Raises:
        InputError: it holds anything but arrays and dictionaries, or is damaged.
    """

    def __init__(self, file: Path):
        self.files = (file,)
        self._arrays = dict(_flat(_load(file), file))
        if not self._arrays:
            raise InputError(f"{file}: holds no named arrays; give the file of the model's weights")
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(name, array.shape, array.dtype, file, 0) for name, array in self._arrays.items()
        }

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor."""
        return np.array(self._arrays[tensor.name])


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def _load(file: Path) -> Any:
    if words := files.stand_in(file):
        raise InputError(f"{file}: {words}")
    try:
        if file.stat().st_size > MAX_SIZE:
            raise InputError(f"{file}: is larger than {MAX_SIZE >> 30} GiB, which no pickle read here is; check it")
        with file.open("rb") as handle:
            return _Unpickler(handle).load()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except InputError:
        raise
    except Exception as error:  # a hostile pickle can make the loader raise anything
        text = " ".join(str(error).split())
        raise InputError(
            f"{file}: is no pickle of arrays alone ({type(error).__name__}: {text[:160]}); "
            "do not use this file, or download it again"
        ) from None


def _flat(value: Any, file: Path, name: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict) and depth < 16:
        for key, inner in value.items():
            yield from _flat(inner, file, f"{name}/{key}" if name else str(key), depth + 1)
        return
    if not isinstance(value, np.ndarray) or value.dtype not in DTYPES.values():
        kind = f"{type(value).__name__}{f' of {value.dtype}' if isinstance(value, np.ndarray) else ''}"
        raise InputError(f"{file}: {name or 'the whole'} is a {kind}, and arrays of numbers are read alone")
    yield name, value
