"""Float weights on a disk as int8 kernels with their scales, quantised a kernel at a time while they are read."""

from collections.abc import Mapping

import numpy as np

from reangle_jax.data.weights_folder import Stored
from reangle_jax.nn.quantised import SCALE, quantise


def quantised(stored: Mapping[str, Stored], wanted: Mapping[str, np.dtype]) -> dict[str, Stored]:
    """What is stored, by path, as a model wants it: floats that are wanted in int8 come so, with their scales."""
    found = dict(stored)
    for path, array in stored.items():
        if wanted.get(path) == np.int8 and array.dtype != np.int8:
            kernels = _Kernels(array)
            found[path] = Stored(array.shape, np.dtype(np.int8), kernels.read)
            scales = (*array.shape[:-2], array.shape[-1])
            found[f"{path.rpartition('.')[0]}.{SCALE}"] = Stored(scales, np.dtype(np.float32), kernels.read_scales)
    return found


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[slice]:
    """An index of slices without steps, `()` being all, with its numbers."""
    return [
        slice(*part.indices(size)[:2]) for part, size in zip(index or (slice(None),) * len(shape), shape, strict=True)
    ]


class _Kernels:
    """A stack of float kernels [..., in, out]; each is read once for its integers and its scales, in either order."""

    def __init__(self, stored: Stored):
        self._stored = stored
        self._scales = np.full((*stored.shape[:-2], stored.shape[-1]), np.nan, np.float32)

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        *stack, rows, columns = _bounds(index, self._stored.shape)
        result = np.empty([part.stop - part.start for part in (*stack, rows, columns)], np.int8)
        for layer in np.ndindex(*result.shape[:-2]):
            place = tuple(part.start + k for part, k in zip(stack, layer, strict=True))
            # The scale is of all rows, whichever are wanted.
            values = self._stored.read((*place, slice(None), columns))
            steps, self._scales[(*place, columns)] = quantise(values.astype(np.float32))
            result[layer] = steps[rows]
        return result

    def read_scales(self, index: tuple[slice, ...]) -> np.ndarray:
        *stack, columns = _bounds(index, self._scales.shape)
        if np.isnan(self._scales[(*stack, columns)]).any():
            self.read((*stack, slice(0, 0), columns))
        return self._scales[(*stack, columns)]
