"""Keyframes in JSON: at some frames a motion about the pivot, or a pose; between them the camera is interpolated.

``{"keyframes": {"0": "source", "24": "left:10+up:5", "48": [[1, 0, 0, 0], ...]}, "interpolation": "sphere"}``.

A motion is where that view ends, ``source`` the source camera's place, a matrix camera to world with OpenCV's axes in
units of the pivot's distance, its world the source's first camera. ``sphere`` (the default) interpolates the place
about the pivot (yaw, pitch, distance) and beside it the turn away from the pivot; ``linear`` the position in a line
and the rotation by slerp.
"""

from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.cameras import interpolation
from reangle_jax.cameras.file import CameraFile
from reangle_jax.errors import InputError, about
from reangle_jax.geometry import trajectories
from reangle_jax.geometry.cameras import check_rigid, read_matrix

NAME = "keyframes"
SOURCE = "source"
_HOW = ("sphere", "linear")


def accepts(content: Any) -> bool:
    """Whether JSON is of this format."""
    return isinstance(content, dict) and "keyframes" in content


def read(path: Path, content: Any) -> CameraFile:
    """Reads it.

    Raises:
        InputError: a keyframe is no frame's number, or holds neither a motion nor a pose.
    """
    given = content["keyframes"]
    if not isinstance(given, dict) or not given:
        raise InputError(f'{path}: keyframes is {given!r}; give {{"0": "source", "48": "left:10"}}')
    how = content.get("interpolation", _HOW[0])
    if how not in _HOW:
        raise InputError(f"{path}: interpolation is {how!r}; use {' or '.join(_HOW)}")
    frames = sorted(_frame(path, key) for key in given)
    if frames[0] != 0:
        raise InputError(f"{path}: the first keyframe is {frames[0]}; say where the camera is at frame 0")
    if len(set(frames)) < len(frames):
        raise InputError(f"{path}: a frame has two keyframes; keep one of each")
    at = np.array(frames, np.float64)
    keys = [_key(f"{path}: keyframe {key}", value) for key, value in sorted(given.items(), key=lambda kv: int(kv[0]))]

    def poses(num_frames: int, pivot: float) -> np.ndarray:
        del num_frames
        placed, new = np.stack(keys), np.arange(frames[-1] + 1, dtype=np.float64)
        placed[:, :3, 3] *= pivot
        if how == "linear":
            return interpolation.linear(at, placed, new)
        return interpolation.on_sphere(at, placed, new, pivot)

    with about(str(path)):
        poses(0, 1.0)
    words = f"motions and poses about the pivot, in units of its distance; between them: {how}"
    return CameraFile(path, NAME, words, frames[-1] + 1, poses, about_source=True, in_pivots=True)


def _frame(path: Path, key: str) -> int:
    if not (key.isascii() and key.isdecimal()):
        raise InputError(f"{path}: keyframe {key!r} is no frame's number; count frames from 0")
    if len(key.lstrip("0")) > 4:
        raise InputError(f"{path}: keyframe {key} is beyond all clips; count frames from 0")
    return int(key)


def _key(where: str, value: Any) -> np.ndarray:
    """A keyframe's pose, with the pivot at a distance of 1."""
    if value == SOURCE:
        return np.eye(4)
    if isinstance(value, str):
        with about(where):
            view = trajectories.parse_view(value)
        yaw, pitch, stretch = (view.along(axis) for axis in ("yaw", "pitch", "distance"))
        return trajectories.orbit(yaw, pitch, 1.0 + stretch, 1.0)
    pose = read_matrix(where, value, 4)
    check_rigid(where, pose)
    return pose
