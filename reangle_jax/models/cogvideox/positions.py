"""Where a token lies: the sincos table and the rotation angles, axis by axis on the host in float64.

Both tables are sums over axes, so that only the three short ones are ever constants of a compiled program.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.nn.embeddings import rope_angles, sincos_1d


def _over_grid(along_t: Array, along_a: Array, along_b: Array, *, rows_first: bool) -> Array:
    """Joins tables [T, x], [A, y], [B, z] on the last axis at every token of the grid, frames slowest."""
    rows, columns = (along_a, along_b) if rows_first else (along_b, along_a)
    grid = (along_t.shape[0], rows.shape[0], columns.shape[0])
    t = jnp.broadcast_to(along_t[:, None, None, :], (*grid, along_t.shape[1]))
    y = jnp.broadcast_to(rows[None, :, None, :], (*grid, rows.shape[1]))
    x = jnp.broadcast_to(columns[None, None, :, :], (*grid, columns.shape[1]))
    return jnp.concatenate([t, y, x] if rows_first else [t, x, y], -1).reshape(grid[0] * grid[1] * grid[2], -1)


def sincos_table(config: TransformerConfig, frames: int, height: int, width: int) -> Float[Array, "video inner"]:
    """The position table of CogVideoX-2b for the tokens of so many latent frames, rows and columns, float32.

    A quarter of the width is for frames, then come columns, then rows (in the published order). Text tokens have zeros.
    """
    space = config.spatial_interpolation_scale
    t = sincos_1d(np.arange(frames) / config.temporal_interpolation_scale, config.inner_dim // 4)
    columns = sincos_1d(np.arange(width // config.patch_size) / space, 3 * config.inner_dim // 8)
    rows = sincos_1d(np.arange(height // config.patch_size) / space, 3 * config.inner_dim // 8)
    t, columns, rows = (jnp.asarray(x, jnp.float32) for x in (t, columns, rows))
    return _over_grid(t, columns, rows, rows_first=False)


def crop_region(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The centred part of the grid that a model was trained with that a grid of another aspect ratio covers.

    Both count rows and columns of tokens; what is given are (top, left) and (bottom, right) in the base grid.
    """
    rows, columns = grid
    base_rows, base_columns = base
    if rows / columns > base_rows / base_columns:
        fit = (base_rows, round(base_rows / rows * columns))
    else:
        fit = (round(base_columns / columns * rows), base_columns)
    top, left = round((base_rows - fit[0]) / 2.0), round((base_columns - fit[1]) / 2.0)
    return (top, left), (top + fit[0], left + fit[1])


def rope_positions(config: TransformerConfig, frames: int, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Coordinates of the token frames, rows and columns, float64.

    Models before 1.5 squeeze any grid into their training grid; 1.5 counts tokens.
    """
    rows, columns = height // config.patch_size, width // config.patch_size
    if config.patch_size_t is not None:
        counts = (frames // config.patch_size_t, rows, columns)
        return tuple(np.arange(n, dtype=np.float64) for n in counts)
    base = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    start, stop = crop_region((rows, columns), base)
    y = np.linspace(start[0], stop[0] * (rows - 1) / rows, rows)
    x = np.linspace(start[1], stop[1] * (columns - 1) / columns, columns)
    return np.arange(frames, dtype=np.float64), y, x


def rope_table(
    config: TransformerConfig, frames: int, height: int, width: int
) -> tuple[Float[Array, "video half"], Float[Array, "video half"]]:
    """Cosines and sines of each pair of a head's channels, float32, for tokens of so many latent frames, rows, columns.

    Of the pairs a quarter is turned by frame, 3/8 by row and 3/8 by column.
    """
    width_t, width_s = config.attention_head_dim // 4, config.attention_head_dim // 8 * 3
    t, y, x = rope_positions(config, frames, height, width)
    angles = (rope_angles(t, width_t), rope_angles(y, width_s), rope_angles(x, width_s))
    cos, sin = ([jnp.asarray(f(a), jnp.float32) for a in angles] for f in (np.cos, np.sin))
    return _over_grid(*cos, rows_first=True), _over_grid(*sin, rows_first=True)
