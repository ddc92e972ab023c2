"""What a camera file says, in one convention: OpenCV's axes, camera to world, pixels' centres at +0.5."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from reangle_jax.errors import InputError
from reangle_jax.geometry.cameras import LARGEST


@dataclasses.dataclass(frozen=True)
class CameraFile:
    """What a file says."""

    path: Path  # of the file or folder
    format: str  # its name
    convention: str  # what its numbers are, in words
    count: int | None  # how many cameras it holds; None: as many as are asked for
    # ``(num_frames, pivot)`` to camera to world, ``[num_frames, 4, 4]``, in the file's unit; the pivot's distance is in
    # that unit too. Files with a count give their own number.
    poses: Callable[[int, float], Float[np.ndarray, "_ 4 4"]]
    # Whether the world is the source's first camera, so that `camera_frame` has nothing to move.
    about_source: bool = False
    in_pivots: bool = False  # whether its unit is the pivot's distance, whatever `camera_scale` says
    K: Float[np.ndarray, "_ 3 3"] | None = None  # intrinsics in pixels, ``[count, 3, 3]``; None: it names none
    sizes: Float[np.ndarray, "_ 2"] | None = None  # width and height that they are for, ``[count, 2]``


def listed(
    path: Path,
    name: str,
    convention: str,
    poses: Float[np.ndarray, "n 4 4"],
    K: Float[np.ndarray, "n 3 3"] | None = None,
    sizes: Float[np.ndarray, "n 2"] | None = None,
) -> CameraFile:
    """A file that holds a camera for every frame.

    Raises:
        InputError: the pictures' sizes are not above 0.
    """
    if sizes is not None and not (sizes > 0).all():
        raise InputError(f"{path}: the pictures' size is not above 0; give their width and height in pixels")
    return CameraFile(path, name, convention, len(poses), lambda num_frames, pivot: poses, K=K, sizes=sizes)


def has_frames(content: Any, *keys: str) -> bool:
    """Whether JSON lists ``frames`` some of which have one of the keys."""
    frames = content.get("frames") if isinstance(content, dict) else None
    return isinstance(frames, list) and any(isinstance(f, dict) and not f.keys().isdisjoint(keys) for f in frames)


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    """The matrix K of a pinhole camera."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def number(where: str, value: Any) -> float:
    """A finite number out of JSON or text.

    Raises:
        InputError: it is none, or larger than `LARGEST`; the line begins with `where`.
    """
    try:
        found = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not np.isfinite(found):
        raise InputError(f"{where} is {value!r:.40}; it must be a finite number")
    if abs(found) > LARGEST:
        raise InputError(f"{where} is {found:.3g}; it must be at most {LARGEST:.0e}")
    return found


def undistorted(where: str, coefficients: dict[str, float], mend: str = "colmap image_undistorter") -> None:
    """Refuses a lens that bends lines: what is generated has none.

    Raises:
        InputError: a coefficient is not zero; the line begins with `where`.
    """
    bent = ", ".join(f"{name}={value:g}" for name, value in coefficients.items() if value)
    if bent:
        raise InputError(
            f"{where} has lens distortion ({bent}): undistort the pictures and their cameras first ({mend})"
        )
