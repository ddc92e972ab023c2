"""Textures of the procedural scenes: noise, patterns and photographs, packed with their mip levels into one flat atlas.

Host side, in NumPy and OpenCV; the renderer reads only the packed atlas.
"""

import cv2
import numpy as np
from jaxtyping import UInt8, UInt32

from training.pool import ImagePool

LARGE, SMALL = 256, 128  # sides of square textures, pixels; both powers of two
PALETTE = {
    "red": (200, 45, 40),
    "orange": (230, 130, 40),
    "yellow": (235, 205, 70),
    "green": (75, 150, 70),
    "teal": (40, 140, 140),
    "blue": (50, 95, 190),
    "purple": (125, 70, 160),
    "pink": (230, 140, 165),
    "brown": (130, 90, 60),
    "white": (235, 232, 225),
    "grey": (135, 135, 138),
    "black": (40, 40, 45),
    "sand": (205, 180, 140),
}


def random_texture(
    rng: np.random.Generator, size: int, pool: ImagePool | None, photo_chance: float
) -> tuple[UInt8[np.ndarray, "size size 4"], str]:
    """An opaque square texture and the words for it (``blue striped``); a photograph's words are empty."""
    if pool is not None and rng.random() < photo_chance:
        return _opaque(pool.random_crop(rng, size, size)), ""
    makers = (marbled, checked, striped, spotted, brick, planks, plain)
    pattern = makers[rng.choice(len(makers), p=(0.22, 0.15, 0.17, 0.13, 0.13, 0.1, 0.1))]
    names = list(PALETTE)
    first, second = rng.choice(len(names), 2, replace=False)
    colours = [_jitter(rng, PALETTE[names[i]]) for i in (first, second)]
    image, word = pattern(rng, size, *colours)
    # A little broad and fine noise on everything: real surfaces are never even.
    shade = 1 + 0.16 * (value_noise(rng, size, 4) - 0.5) + rng.uniform(0, 0.08) * (value_noise(rng, size, 64) - 0.5)
    pixels = np.clip(image * shade[..., None], 0, 255).astype(np.uint8)
    return _opaque(pixels), " ".join(filter(None, (names[first], word)))


def random_sky(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "size size 4"]:
    """A soft gradient from horizon to zenith with clouds; row 0 is overhead, the middle row is the horizon."""
    blue = np.array([rng.uniform(70, 150), rng.uniform(120, 180), rng.uniform(190, 240)])
    haze = np.array([rng.uniform(200, 250), rng.uniform(205, 235), rng.uniform(200, 240)])
    up = np.clip(1 - 2 * np.arange(size) / size, 0, 1)[:, None, None] ** 0.6
    cloud = np.clip(value_noise(rng, size, 8, octaves=4) * 2.2 - rng.uniform(0.7, 1.4), 0, 1)[..., None]
    sky = haze * (1 - up) + blue * up
    return _opaque((sky * (1 - 0.8 * cloud) + 245 * 0.8 * cloud).astype(np.uint8))


def pack_atlas(large: list[np.ndarray], small: list[np.ndarray]) -> UInt32[np.ndarray, " texels"]:
    """Packs RGBA textures with all their mip levels, 8 bits a channel (red lowest), one after the other."""
    levels = []
    for image in (*large, *small):
        while True:
            levels.append(np.ascontiguousarray(image).view(np.uint32).reshape(-1))
            if image.shape[0] == 1:
                break
            image = _halve(image)
    return np.concatenate(levels)


def mip_texels(size: int) -> int:
    """Texels of one square texture with all its levels: size^2 + (size/2)^2 + ... + 1."""
    return (4 * size * size - 1) // 3


def value_noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 3) -> np.ndarray:
    """Multi-octave value noise in [0, 1], [size, size] float32: ever finer random grids, enlarged smoothly."""
    total, weight = np.zeros((size, size), np.float32), 0.0
    for octave in range(octaves):
        side = min(cells << octave, size)
        grid = rng.random((side, side), dtype=np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) / 2**octave
        weight += 1 / 2**octave
    return np.clip(total / weight, 0, 1)


def marbled(rng: np.random.Generator, size: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """Two colours mixed by contrasty noise."""
    mix = np.clip((value_noise(rng, size, int(rng.integers(3, 14)), 5) - 0.5) * rng.uniform(2, 5) + 0.5, 0, 1)
    return _mix(a, b, mix), "marbled"


def checked(rng: np.random.Generator, size: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """A check pattern of 2 to 8 pairs of cells."""
    y, x = _grid(size, int(rng.integers(2, 9)))
    return _mix(a, b, _soft(np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y), 0.1)), "checked"


def striped(rng: np.random.Generator, size: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """Straight, slanted or wavy stripes."""
    y, x = _grid(size, 1)
    count, slant, wave = int(rng.integers(3, 12)), int(rng.integers(-2, 3)), rng.choice([0.0, 0.0, 0.04])
    if rng.random() < 0.5:
        y, x = x, y
    phase = count * (x + wave * np.sin(4 * np.pi * y)) + slant * y
    return _mix(a, b, _soft(np.sin(2 * np.pi * phase) + rng.uniform(-0.5, 0.5), 0.15)), "striped"


def spotted(rng: np.random.Generator, size: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """Round dots in staggered rows."""
    y, x = _grid(size, 2 * int(rng.integers(1, 4)))
    x = x + 0.5 * (np.floor(y) % 2)
    distance = np.hypot(x % 1 - 0.5, y % 1 - 0.5)
    return _mix(a, b, _soft(rng.uniform(0.2, 0.38) - distance, 0.03)), "spotted"


def brick(rng: np.random.Generator, size: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """Bricks in running bond: every brick of its own shade, mortar between."""
    rows = 2 * int(rng.integers(2, 6))
    y, x = _grid(size, rows)
    x = x / 2 + 0.5 * (np.floor(y) % 2)
    column = np.floor(x).astype(int) % (rows // 2)
    shade = rng.uniform(0.75, 1.2, (rows, rows // 2)).astype(np.float32)[np.floor(y).astype(int) % rows, column]
    edge = np.minimum(2 * np.minimum(x % 1, 1 - x % 1), np.minimum(y % 1, 1 - y % 1))
    return _mix(b * 0.4 + 110, a[None, None] * shade[..., None], _soft(edge - 0.06, 0.03)), "brick"


def planks(rng: np.random.Generator, size: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """Boards with grain along their length."""
    count = int(rng.integers(3, 9))
    y, _ = _grid(size, count)
    grain = cv2.resize(rng.random((size, 4), dtype=np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    shade = rng.uniform(0.7, 1.15, count).astype(np.float32)[np.floor(y).astype(int) % count]
    shade = (shade + 0.35 * (grain - 0.5)) * (0.4 + 0.6 * _soft(np.minimum(y % 1, 1 - y % 1) - 0.03, 0.03))
    wood = 0.5 * a + 0.5 * np.array(PALETTE["brown"])
    return wood[None, None] * shade[..., None], "planked"


def plain(rng: np.random.Generator, size: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """One colour with broad, weak noise."""
    return _mix(a, a * 0.75, value_noise(rng, size, int(rng.integers(2, 24)))), ""


def _opaque(rgb: np.ndarray) -> np.ndarray:
    return np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], -1)


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int]) -> np.ndarray:
    return np.clip(np.array(colour) * rng.uniform(0.85, 1.15) + rng.uniform(-15, 15, 3), 0, 255).astype(np.float32)


def _grid(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column co-ordinates of texel centres, in cells."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * cells / size
    return np.broadcast_to(line[:, None], (size, size)), np.broadcast_to(line[None], (size, size))


def _soft(value: np.ndarray, width: float) -> np.ndarray:
    """A step at zero, smoothed over +-`width`."""
    return np.clip(value / (2 * width) + 0.5, 0, 1)


def _mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`a` where the weight [size, size] is 0, `b` where it is 1."""
    return a * (1 - weight[..., None]) + b * weight[..., None]


def _halve(image: np.ndarray) -> np.ndarray:
    """The next mip level: 2x2 means, colours weighted by alpha so that no fringe grows around cut-outs."""
    if (image[..., 3] == 255).all():
        return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    blocks = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 4).astype(np.float32)
    weight = blocks[..., 3:] + 1e-3
    colour = (blocks[..., :3] * weight).sum((1, 3)) / weight.sum((1, 3))
    return np.concatenate([colour, blocks[..., 3:].mean((1, 3))], -1).round().astype(np.uint8)
