"""Pictures in and out, by OpenCV: one file, or a folder that stands for a clip."""

import contextlib
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool

from reangle_jax.arrays import Picture
from reangle_jax.data import files
from reangle_jax.data.paths import natural
from reangle_jax.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Where the log is set, in OpenCV 5 and 4.
_LOGGING: Any = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging


def in_folder(folder: Path) -> list[Path]:
    """The pictures of a folder, not of those below it, in natural order (2 before 10)."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: natural(p.name))


def read(path: Path) -> Picture:
    """A picture as RGB, turned as its EXIF says.

    Raises:
        InputError: it cannot be read; the line begins with the path.
    """
    files.check_no_pipe(path)
    level = _LOGGING.getLogLevel()
    _LOGGING.setLogLevel(0)  # silent: OpenCV's own words would bury our one line
    try:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # larger than OpenCV's limit
        picture = None
    finally:
        _LOGGING.setLogLevel(level)
    if picture is None:
        raise InputError(f"{path} {_why_not(path)}")
    return np.ascontiguousarray(picture[..., ::-1])


def is_transparent(path: Path) -> bool:
    """Whether a picture that `read` reads shows nothing, or little, in places."""
    layers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if layers is None or layers.ndim != 3 or layers.shape[-1] != 4:
        return False
    opaque = {1: 255, 2: 65535}.get(layers.dtype.itemsize, 1.0)  # of 8 bits, 16 bits, or floats
    return bool(layers[..., 3].min() < opaque)


def write_png(path: str | os.PathLike[str], picture: Picture, visible: Bool[np.ndarray, "H W"] | None = None) -> None:
    """Writes a picture as PNG, whole or not at all; transparent where it is not visible."""
    layers = picture[..., ::-1]
    if visible is not None:
        layers = np.concatenate([layers, np.where(visible, 255, 0).astype(np.uint8)[..., None]], axis=-1)
    good, encoded = cv2.imencode(".png", layers)
    assert good
    files.atomic_write_bytes(path, encoded.tobytes())


def shrunk(picture: Picture, height: int, width: int) -> Picture:
    """A picture at a smaller size, averaged."""
    if picture.shape[:2] == (height, width):
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def read_holes(path: Path) -> tuple[Picture, Bool[np.ndarray, "H W"]]:
    """A picture that `write_png` wrote, and where it is visible.

    Raises:
        InputError: there is none.
    """
    layers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if layers is None or layers.ndim != 3 or layers.shape[-1] != 4:
        raise InputError(f"{path} is not a picture with holes: remove it, and it is made again")
    return np.ascontiguousarray(layers[..., 2::-1]), layers[..., 3] > 0


def is_animated_webp(path: Path) -> bool:
    """Whether a file is a WebP with more than one picture."""
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def _why_not(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(4) in (b"II*\0", b"MM\0*") and _turned_on_its_side(path):
            return "is a TIFF that is stored on its side, which OpenCV cannot turn: save it upright, or as PNG"
    return files.stand_in(path) or "is not a picture that OpenCV can read: remove or replace it"


def _turned_on_its_side(path: Path) -> bool:
    """Whether the orientation (tag 274) of a TIFF's first picture swaps rows and columns."""
    content = path.read_bytes()
    order = "little" if content[:2] == b"II" else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(content[start : start + size], order)

    directory = number(4, 4)
    entries = range(directory + 2, directory + 2 + 12 * number(directory, 2), 12)
    return any(number(entry, 2) == 274 and 5 <= number(entry + 8, 2) <= 8 for entry in entries)
