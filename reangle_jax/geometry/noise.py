"""Noise that is carried along by a camera's motion, so that views of one scene begin with what belongs together."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from reangle_jax.geometry.cameras import Cameras, source_to_target
from reangle_jax.geometry.splat import project


def carried(
    noise: Float[np.ndarray, "t h w C"],
    own: Float[np.ndarray, "t h w C"],
    depth: Float[np.ndarray, "t H W"],
    source: Cameras,
    target: Cameras,
) -> Float[np.ndarray, "t h w C"]:
    """Moves each cell of white noise, whole, to the cell in which the target camera sees its middle.

    No cell is used twice (the nearest wins) and cells that nothing reaches keep their own: what comes out is white
    noise again, exactly. Depth is z of the frames that the latents stand for, intrinsics are in its pixels.
    """
    rows, columns = noise.shape[1:3]
    height, width = depth.shape[1:]
    middle = [(2 * np.arange(count) + 1) * size // (2 * count) for count, size in ((rows, height), (columns, width))]
    z = jnp.asarray(depth[:, middle[0][:, None], middle[1]], jnp.float32)
    scale = jnp.asarray([[[columns / width], [rows / height], [1.0]]], jnp.float32)
    places = jax.vmap(project)(z, scale * source.K, scale * target.K, source_to_target(source, target))
    result = own.copy()
    for frame, (u, v, far) in enumerate(zip(*map(np.asarray, places), strict=True)):
        column, row = np.round(u).astype(int), np.round(v).astype(int)
        seen = (far > 0) & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        from_row, from_column = np.nonzero(seen)
        back_to_front = np.argsort(-far[seen], kind="stable")  # of cells that meet, the last one written stays
        to = row[seen][back_to_front], column[seen][back_to_front]
        result[frame][to] = noise[frame, from_row[back_to_front], from_column[back_to_front]]
    return result
