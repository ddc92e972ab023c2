"""Images as DUSt3R and MASt3R were shown them."""

import numpy as np
from jaxtyping import Float32, UInt8

from reangle_jax.nn.resize import pillow_matrix

SQUARE = 224  # the only published size at which the network sees squares


def _resized(height: int, width: int, image_size: int) -> tuple[int, int]:
    """The size before cropping: the longer side is ``image_size``; for squares it is the shorter one."""
    longer = max(height, width)
    if image_size == SQUARE:
        image_size = round(image_size * max(width / height, height / width))
    return round(height * image_size / longer), round(width * image_size / longer)


def input_size(
    height: int, width: int, *, image_size: int, multiple: int = 16, square_ok: bool = False
) -> tuple[int, int]:
    """Height and width at which the network sees an image, as the authors choose them.

    The longer side becomes ``image_size`` pixels, where 224 makes squares of that size, and both multiples of the patch
    size. Square images are cropped to 4:3 unless they may stay (``square_ok``).

    Raises:
        ValueError: the shorter side would be shorter than ``multiple``.
    """
    rows, columns = _resized(height, width, image_size)
    if image_size == SQUARE:
        side = min(rows, columns) // 2 * 2
        return side, side
    high, wide = rows // 2 * 2 // multiple * multiple, columns // 2 * 2 // multiple * multiple
    if rows == columns and not square_ok:
        high = wide * 3 // 4 // multiple * multiple
    if not (high and wide):
        raise ValueError(f"an image of {height}x{width} is too narrow: at {rows}x{columns} it has no {multiple} pixels")
    return high, wide


def preprocess(
    image: UInt8[np.ndarray, "H W 3"], *, image_size: int, multiple: int = 16, square_ok: bool = False
) -> Float32[np.ndarray, "h w 3"]:
    """Resizes an RGB image (Lanczos to smaller, bicubic to larger), crops its centre and scales it to -1..1.

    Arguments and errors are `input_size`'s.
    """
    height, width = image.shape[:2]
    high, wide = input_size(height, width, image_size=image_size, multiple=multiple, square_ok=square_ok)
    rows, columns = _resized(height, width, image_size)
    kernel = "lanczos" if max(height, width) > max(rows, columns) else "bicubic"
    # Pillow resizes along the rows first, and rounds to bytes after each of the two.
    x = np.einsum("wW,HWc->Hwc", pillow_matrix(width, columns, kernel), image.astype(np.float64), optimize=True)
    x = np.einsum("hH,Hwc->hwc", pillow_matrix(height, rows, kernel), _to_bytes(x), optimize=True)
    top, left = rows // 2 - high // 2, columns // 2 - wide // 2
    x = _to_bytes(x)[top : top + high, left : left + wide] / 255.0
    return ((x - 0.5) / 0.5).astype(np.float32)


def _to_bytes(x: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(x + 0.5), 0.0, 255.0)
