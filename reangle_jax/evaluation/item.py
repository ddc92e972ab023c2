"""One output and what it is compared with, read when it is asked for; all at the output's size."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from reangle_jax.cameras import placing, registry
from reangle_jax.errors import InputError, about
from reangle_jax.evaluation import frames as files
from reangle_jax.evaluation.manifest import Output
from reangle_jax.scoring.inputs import Note

_TRIMMED = 0.02  # a share of the picture whose loss is worth a note


class Item:
    """An output at work. What is read is kept as long as this object is.

    Args:
        output: which.
        note: takes lines that the user should know.
    """

    def __init__(self, output: Output, note: Note):
        self.output, self.note = output, note

    @functools.cached_property
    def frames(self) -> UInt8[np.ndarray, "T H W 3"]:
        """The output itself."""
        with about(self.output.where):
            return files.read(self.output.file)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.frames.shape[1:3]

    @functools.cached_property
    def moments(self) -> list[int]:
        """The input's frame for each frame."""
        with about(self.output.where):
            return self.output.moments(len(self.frames))

    @functools.cached_property
    def source(self) -> UInt8[np.ndarray, "T H W 3"]:
        """The input's frames of the same moments."""
        return self._at_moments(self.output.input)

    @functools.cached_property
    def reference(self) -> UInt8[np.ndarray, "T H W 3"]:
        """What the frames should look like."""
        assert self.output.reference is not None
        return self._at_moments(self.output.reference)

    @functools.cached_property
    def cameras(self) -> tuple[Float[np.ndarray, "T 3 3"], Float[np.ndarray, "T 4 4"]]:
        """Intrinsics for the output's size, and poses (camera to world), of the view."""
        assert self.output.cameras is not None
        return self._cameras(self.output.cameras)

    @functools.cached_property
    def input_cameras(self) -> tuple[Float[np.ndarray, "T 3 3"], Float[np.ndarray, "T 4 4"]]:
        """The same of `source`."""
        assert self.output.input_cameras is not None
        return self._cameras(self.output.input_cameras)

    def _at_moments(self, path: Path) -> np.ndarray:
        height, width = self.size
        with about(self.output.where):
            found, (rows, columns) = files.read_at(path, self.moments, height, width)
        if columns < width or rows < height:
            self.note(f"{path} is {columns}x{rows}: enlarged to the {width}x{height} of {self.output.file}")
        shown = min(width / columns, height / rows) / max(width / columns, height / rows)
        if 1 - shown > _TRIMMED:
            self.note(
                f"{path} is {columns}x{rows}: {100 * (1 - shown):.0f} % of it is cropped away for the {width}x{height} "
                f"of {self.output.file}, the middle is compared"
            )
        return found

    def _cameras(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        with about(self.output.where):
            K, sizes, poses = read_cameras(path, self.moments)
        return placing.fitted(K, sizes, *self.size), poses


def read_cameras(path: Path, moments: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A file's cameras of those moments, or its one camera for each: K, sizes (pixels) and poses (camera to world).

    Raises:
        InputError: it says less, or has too few.
    """
    file = registry.read(path)
    if file.count is None or file.K is None or file.sizes is None or file.in_pivots:
        raise InputError(
            f"{path}: {file.format} does not say each frame's camera with its intrinsics: write it as "
            f"cameras.json (python -m reangle_jax.cameras {path} --out cameras.json)"
        )
    chosen = [0] * len(moments) if file.count == 1 else list(moments)
    if max(chosen) >= file.count:
        raise InputError(
            f"{path}: holds {file.count} cameras, and that of frame {max(chosen)} is asked for: "
            "give one for each of the input's frames, or one for all"
        )
    return file.K[chosen], file.sizes[chosen], file.poses(file.count, 1.0)[chosen]
