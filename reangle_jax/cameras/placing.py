"""From what a file says to the cameras of a run: whose frame, which unit, how many, and the intrinsics."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from reangle_jax.cameras import interpolation
from reangle_jax.cameras.file import CameraFile
from reangle_jax.errors import InputError
from reangle_jax.geometry.cameras import LARGEST, Cameras, default_intrinsics

FRAMES = ("first", "given")
UNITS = ("scene", "pivot")
_SAME = 1e-3  # by how much rotations, focal lengths and, in pivots' distances, places may differ and be the same


@dataclasses.dataclass(frozen=True)
class Wishes:
    """How camera files are to be taken.

    Attributes:
        frame: ``first``: a file's first camera is the source's first; ``given``: its world is that of the source's
            file, or the source's first camera.
        scale: what one unit of a file is: ``scene`` (a scene unit), ``pivot`` (the pivot's distance), or scene units.
        resample: whether another number of cameras is brought to the video's.
    """

    frame: str = "first"
    scale: str | float = "scene"
    resample: bool = False

    def unit(self, file: CameraFile, pivot: float) -> float:
        """How many scene units one unit of a file is; `pivot` is the pivot's distance in scene units."""
        if file.in_pivots or self.scale == "pivot":
            return pivot
        return 1.0 if isinstance(self.scale, str) else self.scale


def place(
    file: CameraFile,
    wishes: Wishes,
    source: Cameras,
    pivot: float,
    size: tuple[int, int],
    mode: str = "dynamic",
    world: Float[np.ndarray, "4 4"] | None = None,
) -> Cameras:
    """The cameras of a view, in the frame of the source's first camera and in scene units.

    Args:
        file: what the file says.
        wishes: how to take it.
        source: the source's cameras, T of them.
        pivot: the pivot's distance from the first of them, scene units.
        size: height and width of the video.
        mode: ``dynamic``: the path must begin at the source's first camera; ``static``: a single camera is held.
        world: the source's first camera in its own file's world; None: it has no file.

    Raises:
        InputError: another number of cameras than the video has frames, or a path that begins elsewhere.
    """
    unit, num_frames = wishes.unit(file, pivot), source.num_frames
    poses = _counted(file, wishes, num_frames, pivot / unit, mode)
    K0 = np.asarray(source.K[0], np.float64)
    K = (
        np.tile(K0, (num_frames, 1, 1))
        if file.K is None or file.sizes is None
        else _counted_lenses(file, size, num_frames)
    )
    if not file.about_source and wishes.frame == "first":
        poses = np.linalg.inv(poses[0]) @ poses
        ratio = K[:, [0, 1], [0, 1]] / K[0, [0, 1], [0, 1]]
        shift = K[:, :2, 2] - K[0, :2, 2]
        K = np.tile(K0, (num_frames, 1, 1))
        K[:, [0, 1], [0, 1]] *= ratio
        K[:, :2, 2] += shift
    elif not file.about_source and world is not None:
        poses = np.linalg.inv(world) @ poses
    poses = _in_units(file, poses, unit)
    if mode == "dynamic":
        _check_start(file, poses[0], K[0] / K0[0, 0], K0 / K0[0, 0], pivot)
    return Cameras(jnp.asarray(K, jnp.float32), jnp.asarray(poses, jnp.float32))


def place_source(
    file: CameraFile,
    wishes: Wishes,
    indices: Int[np.ndarray, " T"],
    size: tuple[int, int],
    focal: float | None = None,
    pivot: float | None = None,
) -> tuple[Cameras, Float[np.ndarray, "4 4"]]:
    """The source's own cameras, in the frame of the first of them and in scene units.

    Args:
        file: what the file says, of the frames taken or of all of the source's.
        wishes: how to take it.
        indices: which of the source's frames were taken.
        size: height and width of the video.
        focal: its focal length in pixels, if the user says it; None: the file's, or the usual one.
        pivot: the pivot's distance, if the user says it.

    Returns:
        the cameras, and the first of them in the file's world and unit.

    Raises:
        InputError: the file's length fits neither, or its unit is the pivot's distance, which is not known yet.
    """
    if (file.in_pivots or wishes.scale == "pivot") and pivot is None:
        raise InputError(
            f"{file.path}: the source's cameras are measured in the pivot's distance, which is found from the depth "
            "later: set config.pivot_depth to a number, or config.camera_scale"
        )
    unit, num_frames = wishes.unit(file, pivot or 1.0), len(indices)
    whole = file.count is not None and file.count != num_frames and file.count > int(indices.max())
    if whole:
        poses = file.poses(num_frames, (pivot or 1.0) / unit)[indices]
    else:
        poses = _counted(file, wishes, num_frames, (pivot or 1.0) / unit, "dynamic")
    if focal is not None or file.K is None or file.sizes is None:
        K = np.tile(default_intrinsics(*size, focal).astype(np.float64), (num_frames, 1, 1))
    else:
        K = fitted(file.K[indices], file.sizes[indices], *size) if whole else _counted_lenses(file, size, num_frames)
    world = poses[0]
    poses = _in_units(file, np.linalg.inv(world) @ poses, unit)
    return Cameras(jnp.asarray(K, jnp.float32), jnp.asarray(poses, jnp.float32)), world


def _in_units(file: CameraFile, poses: Float[np.ndarray, "n 4 4"], unit: float) -> Float[np.ndarray, "n 4 4"]:
    """Poses in scene units; what float32 cannot hold is refused."""
    farthest = float(np.abs(poses[:, :3, 3]).max())
    if not farthest <= LARGEST / unit:
        raise InputError(
            f"{file.path}: its cameras go to {farthest:.3g} of its own units, a unit being {unit:.3g} scene units, and "
            f"{LARGEST:.0e} scene units is the most: mend the file, or set config.camera_scale"
        )
    poses = poses.copy()
    poses[:, :3, 3] *= unit
    return poses


def fitted(
    K: Float[np.ndarray, "n 3 3"], sizes: Float[np.ndarray, "n 2"], height: int, width: int
) -> Float[np.ndarray, "n 3 3"]:
    """Intrinsics of pictures of other sizes (width, height), resized to cover height x width, their middle kept."""
    scale = np.maximum(width / sizes[:, 0], height / sizes[:, 1])
    result = K.copy()
    result[:, :2] *= scale[:, None, None]
    result[:, :2, 2] -= (sizes * scale[:, None] - np.array([width, height])) / 2
    return result


def check_count(file: CameraFile, wishes: Wishes, num_frames: int, mode: str) -> None:
    """Refuses another number of cameras than the video has frames.

    A single one is held in mode ``static``, and others are resampled if that is wished.

    Raises:
        InputError: the line begins with the file.
    """
    if (
        file.count in (None, num_frames)
        or (file.count == 1 and mode == "static")
        or (file.count > 1 and wishes.resample)
    ):
        return
    mend = "give one camera a frame, or set config.camera_resample=true"
    count = f"{file.count} camera{'s' * (file.count > 1)}"
    raise InputError(f"{file.path}: holds {count}, the video {num_frames} frames: {mend}")


def _counted(file: CameraFile, wishes: Wishes, num_frames: int, pivot: float, mode: str) -> np.ndarray:
    """As many poses as the video has frames."""
    check_count(file, wishes, num_frames, mode)
    poses = file.poses(num_frames, pivot)
    if len(poses) == num_frames:
        return poses
    return np.repeat(poses, num_frames, axis=0) if len(poses) == 1 else interpolation.resample(poses, num_frames)


def _counted_lenses(file: CameraFile, size: tuple[int, int], num_frames: int) -> np.ndarray:
    """As many intrinsics as the video has frames, for its size."""
    assert file.K is not None
    assert file.sizes is not None
    K = fitted(file.K, file.sizes, *size)
    at = np.linspace(0, len(K) - 1, num_frames)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, len(K) - 1), (at - low)[:, None, None]
    return (1 - share) * K[low] + share * K[high]


def _check_start(file: CameraFile, pose: np.ndarray, K: np.ndarray, K_source: np.ndarray, pivot: float) -> None:
    off = np.linalg.norm(pose[:3, 3]) / pivot
    turned = np.degrees(np.arccos(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1)))
    if off > _SAME or np.abs(pose[:3, :3] - np.eye(3)).max() > _SAME:
        raise InputError(
            f"{file.path}: begins {off:.3g} of the pivot's distance and {turned:.3g} degrees from the source's first "
            "camera, where a view of mode=dynamic begins: set config.camera_frame=first, begin it there, or set "
            "config.mode=static"
        )
    if np.abs(K - K_source).max() > 10 * _SAME:
        raise InputError(
            f"{file.path}: its first camera has another lens than the source's: set config.camera_frame=first, or "
            "config.focal or config.source_cameras to what the video was filmed with"
        )
