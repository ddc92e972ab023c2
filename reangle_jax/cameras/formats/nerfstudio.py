"""nerfstudio's transforms.json, which Instant-NGP, D-NeRF and many capture apps write too.

Facts from nerfstudio's documentation and data parser: ``transform_matrix`` is camera to world with OpenGL's axes (x
right, y up, z backward); intrinsics stand at the top, where they count for all frames, or in every frame; frames are
taken in the order of their files' names; ``applied_transform`` and ``applied_scale`` say how the world was changed
when it was saved.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.cameras.file import CameraFile, has_frames, intrinsics, listed, number, undistorted
from reangle_jax.data.paths import natural
from reangle_jax.errors import InputError
from reangle_jax.geometry.cameras import check_intrinsics, check_rigid, read_matrix

NAME = "nerfstudio"
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_STRAIGHT = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")  # pinholes where no coefficient is set
_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def accepts(content: Any) -> bool:
    """Whether JSON is of this format."""
    return has_frames(content, "transform_matrix")


def read(path: Path, content: Any) -> CameraFile:
    """Reads it.

    Raises:
        InputError: something in it is missing, no rotation, or a lens that is no pinhole.
    """
    frames = content["frames"]
    for index, frame in enumerate(frames):
        if not isinstance(frame, dict) or "transform_matrix" not in frame:
            raise InputError(f"{path}: frame {index}: transform_matrix is missing; every frame needs one (4x4)")
    if all(isinstance(frame.get("file_path"), str) for frame in frames):
        frames = sorted(frames, key=lambda frame: natural(frame["file_path"]))
    named = [(f"{path}: {_called(index, frame)}", frame) for index, frame in enumerate(frames)]
    poses = [_rigid(f"{where}: transform_matrix", frame["transform_matrix"]) @ _TO_OPENCV for where, frame in named]
    poses = _original_world(path, content, np.stack(poses))
    lenses = [_lens(where, content, frame) for where, frame in named]
    known = [lens for lens in lenses if lens is not None]
    if known and len(known) < len(lenses):
        raise InputError(
            f"{path}: only {len(known)} of {len(lenses)} frames have a focal length; give fl_x to all or none"
        )
    K, sizes = (np.stack(part) for part in zip(*known, strict=True)) if known else (None, None)
    return listed(path, NAME, "OpenGL's axes (x right, y up, z backward); camera to world", poses, K, sizes)


def _called(index: int, frame: dict[str, Any]) -> str:
    name = frame.get("file_path")
    return f"frame {name}" if isinstance(name, str) else f"frame {index}"


def _rigid(where: str, value: Any) -> np.ndarray:
    """A rigid motion, of whose matrix the last row may be missing."""
    value = [*value, [0, 0, 0, 1]] if isinstance(value, list) and len(value) == 3 else value
    motion = read_matrix(where, value, 4)
    check_rigid(where, motion)
    return motion


def _original_world(path: Path, content: dict[str, Any], poses: np.ndarray) -> np.ndarray:
    """Undoes what was done to the world when the file was saved."""
    if content.get("applied_transform") is not None:
        poses = np.linalg.inv(_rigid(f"{path}: applied_transform", content["applied_transform"])) @ poses
    scale = number(f"{path}: applied_scale", content.get("applied_scale", 1.0))
    if scale <= 0:
        raise InputError(f"{path}: applied_scale is {scale:g}; it must be above 0")
    poses = poses.copy()
    poses[:, :3, 3] /= scale
    return poses


def _lens(where: str, content: dict[str, Any], frame: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """K and size of a frame; None where nothing is said of them."""

    def given(key: str) -> float | None:
        value = content.get(key, frame.get(key))  # at the top it counts for all frames
        return None if value is None else number(f"{where}: {key}", value)

    model = content.get("camera_model", frame.get("camera_model", "PINHOLE"))
    if model not in _STRAIGHT or content.get("is_fisheye", frame.get("is_fisheye")):
        model = "fisheye" if model in _STRAIGHT else model
        raise InputError(f"{where}: camera_model {model} is no pinhole: undistort the pictures and their cameras first")
    values = content.get("distortion_params", frame.get("distortion_params"))
    values = dict(zip(_DISTORTION, values, strict=False)) if isinstance(values, list) else {}
    values |= {key: content.get(key, frame.get(key)) for key in _DISTORTION if key in content or key in frame}
    bent = {key: number(f"{where}: {key}", value or 0.0) for key, value in values.items()}
    undistorted(where, bent, "colmap image_undistorter")
    width, height, fx, angle = given("w"), given("h"), given("fl_x"), given("camera_angle_x")
    if fx is None and angle is None:
        return None
    if width is None or height is None:
        raise InputError(
            f"{where}: w and h are missing; give the pictures' size in pixels, at the top or in every frame"
        )
    if fx is None:
        fx = 0.5 * width / math.tan(0.5 * (angle or 0.0)) if angle and 0 < angle < math.pi else 0.0
    fy, cx, cy = given("fl_y"), given("cx"), given("cy")
    K = intrinsics(fx, fx if fy is None else fy, width / 2 if cx is None else cx, height / 2 if cy is None else cy)
    check_intrinsics(f"{where}: fl_x, fl_y", K)
    return K, np.array([width, height], np.float64)
