"""Latent pictures as tokens: packing by 2 x 2 cells, and the rotations that tell tokens their places."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Shaped

from reangle_jax.models.flux.transformer_config import FluxConfig
from reangle_jax.nn import layouts
from reangle_jax.nn.embeddings import rope_angles

Rope = tuple[Float32[Array, "R half"], Float32[Array, "R half"]]


def pack(latents: Shaped[Array, "B h w C"]) -> Shaped[Array, "B S P"]:
    """Cuts latents into tokens of 2 x 2 cells, row by row; a token's channels are ordered (channel, row, column).

    Raises:
        ValueError: an odd number of rows or columns.
    """
    batch, height, width, channels = latents.shape
    if height % 2 or width % 2:
        raise ValueError(f"latents of {height}x{width} are not whole tokens of 2x2")
    x = latents.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, 4 * channels)


def unpack(tokens: Shaped[Array, "B S P"], grid: tuple[int, int]) -> Shaped[Array, "B h w C"]:
    """The inverse of :func:`pack`; ``grid`` counts rows and columns of tokens."""
    rows, columns = grid
    x = tokens.reshape(tokens.shape[0], rows, columns, -1, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(tokens.shape[0], 2 * rows, 2 * columns, -1)


def rope_table(config: FluxConfig, text_length: int, grid: tuple[int, int]) -> Rope:
    """Cosines and sines of the rotations of text, which stands at (0, 0, 0), and of the picture's tokens after it."""
    rows, columns = grid
    places = np.zeros((text_length + rows * columns, 3))
    places[text_length:, 1], places[text_length:, 2] = np.divmod(np.arange(rows * columns), columns)
    angles = [rope_angles(places[:, axis], width) for axis, width in enumerate(config.axes_dims_rope)]
    angles = np.concatenate(angles, axis=1)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def divided(tokens: Float[Array, "B S C"]) -> Float[Array, "B F C"]:
    """Tokens filled up and laid over the mesh."""
    return layouts.constrain(layouts.fill(tokens, 1), layouts.TOKENS)


def divided_rope(config: FluxConfig, text_length: int, grid: tuple[int, int]) -> Rope:
    """`rope_table` for tokens that lie over the mesh, those of text and picture joined."""
    cos, sin = (
        layouts.join(*(layouts.fill(part[None], 1) for part in (table[:text_length], table[text_length:])))[0]
        for table in rope_table(config, text_length, grid)
    )
    return cos, sin
