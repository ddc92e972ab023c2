"""COLMAP's text model: cameras.txt and images.txt.

Facts from COLMAP's documentation: of every image two lines, ``IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`` and its
points, which may be none at all: an empty line counts. The quaternion, its real part first, and the translation map
world to camera; x right, y down, z forward; a pixel's centre lies at 0.5.
"""

from pathlib import Path

import numpy as np

from reangle_jax.cameras.file import CameraFile, intrinsics, listed, number, undistorted
from reangle_jax.data import files
from reangle_jax.data.paths import natural
from reangle_jax.errors import InputError
from reangle_jax.geometry.cameras import check_intrinsics

NAME = "colmap"
IMAGES, CAMERAS = "images.txt", "cameras.txt"
# Of each model the focal lengths' and the centre's places among the parameters, and the coefficients after them.
_MODELS: dict[str, tuple[tuple[int, int, int, int], tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": ((0, 0, 1, 2), ()),
    "PINHOLE": ((0, 1, 2, 3), ()),
    "SIMPLE_RADIAL": ((0, 0, 1, 2), ("k",)),
    "RADIAL": ((0, 0, 1, 2), ("k1", "k2")),
    "OPENCV": ((0, 1, 2, 3), ("k1", "k2", "p1", "p2")),
}
_UNIT = 1e-2  # by how much a quaternion's length may be off 1


def folder_of(path: Path) -> Path | None:
    """The folder that holds the model: the path itself, sparse/0 in it, or that of an images.txt; None: no such."""
    candidates = [path.parent] if path.name == IMAGES else [path, path / "sparse" / "0", path / "sparse", path / "0"]
    return next((folder for folder in candidates if (folder / IMAGES).is_file()), None)


def read(path: Path, folder: Path) -> CameraFile:
    """Reads it; cameras in the order of the images' names.

    Raises:
        InputError: a line cannot be understood, a file is missing, or a lens is no pinhole.
    """
    lenses = _cameras(folder / CAMERAS)
    images = sorted(_images(folder / IMAGES, lenses), key=lambda image: natural(image[0]))
    poses = np.stack([pose for _, pose, _ in images])
    K, sizes = (np.stack(part) for part in zip(*(lenses[camera] for _, _, camera in images), strict=True))
    words = "x right, y down, z forward; world to camera as quaternion and translation"
    return listed(path, NAME, words, poses, K, sizes)


def _lines(path: Path) -> list[str]:
    files.check_no_pipe(path)
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; COLMAP's text model has {CAMERAS} and {IMAGES} side by side") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); export the model as TXT") from None


def _cameras(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """K and size by camera's number."""
    found = {}
    for index, line in enumerate(_lines(path)):
        words, where = line.split(), f"{path}: line {index + 1}"
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 5:
            raise InputError(f"{where} is no camera; its form is CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]")
        name, model = words[:2]
        if model not in _MODELS:
            raise InputError(f"{where}: {model} is no pinhole: undistort the pictures first (colmap image_undistorter)")
        places, coefficients = _MODELS[model]
        count = max(places) + 1 + len(coefficients)
        values = [number(where, word) for word in words[2:]]
        if len(values) != 2 + count:
            raise InputError(f"{where}: {model} has {count} parameters after width and height, not {len(values) - 2}")
        size, values = np.array(values[:2]), values[2:]
        undistorted(where, dict(zip(coefficients, values[max(places) + 1 :], strict=True)))
        K = intrinsics(*(values[place] for place in places))
        check_intrinsics(where, K)
        found[name] = K, size
    return found


def _images(path: Path, lenses: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, np.ndarray, str]]:
    """Name, pose and camera's number of each image."""
    lines, found, index = _lines(path), [], 0
    while index < len(lines):
        words, where = lines[index].split(maxsplit=9), f"{path}: line {index + 1}"
        index += 1
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 10:
            raise InputError(f"{where} is no image; its form is IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
        points = lines[index].split() if index < len(lines) else []
        if len(points) % 3:
            raise InputError(
                f"{where}: no line of points follows: every image has two lines, of which the second may be empty but "
                "must be there"
            )
        index += 1
        values = np.array([number(where, word) for word in words[1:8]])
        if words[8] not in lenses:
            raise InputError(f"{where}: there is no camera {words[8]} in {CAMERAS}")
        found.append((words[9].strip(), _pose(where, values), words[8]))
    if not found:
        raise InputError(f"{path}: no images in it; export the model as TXT with its images")
    return found


def _pose(where: str, values: np.ndarray) -> np.ndarray:
    """Camera to world out of quaternion and translation."""
    length = float(np.linalg.norm(values[:4]))
    if abs(length - 1) > _UNIT:
        raise InputError(f"{where} holds no rotation: its quaternion's length is {length:.3g}, and must be 1")
    rotation = from_quaternion(values[:4] / length)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ values[4:]
    return pose


def from_quaternion(q: np.ndarray) -> np.ndarray:
    """The rotation of a unit quaternion, its real part first."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
