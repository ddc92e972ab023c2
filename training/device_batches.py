"""Batches that are drawn, cut and altered on the device, where all examples lie: a thread of NumPy starves a GPU."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from training.dust3r_pairs import SAME

STANDING = 0.5  # share of the frames before which cut-outs are stood
SIDE = 96  # of the cut-outs, pixels
CUTOUTS = 3  # at most, before a picture
LARGE = 0.25  # share of the cut-outs that fill much of the picture
PERMUTATIONS = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


def cut_out(stamps: UInt8[np.ndarray, "N S S 4"]) -> dict[str, np.ndarray]:
    """Cut-outs without their borders: ``stamps`` [N, SIDE, SIDE, 4], colours times opacity, and height over width."""
    cut, ratios = [], []
    for stamp in stamps:
        rows, columns = (np.flatnonzero(stamp[..., 3].max(axis) > 127) for axis in (1, 0))
        stamp = stamp[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
        ratios.append(stamp.shape[0] / stamp.shape[1])
        stamp[..., :3] *= stamp[..., 3:] / 255.0
        cut.append(cv2.resize(stamp, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8))
    return {"stamps": np.stack(cut), "ratios": np.array(ratios, np.float32)}


def hats(
    start: Array, length: Array, size: int, out: int, *, inside: bool = True, smooth: bool | Array = True
) -> Float[Array, "out size"]:
    """Weights that resize a stretch of a line: triangles as wide as a pixel of the coarser of both.

    Args:
        start: where the stretch begins, pixels.
        length: of the stretch.
        size: pixels of the line.
        out: pixels of the result.
        inside: the stretch is all inside; else what lies outside is zero.
        smooth: else they are never wider than a pixel of the line, as where a picture is shrunk without a filter.
    """
    place = start + (jnp.arange(out, dtype=jnp.float32) + 0.5) * (length / out) - 0.5
    place = jnp.clip(place, 0, size - 1) if inside else place
    width = jnp.where(smooth, jnp.maximum(length / out, 1.0), 1.0)
    weight = jax.nn.relu(1.0 - jnp.abs(place[:, None] - jnp.arange(size, dtype=jnp.float32)[None, :]) / width)
    return weight / (jnp.sum(weight, 1, keepdims=True) if inside else width)


def resampled(
    rows: Float[Array, "h H"], columns: Float[Array, "w W"], picture: Float[Array, "H W C"]
) -> Float[Array, "h w C"]:
    """A picture by the weights of its rows and columns."""
    return jnp.einsum("hH,HWc,wW->hwc", rows, picture, columns)


def depth_example(
    key: Array,
    image: UInt8[Array, "H W 3"],
    inverse: Float[Array, "H W"],
    other: UInt8[Array, "H W 3"],
    cutouts: dict[str, Array],
    size: tuple[int, int],
) -> tuple[UInt8[Array, "h w 3"], Float[Array, "h w"]]:
    """A random crop of a frame, mirrored half of the time, with colours, blur and noise changed.

    Half of the pictures, where they shrink, shrink as for the published network: without a filter (`preprocess`).
    Before half of them cut-outs stand upright, as a rule persons' shapes on the ground: the inverse depth is all over
    what the ground has where the foot is, and what is nearer hides them. That holds in any unit, and after any shift.
    Any colours will do, for the outline and the foot tell: some take ``other``'s.
    """
    u = iter(jax.random.uniform(key, (17 + 12 * CUTOUTS,)))
    height, width = image.shape[:2]

    def between(low: float, high: float) -> Array:
        return low + (high - low) * next(u)

    tall = height * between(0.5, 1.0)
    wide = jnp.minimum(tall / height * width * between(0.9, 1.0), width)
    lines = (next(u) * (height - tall), tall, height, size[0]), (next(u) * (width - wide), wide, width, size[1])
    mirrored, smooth = next(u) < 0.5, next(u) < 0.5

    def cropped(smooth: bool | Array) -> tuple[Array, Array]:
        rows, columns = (hats(*line, smooth=smooth) for line in lines)
        return rows, jnp.where(mirrored, columns[::-1], columns)

    x = resampled(*cropped(smooth), image.astype(jnp.float32))
    rows, columns = cropped(True)
    inverse = resampled(rows, columns, inverse.astype(jnp.float32)[..., None])[..., 0]
    paint = resampled(rows, columns, other.astype(jnp.float32))
    standing, how_many = next(u) < STANDING, 1 + jnp.floor(CUTOUTS * next(u))
    for k in range(CUTOUTS):
        chosen = jnp.floor(next(u) * len(cutouts["stamps"])).astype(jnp.int32)
        large, a, b, c, d = next(u) < LARGE, next(u), next(u), next(u), next(u)
        tall = size[0] * jnp.where(large, 0.5 + 0.5 * a, 0.15 * 6.0**a)
        foot = size[0] * jnp.where(large, 0.7 + 0.4 * b, 0.45 + 0.65 * b)
        wide = tall / cutouts["ratios"][chosen] * jnp.where(large, 0.6 + 0.9 * c, 0.4 + 0.7 * c)
        middle = size[1] * d
        stamp = cutouts["stamps"][chosen].astype(jnp.float32)
        ys = hats(-(foot - tall) * SIDE / tall, size[0] * SIDE / tall, SIDE, size[0], inside=False)
        xs = hats(-(middle - wide / 2) * SIDE / wide, size[1] * SIDE / wide, SIDE, size[1], inside=False)
        xs = jnp.where(next(u) < 0.5, xs[:, ::-1], xs)  # the cut-out mirrored where it stands
        part = resampled(ys, xs, stamp)
        alpha = part[..., 3:] / 255.0
        colours = jnp.where(next(u) < 0.4, alpha * paint, part[..., :3]) * between(0.4, 1.2)
        row = jnp.clip(foot, 1, size[0]).astype(jnp.int32) - 1
        near = inverse[row, jnp.minimum(middle.astype(jnp.int32), size[1] - 1)]
        near = near * (1.0 + jnp.maximum(0.0, foot - size[0]) / size[0])
        seen = (near >= 0.97 * inverse) & standing & (k < how_many)
        x = jnp.where(seen[..., None], x * (1 - alpha) + colours, x)
        inverse = jnp.where(seen & (alpha[..., 0] > 0.5), near, inverse)
    blur = 0.33 * jnp.maximum(0.0, between(-2.0, 1.0))
    for axis in (0, 1):
        x = (1 - 2 * blur) * x + blur * (_shifted(x, 1, axis) + _shifted(x, -1, axis))
    grey = jnp.mean(x, -1, keepdims=True)
    x = grey + (x - grey) * between(0.3, 1.3)
    x = (x - jnp.mean(grey)) * between(0.7, 1.3) + jnp.mean(grey)
    x = x * between(0.7, 1.3) * jnp.stack([between(0.9, 1.1) for _ in range(3)])[None, None, :]
    x = x + between(0.0, 6.0) * jax.random.normal(jax.random.fold_in(key, 1), x.shape)
    return jnp.clip(x + 0.5, 0, 255).astype(jnp.uint8), inverse


def _shifted(x: Array, by: int, axis: int) -> Array:
    """Moved by a pixel, the border repeated."""
    index = jnp.clip(jnp.arange(x.shape[axis]) + by, 0, x.shape[axis] - 1)
    return jnp.take(x, index, axis)


def altered(frames: dict[str, Array], key: Array, cutouts: dict[str, Array], size: tuple[int, int]) -> dict[str, Array]:
    """Each of the frames as `depth_example` makes it: ``images`` and ``inverse_depth``; what else there is stays."""
    example = jax.vmap(lambda key, image, inverse, other: depth_example(key, image, inverse, other, cutouts, size))
    images = frames["images"]
    keys = jax.random.split(key, len(images))
    images, inverse = example(keys, images, frames["inverse_depth"], images[::-1])
    return frames | {"images": images, "inverse_depth": inverse}


def depth_batch(
    bank: dict[str, Array], key: Array, count: int, size: tuple[int, int], labelled: int = 0
) -> dict[str, Array]:
    """A batch for `train_depth.depth_loss`, ``labelled`` of its frames a teacher's.

    Args:
        bank: ``images`` [N, H, W, 3] and ``inverse_depth`` [N, H, W], exact; the same of a teacher's with ``real_``
            before their names; what `cut_out` gives.
        key: decides everything.
        count: frames.
        size: of the pictures.
        labelled: of the frames.
    """
    keys = jax.random.split(key, 3)
    parts = []
    for kind, one, many in (("", keys[0], count - labelled), ("real_", keys[1], labelled))[: 2 if labelled else 1]:
        index = jax.random.randint(one, (many,), 0, len(bank[kind + "images"]))
        parts.append({name: bank[kind + name][index] for name in ("images", "inverse_depth")})
    frames = jax.tree.map(lambda *x: jnp.concatenate(x), *parts) | {"exact": jnp.arange(count) < count - labelled}
    return altered(frames, keys[2], {name: bank[name] for name in ("stamps", "ratios")}, size)


def pair_batch(
    bank: dict[str, Array], key: Array, count: int, same: float | Array = SAME, *, square: bool = False
) -> dict[str, Array]:
    """A batch as `dust3r_pairs.make_batch` gives it, of a bank of `training.views.Views`' fields, stacked."""
    keys = jax.random.split(key, 8)
    scenes, views, height, width = bank["images"].shape[:4]
    scene = jax.random.randint(keys[0], (count,), 0, scenes)
    first = jax.random.randint(keys[1], (count,), 0, views)
    other = (first + jax.random.randint(keys[2], (count,), 1, views)) % views
    pair = jnp.stack([first, jnp.where(jax.random.uniform(keys[3], (count,)) < same, first, other)])
    left = (width - height) // 2 if square else 0
    window = slice(left, width - left)
    images = bank["images"][scene[None], pair][:, :, :, window]
    depth = bank["depth"][scene[None], pair][:, :, :, window]
    poses, K = bank["camera_to_world"][scene[None], pair], bank["K"][scene]
    K = K.at[:, 0, 2].add(-float(left))
    mirrored = jax.random.uniform(keys[4], (count,)) < 0.5
    images = jnp.where(mirrored[None, :, None, None, None], images[:, :, :, ::-1], images)
    depth = jnp.where(mirrored[None, :, None, None], depth[:, :, :, ::-1], depth)
    flip = jnp.where(mirrored[:, None], jnp.array([-1.0, 1, 1, 1]), jnp.ones(4))
    poses = poses * (flip[:, :, None] * flip[:, None, :])[None]
    images = jnp.take_along_axis(images, _orders(keys[5], count)[None, :, None, None, :], -1)
    light = jax.random.uniform(keys[6], (2, count, 1, 1, 1), minval=0.85, maxval=1.15)
    light = light * jax.random.uniform(keys[7], (2, count, 1, 1, 3), minval=0.95, maxval=1.05)
    images = jnp.clip(images.astype(jnp.float32) * light, 0, 255).astype(jnp.uint8)
    return {"images": images, "depth": depth, "K": K, "poses": poses}


def hole_batch(bank: dict[str, Array], key: Array, count: int) -> dict[str, Array]:
    """Pictures with holes, half of them mirrored, half with their channels exchanged, in other light.

    Args:
        bank: ``picture``, ``shown`` (what is known of it, its holes filled) and ``visible``.
        key: decides everything.
        count: pictures.

    Returns:
        `train_flux.PIXELS`.
    """
    keys = jax.random.split(key, 4)
    pick = jax.random.randint(keys[0], (count,), 0, len(bank["visible"]))
    mirrored = (jax.random.uniform(keys[1], (count,)) < 0.5)[:, None, None]
    order = _orders(keys[2], count)
    light = jax.random.uniform(keys[3], (count, 1, 1, 3), minval=0.85, maxval=1.1)

    def altered(picture: Array) -> Array:
        picture = jnp.where(mirrored[..., None], picture[:, :, ::-1], picture)
        picture = jnp.take_along_axis(picture, order[:, None, None, :], -1)
        return jnp.clip(jnp.round(picture.astype(jnp.float32) * light), 0, 255).astype(jnp.uint8)

    visible = bank["visible"][pick]
    visible = jnp.where(mirrored, visible[:, :, ::-1], visible)
    return {"truth": altered(bank["picture"][pick]), "shown": altered(bank["shown"][pick]), "visible": visible}


def _orders(key: Array, count: int) -> Int[Array, "B 3"]:
    """Of colour channels; half as they are."""
    number = jax.random.randint(key, (count,), 0, 2 * len(PERMUTATIONS))
    return jnp.asarray(np.concatenate([PERMUTATIONS, 0 * PERMUTATIONS + np.arange(3)]))[number]
