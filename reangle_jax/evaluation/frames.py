"""Frames of what a manifest names: a video file, a folder of frames, or an .npz with ``frames``."""

import contextlib
import zipfile
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from reangle_jax.arrays import Picture
from reangle_jax.data import files
from reangle_jax.data.sources import open_source
from reangle_jax.data.video import fit, iterate_frames
from reangle_jax.errors import InputError

ARCHIVE = ".npz"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def promised(path: Path) -> int | None:
    """How many frames a file says that it has, by its header alone; None where it does not say.

    Raises:
        InputError: it is no video.
    """
    if path.suffix != ARCHIVE:
        source = open_source(path)
        source.frames.close()
        return source.count or None
    try:
        with zipfile.ZipFile(path) as archive, archive.open("frames.npy") as array:
            shape, _, kind = _HEADERS[np.lib.format.read_magic(array)](array)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(_no_archive(path, f"({' '.join(str(error).split())})")) from None
    _check(path, shape, kind)
    return shape[0]


def iterate(path: Path) -> Generator[Picture]:
    """Every frame, RGB, uint8.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix != ARCHIVE:
        yield from iterate_frames(path)
        return
    try:
        frames = files.load_npz(path)["frames"]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(_no_archive(path, f"({' '.join(str(error).split())})")) from None
    _check(path, frames.shape, frames.dtype)
    yield from frames


def read(path: Path) -> UInt8[np.ndarray, "T H W 3"]:
    """All frames.

    Raises:
        InputError: it cannot be read.
    """
    return np.stack(list(iterate(path)))


def read_at(
    path: Path, indices: Sequence[int], height: int, width: int
) -> tuple[UInt8[np.ndarray, "T {height} {width} 3"], tuple[int, int]]:
    """The frames of those indices, in their order, resized to cover height x width, their middle kept.

    Beside them their own rows and columns.

    Raises:
        InputError: it cannot be read, or an index is past its end.
    """
    wanted, found, index, size = set(indices), {}, -1, (0, 0)
    with contextlib.closing(iterate(path)) as frames:
        for index, frame in enumerate(frames):
            if index in wanted:
                size = frame.shape[:2]
                found[index] = np.ascontiguousarray(fit(frame, height, width))
            if len(found) == len(wanted):
                break
        else:
            raise InputError(past_the_end(path, max(wanted), index + 1))
    return np.stack([found[index] for index in indices]), size


def past_the_end(path: Path, index: int, count: int) -> str:
    """The line about an index that is too large."""
    return f"frame {index} is asked for, and {path} has {count} (0 to {count - 1}): mend the output's frames"


def _check(path: Path, shape: tuple[int, ...], kind: np.dtype) -> None:
    if kind != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise InputError(_no_archive(path, f"(they are {kind} {list(shape)})"))


def _no_archive(path: Path, why: str) -> str:
    mend = f"save them by numpy.savez_compressed({path.name!r}, frames=...)"
    return f"{path} has no frames, uint8 [T, H, W, 3] {why}: {mend}"
