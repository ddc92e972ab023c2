"""Pinhole cameras of a video, and their file ``cameras.json``.

OpenCV convention: x right, y down, z forward; matrices map camera to world; a pixel's centre lies at +0.5.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reangle_jax.arrays import AnyArray
from reangle_jax.errors import InputError
from reangle_jax.nn.products import einsum

# method.md: 260 px at 480x720 in the released scripts.
_REFERENCE_FOCAL, _REFERENCE_SIDE = 260.0, 480.0
LARGEST = 1e9  # of any number of a camera: far above what is real, and float32 holds its cube
# Files written with six decimals still pass; a matrix with a scale or a shear does not.
_ROTATION_TOLERANCE = 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """The cameras of T frames; a pytree: intrinsics in pixels, and rigid motions, translation in scene units."""

    K: Float[AnyArray, "*batch T 3 3"]
    camera_to_world: Float[AnyArray, "*batch T 4 4"]

    @property
    def num_frames(self) -> int:
        """T, the number of frames."""
        return self.K.shape[-3]


def default_intrinsics(height: int, width: int, focal: float | None = None) -> Float[np.ndarray, "3 3"]:
    """Intrinsics, float32, for a video whose camera is unknown; sizes and focal length in pixels.

    The released scripts use a focal length of 260 px at 480x720 (method.md). The default keeps that in proportion to
    the *shorter* side: a smaller copy of the video keeps its field of view, a clip held upright gets the focal length
    of the same clip held level, and so does a square cut out of its middle. The principal point is the image's centre.

    Raises:
        InputError: the focal length is not a positive number.
    """
    if focal is None:
        focal = _REFERENCE_FOCAL / _REFERENCE_SIDE * min(height, width)
    if not (np.isfinite(focal) and focal > 0):
        raise InputError(f"focal: {focal} is not a focal length; give a number of pixels above 0, or auto")
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)


def identity_cameras(K: Float[AnyArray, "3 3"], num_frames: int) -> Cameras:
    """The camera that stands still at the origin for all frames: the source camera of a video."""
    K = jnp.asarray(K, jnp.float32)
    return Cameras(
        K=jnp.broadcast_to(K[None], (num_frames, 3, 3)),
        camera_to_world=jnp.broadcast_to(jnp.eye(4, dtype=jnp.float32)[None], (num_frames, 4, 4)),
    )


def rigid_inverse(motion: Float[AnyArray, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """The inverse of rigid motions, without a general matrix inverse and its rounding."""
    rotation = jnp.swapaxes(motion[..., :3, :3], -1, -2)
    translation = -einsum("...ij,...j->...i", rotation, motion[..., :3, 3])
    top = jnp.concatenate([rotation, translation[..., None]], axis=-1)
    return jnp.concatenate([top, motion[..., 3:, :]], axis=-2)


def source_to_target(source: Cameras, target: Cameras) -> Float[Array, "*batch T 4 4"]:
    """The motion that takes points of each source camera's frame into the target camera's."""
    to_target = rigid_inverse(target.camera_to_world)
    return einsum("...ij,...jk->...ik", to_target, source.camera_to_world)


def save_cameras(
    path: str | os.PathLike, cameras: Cameras, width: int, height: int, pivot_depth: float | None = None
) -> None:
    """Writes ``cameras.json``; `data.files.atomic_path` gives a path at which it appears whole or not at all.

    Width and height are the pictures', pixels. `pivot_depth`, the distance from the source's first camera to the point
    that views turn about, is kept beside.
    """
    K = np.asarray(cameras.K, np.float64).tolist()
    poses = np.asarray(cameras.camera_to_world, np.float64).tolist()
    frames = [{"K": k, "camera_to_world": pose} for k, pose in zip(K, poses, strict=True)]
    content = {"width": int(width), "height": int(height), "frames": frames}
    content |= {} if pivot_depth is None else {"pivot_depth": float(pivot_depth)}
    Path(path).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def load_pivot_depth(path: str | os.PathLike) -> float | None:
    """What `save_cameras` kept of the pivot in a file that it wrote; None: nothing."""
    return json.loads(Path(path).read_text(encoding="utf-8-sig")).get("pivot_depth")


def load_cameras(path: str | os.PathLike, expect_frames: int | None = None) -> tuple[Cameras, int, int]:
    """Reads and checks ``cameras.json``: cameras, width and height.

    Raises:
        InputError: the file is missing, is no JSON, or its contents describe no cameras, or not `expect_frames` of
            them; the line names the file, the place in it and the mend.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a cameras.json") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); write it as docs describe cameras.json") from error
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or not content["frames"]:
        raise InputError(
            f'{path}: no cameras in it; it must be {{"width", "height", "frames": [{{"K", "camera_to_world"}}, ...]}}'
        )
    width, height = (_size(path, content, key) for key in ("width", "height"))
    frames = content["frames"]
    if expect_frames is not None and len(frames) != expect_frames:
        raise InputError(f"{path}: holds {len(frames)} frames, the video {expect_frames}; give one camera a frame")
    K = np.stack([_matrix(f"{path}: frame {index}", frame, "K", 3) for index, frame in enumerate(frames)])
    poses = np.stack(
        [_matrix(f"{path}: frame {index}", frame, "camera_to_world", 4) for index, frame in enumerate(frames)]
    )
    for index in range(len(frames)):
        check_intrinsics(f"{path}: frame {index}: K", K[index])
        check_rigid(f"{path}: frame {index}: camera_to_world", poses[index])
    return Cameras(K=jnp.asarray(K, jnp.float32), camera_to_world=jnp.asarray(poses, jnp.float32)), width, height


def _size(path: Any, content: dict, key: str) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        shown = f"{value!r:.40}"  # an integer in JSON may have thousands of digits
        raise InputError(f"{path}: {key} is {shown}; it must be a whole number of pixels above 0")
    return value


def _matrix(where: str, frame: Any, key: str, size: int) -> np.ndarray:
    value = frame.get(key) if isinstance(frame, dict) else None
    if value is None:
        raise InputError(f"{where}: {key} is missing; every frame needs K (3x3) and camera_to_world (4x4)")
    return read_matrix(f"{where}: {key}", value, size)


def read_matrix(where: str, value: Any, size: int) -> Float[np.ndarray, "{size} {size}"]:
    """A matrix out of lists of numbers, float64.

    Raises:
        InputError: it is none of that size, or not finite; the line begins with `where`.
    """
    try:
        matrix = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where} is not a matrix of numbers; give {size} rows of {size} numbers") from error
    if matrix.shape != (size, size):
        raise InputError(f"{where} has the shape {matrix.shape}; give {size} rows of {size} numbers")
    if not np.isfinite(matrix).all():
        raise InputError(f"{where} holds a number that is not finite; give finite numbers only")
    if np.abs(matrix).max() > LARGEST:
        raise InputError(f"{where} holds {np.abs(matrix).max():.3g}; give numbers of at most {LARGEST:.0e}")
    return matrix


def check_intrinsics(where: str, K: Float[np.ndarray, "3 3"]) -> None:
    """Refuses what is no pinhole camera's matrix, by an `InputError` that begins with `where`."""
    if not all(1 / LARGEST <= focal <= LARGEST for focal in (K[0, 0], K[1, 1])):
        words = f"both must be above 0 pixels, from {1 / LARGEST:.0e} to {LARGEST:.0e}"
        raise InputError(f"{where} has the focal lengths {K[0, 0]:g}, {K[1, 1]:g}; {words}")
    if not np.allclose([K[1, 0], *K[2]], [0, 0, 0, 1], atol=1e-6):
        raise InputError(f"{where} is no pinhole matrix; its form is [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]")


def check_rigid(where: str, pose: Float[np.ndarray, "4 4"]) -> None:
    """Refuses what is no rotation and translation, by an `InputError` that begins with `where`."""
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise InputError(f"{where} ends in the row {pose[3].tolist()}; the last row must be [0, 0, 0, 1]")
    rotation = pose[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > _ROTATION_TOLERANCE:
        raise InputError(
            f"{where} holds no rotation (R R^T is off 1 by {error:.2g}); its columns must be orthogonal unit vectors"
        )
    if np.linalg.det(rotation) < 0:
        raise InputError(f"{where} mirrors the scene (its determinant is -1); use x right, y down, z forward")
