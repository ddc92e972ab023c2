"""The autoencoder in overlapping tiles: memory for one tile at a time, at the price of slightly other values.

Each tile is a clip of its own: statistics and causal pasts are the tile's. Neighbours are blended linearly where they
overlap. Tiles of one size run one after the other in a loop, so that a program holds at most a few sizes and only one
tile's activations.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reangle_jax.models.cogvideox.vae_config import VAEConfig


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How one axis is cut; ``tile`` and ``step`` count cells of the input, ``blend`` and ``keep`` of the output."""

    tile: int  # cells of a tile; the last ones on the axis are cut off by its end
    step: int  # from one tile's start to the next
    blend: int  # cells over which a tile is mixed with the one before it
    keep: int  # cells of a tile that go into the result; the rest is the next tile's

    def spans(self, size: int) -> list[tuple[int, int]]:
        """Start and length of every tile on an axis of ``size`` cells."""
        return [(start, min(self.tile, size - start)) for start in range(0, size, self.step)]


def tilings_of(config: VAEConfig, *, encode: bool) -> tuple[Tiling, Tiling] | None:
    """Tilings of rows and columns from pixels to latents or back; None where the config has no tiles."""
    if config.tile_sample is None:
        return None
    ratio = config.spatial_compression_ratio
    pair = []
    for pixels, overlap in zip(config.tile_sample, config.tile_overlap, strict=True):
        source, result = (pixels, pixels // ratio) if encode else (pixels // ratio, pixels)
        blend = int(result * overlap)
        pair.append(Tiling(tile=source, step=int(source * (1 - overlap)), blend=blend, keep=result - blend))
    return pair[0], pair[1]


def in_tiles(
    code: Callable[[Array], Array], x: Float[Array, "B T H W C"], tilings: tuple[Tiling, Tiling] | None
) -> Float[Array, "B t h w c"]:
    """Applies a coder of clips, which may change their sizes, tile by tile where ``x`` is larger than one tile.

    Without tilings of rows and columns the whole is coded in one pass.
    """
    if tilings is None or (x.shape[2] <= tilings[0].tile and x.shape[3] <= tilings[1].tile):
        return code(x)
    rows, columns = (tiling.spans(size) for tiling, size in zip(tilings, x.shape[2:4], strict=True))
    tiles = _code_tiles(code, x, rows, columns)
    for i in range(len(rows)):
        for j in range(len(columns)):
            # The tile above is taken with its own blending done, as published.
            if i > 0:
                tiles[i, j] = _blend(tiles[i - 1, j], tiles[i, j], tilings[0].blend, axis=2)
            if j > 0:
                tiles[i, j] = _blend(tiles[i, j - 1], tiles[i, j], tilings[1].blend, axis=3)
    kept = [
        jnp.concatenate([tiles[i, j][:, :, : tilings[0].keep, : tilings[1].keep] for j in range(len(columns))], axis=3)
        for i in range(len(rows))
    ]
    return jnp.concatenate(kept, axis=2)


def _code_tiles(
    code: Callable[[Array], Array], x: Array, rows: list[tuple[int, int]], columns: list[tuple[int, int]]
) -> dict[tuple[int, int], Array]:
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, (_, height) in enumerate(rows):
        for j, (_, width) in enumerate(columns):
            groups.setdefault((height, width), []).append((i, j))
    tiles = {}
    for (height, width), places in groups.items():
        starts = jnp.asarray([(rows[i][0], columns[j][0]) for i, j in places], jnp.int32)

        def one(start: Array, size=(height, width)) -> Array:
            tile = jax.lax.dynamic_slice_in_dim(x, start[0], size[0], axis=2)
            return code(jax.lax.dynamic_slice_in_dim(tile, start[1], size[1], axis=3))

        outputs = jax.lax.map(one, starts)
        tiles.update({place: outputs[k] for k, place in enumerate(places)})
    return tiles


def _blend(before: Array, tile: Array, extent: int, *, axis: int) -> Array:
    """``tile`` with its first cells mixed with the last ones of ``before``, whose share falls linearly from 1."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if extent == 0:
        return tile
    weight = (jnp.arange(extent) / extent).astype(tile.dtype).reshape([-1 if k == axis else 1 for k in range(5)])
    last = jax.lax.slice_in_dim(before, before.shape[axis] - extent, before.shape[axis], axis=axis)
    first = jax.lax.slice_in_dim(tile, 0, extent, axis=axis)
    rest = jax.lax.slice_in_dim(tile, extent, tile.shape[axis], axis=axis)
    return jnp.concatenate([last * (1 - weight) + first * weight, rest], axis=axis)
