"""NumPy's .npz with ``camera_to_world`` (or ``cam_c2w``, as Vista4D names it) and perhaps intrinsics."""

from pathlib import Path

import numpy as np

from reangle_jax.cameras.file import CameraFile, intrinsics, listed
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.geometry.cameras import LARGEST, check_intrinsics, check_rigid

NAME = "npz"
_POSES = ("camera_to_world", "cam_c2w")
_LENSES = ("intrinsics", "K")


def read(path: Path) -> CameraFile:
    """Reads it.

    Poses are ``[T, 4, 4]`` or ``[T, 3, 4]``, intrinsics ``[T, 3, 3]`` or fx, fy, cx, cy ``[T, 4]``, or one for all.
    Without ``width`` and ``height`` the principal point is taken to be the pictures' centre.

    Raises:
        InputError: NumPy cannot read it, or its arrays are no cameras.
    """
    try:
        arrays = files.load_npz(path)
    except (OSError, ValueError) as error:
        words = f"is not an .npz that NumPy can read ({' '.join(str(error).split())})"
        raise InputError(f"{path} {files.stand_in(path) or words}") from None
    key = next((key for key in _POSES if key in arrays), None)
    if key is None:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}: name the poses (T, 4, 4) camera_to_world")
    poses = _numbers(path, key, arrays[key])
    if poses.ndim == 3 and poses.shape[1:] == (3, 4):
        poses = np.concatenate([poses, np.tile([[[0.0, 0, 0, 1]]], (len(poses), 1, 1))], axis=1)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not len(poses):
        raise InputError(f"{path}: {key} has the shape {arrays[key].shape}; give (T, 4, 4)")
    for index, pose in enumerate(poses):
        check_rigid(f"{path}: {key}[{index}]", pose)
    K = _lenses(path, arrays, len(poses))
    sizes = None if K is None else 2 * K[:, :2, 2]
    if sizes is not None and {"width", "height"} <= arrays.keys():
        size = [_numbers(path, name, arrays[name]).reshape(-1)[:1] for name in ("width", "height")]
        sizes = np.tile(np.concatenate(size), (len(poses), 1))
    if sizes is not None and not (sizes.shape == (len(poses), 2) and (sizes > 0).all()):
        raise InputError(f"{path}: the pictures' size is not above 0; give width and height, or a principal point")
    return listed(path, NAME, "x right, y down, z forward; camera to world", poses, K, sizes)


def _numbers(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise InputError(f"{path}: {key} is {array.dtype} or not finite; give finite numbers")
    if array.size and np.abs(array.astype(np.float64)).max() > LARGEST:
        raise InputError(f"{path}: {key} holds numbers beyond {LARGEST:.0e}; give smaller ones")
    return array.astype(np.float64)


def _lenses(path: Path, arrays: dict[str, np.ndarray], count: int) -> np.ndarray | None:
    key = next((key for key in _LENSES if key in arrays), None)
    if key is None:
        return None
    values = _numbers(path, key, arrays[key])
    if values.shape[-1:] == (4,):
        values = np.stack([intrinsics(*row) for row in values.reshape(-1, 4)])
    if values.ndim < 2 or values.shape[-2:] != (3, 3) or values.size not in (9, 9 * count):
        raise InputError(f"{path}: {key} has the shape {arrays[key].shape}; give (T, 3, 3), or fx, fy, cx, cy (T, 4)")
    values = np.broadcast_to(values.reshape(-1, 3, 3), (count, 3, 3)).copy()
    for index, K in enumerate(values):
        check_intrinsics(f"{path}: {key}[{index}]", K)
    return values
