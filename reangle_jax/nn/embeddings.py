"""Position and time embeddings. Tables are computed on the host in float64, as the published models do."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Num


def timestep_embedding(timesteps: Num[Array, " B"], width: int) -> Float32[Array, "B {width}"]:
    """Sinusoidal embedding of diffusion times, usually 0..1000 (DDPM, Ho et al., 2020), in float32.

    Cosines come first, as in CogVideoX and FLUX; the longest wavelength is 2 pi times 10,000.
    """
    half = width // 2
    exponent = -math.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_1d(positions: Num[np.ndarray, "*grid"], width: int) -> Float64[np.ndarray, "N {width}"]:
    """Sines then cosines of ``positions`` at ``width / 2`` frequencies, float64 [N, width]."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2.0))
    angles = np.outer(positions.reshape(-1).astype(np.float64), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def rope_angles(
    positions: Num[np.ndarray, " N"], width: int, theta: float = 10000.0
) -> Float64[np.ndarray, "N {width}//2"]:
    """Rotation angles of ``width / 2`` pairs at each position, float64 [N, width / 2] (RoFormer, Su et al., 2021)."""
    frequencies = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float64)[: width // 2] / width)
    return np.outer(positions.astype(np.float64), frequencies)


def rotate_halves(
    x: Float[Array, "B S N D"], cos: Float[Array, "S half"], sin: Float[Array, "S half"]
) -> Float[Array, "B S N D"]:
    """Rotates the pairs (x[k], x[k + D/2]) of the last axis, in float32; the dtype is kept.

    The same rotation as that of the pairs (x0, x1), (x2, x3), ... in another order of channels, and one that vector
    units like.
    """
    cos, sin = (table.astype(jnp.float32)[None, :, None, :] for table in (cos, sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Rope(NamedTuple):
    """Cosines and sines of the rotations at every token of a grid, rows and columns apart; see `grid_rope`."""

    cos: Float[Array, "S 2 quarter"]
    sin: Float[Array, "S 2 quarter"]


def grid_rope(rows: int, columns: int, width: int, theta: float = 100.0) -> Rope:
    """Rotations of ``width`` channels at every token of a grid, row by row (CroCo v2, Weinzaepfel et al., 2023).

    The first half of the channels turns with the token's row, the second with its column, both counted from 0;
    ``theta`` is the longest wavelength over 2 pi, in tokens.

    Raises:
        ValueError: ``width`` is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"heads of {width} channels cannot turn in two directions: make it a multiple of 4")
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1)  # y, x, y, ...
    angles = rope_angles(places, width // 2, theta).reshape(rows * columns, 2, width // 4)
    return Rope(jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32))


def place_waves(rows: int, columns: int, width: int) -> Float32[np.ndarray, "{rows} {columns} {width}"]:
    """Sines and cosines of every token's place in the picture, half of its row, half of its column.

    A place is measured from the picture's middle in lengths of its shorter side, so that it says the same of the ray
    through the token whatever the resolution, and if a longer picture is cropped. Wavelengths are four shorter sides
    down to an eighth of one. The width is a multiple of 4.
    """
    frequencies = np.geomspace(0.25, 8.0, width // 4)

    def waves(count: int) -> np.ndarray:
        places = (np.arange(count) + 0.5 - count / 2) / min(rows, columns)
        angles = 2 * np.pi * np.outer(places, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    down, across = waves(rows)[:, None], waves(columns)[None, :]
    return np.concatenate(np.broadcast_arrays(down, across), axis=-1).astype(np.float32)


def rotate_grid(x: Float[Array, "B S N D"], rope: Rope) -> Float[Array, "B S N D"]:
    """Rotates each half's pairs (x[k], x[k + D/4]) by the tables of `grid_rope`, in float32; the dtype is kept."""
    cos, sin = (table[None, :, None] for table in rope)  # [1, S, 1, 2, D/4]
    first, second = jnp.split(x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
