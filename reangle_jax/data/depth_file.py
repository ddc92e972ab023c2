"""Depth given by the user as a .npy or .npz: read, and brought to the frames that were taken of the clip."""

import os
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, Real

from reangle_jax.data import files
from reangle_jax.data.video import covering_size, crop_centre
from reangle_jax.errors import InputError

_ALIKE = 0.02  # by how much proportions may differ: networks round sizes to multiples of 14


def load_depth(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a .npy, which stays on disk until it is indexed, or an .npz with one array or one named ``depth``.

    What it holds is for `geometry.depth.scene_depth` to check.

    Raises:
        InputError: there is no such file, or NumPy cannot read it without unpickling, or it is unclear which array.
    """
    try:
        with Path(path).open("rb") as file:  # NumPy would leave it open when the archive is broken
            if file.read(6) == b"\x93NUMPY":
                return np.load(path, mmap_mode="r", allow_pickle=False)
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            key = "depth" if "depth" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None
            if key is None:
                raise InputError(
                    f"{path} holds {', '.join(loaded.files) or 'nothing'}: name the array of T,H,W `depth`"
                )
            return loaded[key]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        words = f"is not a .npy or .npz that NumPy can read ({' '.join(str(error).split())})"
        raise InputError(f"{path} {files.stand_in(path) or words}") from None


def fit_depth(
    depth: np.ndarray,
    shape: tuple[int, int, int],
    indices: Int[np.ndarray, " T"],
    source_size: tuple[int, int],
    pixel_aspect: float = 1.0,
) -> np.ndarray:
    """Cuts, resizes and crops depth as the frames were, to [T, H, W]; what is no depth is left to `scene_depth`.

    Args:
        depth: [t, h, w], of the T frames that were taken or of all frames of the source (more than ``max(indices)``);
            h x w is the size of the frames that were taken, or any in the source's proportions.
        shape: T, H, W of the frames that were taken.
        indices: which frame of the source each of them is.
        source_size: rows and columns of the source's frames.
        pixel_aspect: a source pixel's width over its height.

    Raises:
        InputError: neither length nor size fits.
    """
    if depth.ndim != 3 or 0 in depth.shape or not np.issubdtype(depth.dtype, np.number) or np.iscomplexobj(depth):
        return depth
    (count, height, width), (rows, columns) = shape, (int(source_size[0]), int(source_size[1]))
    # Either the source's own proportions, or those in which it is shown.
    ratios = columns / rows, columns * pixel_aspect / rows
    alike = any(abs(depth.shape[2] / depth.shape[1] / ratio - 1) < _ALIKE for ratio in ratios)
    whole = len(depth) != count and len(depth) > max(indices)
    if (len(depth) != count and not whole) or (depth.shape[1:] != (height, width) and not alike):
        raise InputError(
            f"its shape is {depth.shape}, the video's is {tuple(shape)}; give one depth map for each of these "
            f"{count} frames, or for each of the source's (frame {max(indices)} is needed), at {height}x{width} or in "
            f"the source's proportions of {rows}x{columns}"
        )
    taken = indices if whole else np.arange(count)
    if depth.shape[1:] == (height, width):
        return depth[taken]
    size = covering_size(rows, columns, height, width, pixel_aspect)
    # One by one: a whole clip in 4K may be larger than the memory.
    return np.stack([crop_centre(_resize(depth[index].astype(np.float32), *size), height, width) for index in taken])


def _resize(depth: Float[np.ndarray, "h w"], rows: int, columns: int) -> Real[np.ndarray, "{rows} {columns}"]:
    """Resized so that zeros (nothing measured, or the sky) stay zeros and lend nothing to what is beside them.

    Shrinking picks pixels: an average across an edge is a depth at which nothing lies, and would tear loose as a point.
    """
    if rows <= depth.shape[0] and columns <= depth.shape[1]:
        return cv2.resize(depth, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)
    known = (depth != 0).astype(np.float32)
    weight = cv2.resize(known, (columns, rows), interpolation=cv2.INTER_LINEAR)
    mean = cv2.resize(depth, (columns, rows), interpolation=cv2.INTER_LINEAR) / np.maximum(weight, 1e-6)
    return np.where(weight >= 0.5, mean, np.float32(0))
