"""A depth map for every frame, given by the user as a .npy or .npz."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from reangle_jax.errors import InputError


def read_depth(path: str | os.PathLike[str], *, shape: tuple[int, int, int], kind: str) -> Float[np.ndarray, "T H W"]:
    """Reads and checks a depth file.

    Args:
        path: a .npy, or an .npz with one array or one named ``depth``.
        shape: the T, H, W that it must have: those of the frames after choosing, resizing and cropping.
        kind: ``inverse`` or ``metric``.

    Returns:
        float32 [T, H, W], of the kind that was given.

    Raises:
        InputError: it cannot be read, has another shape, holds what is not a finite number, is constant, or cannot be
            the depth of anything.
    """
    name = f"config.depth: {path}"
    array = _load(Path(path), name)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {array.dtype}: it must hold numbers")
    if array.shape != shape:
        raise InputError(
            f"{name} has the shape {array.shape}, but {shape} is needed: one map for each of config.num_frames frames, "
            f"each of config.height x config.width"
        )
    depth = array.astype(np.float32)
    bad = ~np.isfinite(depth)
    if bad.any():
        frame = int(np.argwhere(bad)[0][0])
        raise InputError(
            f"{name} holds {int(bad.sum())} values that are NaN or infinite, first in frame {frame}: fill them"
        )
    if depth.min() == depth.max():
        raise InputError(f"{name} is constant ({depth.min():g}): without depth nothing can be warped")
    if kind == "metric" and depth.min() <= 0:
        raise InputError(
            f"{name} holds {depth.min():g}, but config.depth_kind=metric needs distances above 0: is it inverse depth?"
        )
    if kind == "inverse" and depth.max() <= 0:
        raise InputError(
            f"{name} has nothing above 0, but config.depth_kind=inverse means larger is nearer: check its sign"
        )
    return depth


def _load(path: Path, name: str) -> np.ndarray:
    try:
        with path.open("rb") as file:  # NumPy would leave it open when the archive is broken
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            key = "depth" if "depth" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None
            if key is None:
                raise InputError(
                    f"{name} holds {', '.join(loaded.files) or 'nothing'}: name the array of T,H,W `depth`"
                )
            return loaded[key]
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        words = " ".join(str(error).split())
        raise InputError(f"{name} is not a .npy or .npz that NumPy can read ({words})") from None
