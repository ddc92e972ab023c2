"""Texture look-ups in the packed atlas of a scene: bilinear, and between the mip levels around a wanted one."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from training.scenes_objects import NUM_LARGE, NUM_SMALL
from training.scenes_textures import LARGE, SMALL, mip_texels

_BASES = np.cumsum([0] + [mip_texels(LARGE)] * NUM_LARGE + [mip_texels(SMALL)] * NUM_SMALL)
_SIZES = np.array([LARGE] * NUM_LARGE + [SMALL] * NUM_SMALL)


def level_table(texture: Int[Array, "..."], level: Int[Array, "..."]) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
    """First texel in the atlas and side of a texture's mip level (clamped to its last)."""
    top = np.log2(_SIZES).astype(np.int32)
    bases = np.zeros((len(_SIZES), int(top.max()) + 1), np.int32)
    for i, size in enumerate(_SIZES.tolist()):
        for step in range(bases.shape[1]):
            deep = min(step, int(top[i]))
            bases[i, step] = _BASES[i] + mip_texels(size) - mip_texels(size >> deep)
    sides = np.maximum(_SIZES[:, None] >> np.arange(bases.shape[1])[None], 1).astype(np.int32)
    flat = texture * bases.shape[1] + jnp.clip(level, 0, bases.shape[1] - 1)
    return jnp.asarray(bases.reshape(-1))[flat], jnp.asarray(sides.reshape(-1))[flat]


def trilinear(atlas: Array, texture: Array, lod: Array, u: Array, v: Array) -> Float[Array, "3 P"]:
    """Colours in [0, 1]: bilinear on the two mip levels around `lod`, mixed."""
    lod = jnp.clip(lod, 0, float(np.log2(LARGE)) - 0.001)
    level = jnp.floor(lod).astype(jnp.int32)
    part = lod - jnp.floor(lod)
    fine = bilinear(atlas, *level_table(texture, level), u, v, (0, 8, 16))
    coarse = bilinear(atlas, *level_table(texture, level + 1), u, v, (0, 8, 16))
    return jnp.stack([(a + part * (b - a)) / 255 for a, b in zip(fine, coarse, strict=True)])


def bilinear(atlas: Array, base: Array, size: Array, u: Array, v: Array, shifts: tuple[int, ...]) -> list[Array]:
    """Channels (by their bit shift) of packed texels, in [0, 255]; co-ordinates beyond [0, 1] are mirrored."""
    side = size.astype(jnp.float32)
    x, y = _mirror(u) * side - 0.5, _mirror(v) * side - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    a, b = x - left, y - top
    last = size - 1
    x0, y0 = left.astype(jnp.int32), top.astype(jnp.int32)
    columns = [jnp.clip(x0 + i, 0, last) for i in (0, 1)]
    rows = [base + jnp.clip(y0 + i, 0, last) * size for i in (0, 1)]
    taps = [atlas.at[row + column].get(mode="promise_in_bounds") for row in rows for column in columns]
    weights = [(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b]
    byte = jnp.uint32(255)
    return [
        sum(w * ((tap >> shift) & byte).astype(jnp.float32) for w, tap in zip(weights, taps, strict=True))
        for shift in map(jnp.uint32, shifts)
    ]  # pyright: ignore[reportReturnType]


def _mirror(u: Array) -> Array:
    """Folds a co-ordinate into [0, 1]: forwards, backwards, forwards, ..."""
    wrapped = u - 2 * jnp.floor(u / 2)
    return 1 - jnp.abs(1 - wrapped)
