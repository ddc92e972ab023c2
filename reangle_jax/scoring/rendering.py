"""Points with features, rendered as small discs that cover each other from front to back.

The rule is that of PyTorch3D's point rasteriser with alpha compositing (Ravi et al., 2020, arXiv 2007.08501), by which
MEt3R is defined: a point is a disc of fixed radius on the screen whose opacity falls with the square of the distance
from its centre; at each pixel the nearest few discs are composited. No loop over points: one sort.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Of the published metric: radius 0.01 where the shorter side spans [-1, 1], and the nearest ten discs of a pixel.
RADIUS, SLOTS = 0.01, 10


class Cover(NamedTuple):
    """What covers each pixel: points, the nearest first, and the share of each in its colour; they add up to at most 1.

    A point is arbitrary where its share is 0; ``covered`` says whether there is any.
    """

    points: Int[Array, "H W K"]
    weights: Float[Array, "H W K"]
    covered: Bool[Array, "H W"]


def cover(
    points: Float[Array, "h w 3"], focal: Float[Array, ""], height: int, width: int, *, radius: float = RADIUS
) -> Cover:
    """Finds the discs that cover each pixel of a camera at the origin that looks along z (OpenCV axes).

    Points with z <= 0 and those not finite are left out. The focal length is in pixels, the principal point the centre,
    the radius of the discs in halves of the shorter side.
    """
    radius = radius * min(height, width) / 2  # pixels from here on
    side = math.floor(2 * radius) + 1  # at most so many pixel centres lie within a disc's diameter
    x, y, z = (axis.reshape(-1) for axis in jnp.unstack(points.astype(jnp.float32), axis=-1))
    good = (z > 0) & jnp.isfinite(x) & jnp.isfinite(y) & jnp.isfinite(z)
    depth = jnp.where(good, z, 1.0)
    # Far outside is far outside: clipped, so that it fits an integer.
    limit = 4.0 * max(height, width)
    u = jnp.clip(jnp.where(good, x / depth * focal + width / 2, -limit), -limit, limit)
    v = jnp.clip(jnp.where(good, y / depth * focal + height / 2, -limit), -limit, limit)
    offsets = jnp.arange(side)
    column = jnp.ceil(u - 0.5 - radius).astype(jnp.int32)[:, None, None] + offsets[None, None, :]
    row = jnp.ceil(v - 0.5 - radius).astype(jnp.int32)[:, None, None] + offsets[None, :, None]
    across = column.astype(jnp.float32) + 0.5 - u[:, None, None]
    down = row.astype(jnp.float32) + 0.5 - v[:, None, None]
    distance = jnp.square(across) + jnp.square(down)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (distance < radius**2)
    nowhere = height * width
    pixel = jnp.where(inside & good[:, None, None], row * width + column, nowhere)
    count = pixel.size
    index = jnp.broadcast_to(jnp.arange(len(z))[:, None, None], pixel.shape)
    opacity = 1.0 - distance / radius**2
    ranked = (pixel, jnp.broadcast_to(depth[:, None, None], pixel.shape), index, opacity)
    pixel, _, index, opacity = jax.lax.sort([field.reshape(-1) for field in ranked], num_keys=2)
    first = jnp.searchsorted(pixel, jnp.arange(nowhere))
    place = jnp.minimum(first[:, None] + jnp.arange(SLOTS)[None, :], count - 1)
    # The last entries repeat where the list ends; an entry counts once.
    fresh = first[:, None] + jnp.arange(SLOTS)[None, :] < count
    valid = fresh & (pixel[place] == jnp.arange(nowhere)[:, None])
    alpha = jnp.where(valid, opacity[place], 0.0)
    through = jnp.cumprod(1.0 - alpha, axis=1)
    through = jnp.concatenate([jnp.ones((nowhere, 1)), through[:, :-1]], axis=1)
    shape = (height, width, SLOTS)
    return Cover(index[place].reshape(shape), (alpha * through).reshape(shape), valid[:, 0].reshape(height, width))


def composite(cover: Cover, features: Float[Array, "h w C"]) -> Float[Array, "H W C"]:
    """The features of the points that cover each pixel, mixed; zeros where none does.

    One slot at a time: all slots at once would be ten copies of the features.
    """
    flat = jnp.asarray(features).reshape(-1, features.shape[-1])

    def add(total: Array, slot: tuple[Array, Array]):
        points, weights = slot
        return total + weights[..., None] * flat[points], None

    slots = jnp.moveaxis(cover.points, -1, 0), jnp.moveaxis(cover.weights, -1, 0)
    total = jnp.zeros((*cover.covered.shape, features.shape[-1]), features.dtype)
    return jax.lax.scan(add, total, slots)[0]
