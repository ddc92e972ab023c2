"""Visibility masks on the latent grid."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from reangle_jax.arrays import AnyArray


def latent_mask(visible: Bool[AnyArray, "T H W"], height: int, width: int, group: int) -> Float[Array, "t h w"]:
    """Brings a visible mask to the latent grid (method.md, stage 2): float32, 1 = visible.

    Nearest in space by PyTorch's rule (row ``floor(i * H / height)``); in time the first frame stays alone and each
    following group of frames becomes one by logical AND, because a latent frame mixes them all.

    Raises:
        ValueError: T is not 1 + group k.
    """
    frames, rows, columns = visible.shape
    if (frames - 1) % group:
        raise ValueError(f"a mask of {frames} frames has no latent grid: the number of frames must be 1 + {group}k")
    # Whole numbers: i * H / height in floating point may fall just under the row that it means.
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    grid = jnp.asarray(visible, jnp.bool_)[:, row[:, None], column[None, :]]
    groups = grid[1:].reshape(-1, group, height, width).all(axis=1)
    return jnp.concatenate([grid[:1], groups]).astype(jnp.float32)


def latent_share(marked: Bool[AnyArray, "T H W"], height: int, width: int, group: int) -> Float[Array, "t h w"]:
    """The share of each latent's pixels that are marked, float32: of its box in space and its group of frames.

    Raises:
        ValueError: T is not 1 + group k, or the latents' boxes do not tile the picture.
    """
    frames, rows, columns = marked.shape
    if (frames - 1) % group or rows % height or columns % width:
        raise ValueError(f"marks of {frames}x{rows}x{columns} are not latents of {height}x{width} by {group} frames")
    boxes = jnp.asarray(marked, jnp.float32).reshape(frames, height, rows // height, width, columns // width)
    share = boxes.mean(axis=(2, 4))
    return jnp.concatenate([share[:1], share[1:].reshape(-1, group, height, width).mean(axis=1)])
