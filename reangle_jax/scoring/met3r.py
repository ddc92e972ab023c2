"""MEt3R (Asim et al., 2025, arXiv 2501.06336): are two images views of one scene, whatever the cameras?

DUSt3R gives both images' point maps in the first one's camera. Both images' features are carried there by their points
and rendered; where both are seen, they are compared by their cosine. The same with the images exchanged:
``1 - (S12 + S21) / 2`` is 0 for views of one scene and at most 2. No camera needs to be known.

An image's encoder tokens and features do not depend on what it is compared with: `describe` once, `compare` often.

`Met3r(..., stride=2, both=False)` is a cheaper score that ranks candidates alike, for guidance: coarser features and
fewer points, and one way only. Its figures are not MEt3R's; compare them with each other only.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from reangle_jax.models.dino import FeatUp, normalise
from reangle_jax.models.dust3r import Dust3r
from reangle_jax.nn.resize import resize_bilinear
from reangle_jax.nn.vit import VisionTransformer
from reangle_jax.scoring.rendering import RADIUS, Cover, composite, cover

EPSILON = 1e-8


class Described(NamedTuple):
    """What is kept of images: DUSt3R's encoder's tokens, and features at the resolution that is rendered.

    That is the images' own, over the stride.
    """

    tokens: Float[Array, "B h w D"]
    features: Float[Array, "B h2 w2 C"]


class Score(NamedTuple):
    """Consistency of pairs."""

    met3r: Float[Array, " B"]  # 1 - mean similarity both ways; NaN where the images have nothing in common
    overlap: Float[Array, " B"]  # share of pixels that both are seen in, mean of both ways


class OneWay(NamedTuple):
    """Two images' features in the first one's camera; batched where pairs are.

    The similarity is the cosine at each pixel, 0 outside the overlap, which points of both images cover.
    """

    similarity: Float[Array, "*batch H W"]
    overlap: Bool[Array, "*batch H W"]
    rendered1: Float[Array, "*batch H W C"]
    rendered2: Float[Array, "*batch H W C"]


@dataclasses.dataclass(frozen=True)
class Met3r:
    """The metric over two networks split for jit: arrays are arguments, this object is static."""

    dust3r: nnx.GraphDef  # graph of a `Dust3r`
    features: nnx.GraphDef  # graph of a `FeatUp`, or of a `VisionTransformer` whose features are upsampled bilinearly
    # Pixels per rendered pixel and side: every stride-th point is rendered, with features of that resolution, in a
    # picture of that size whose discs cover as many of its pixels. 1 is the published metric.
    stride: int = 1
    both: bool = True  # compare in both images' cameras, as published, or in the first ones' only
    radius: float = RADIUS  # of a point's disc, see `one_way`

    def describe(self, states: tuple[Any, Any], images: Float[Array, "B H W 3"]) -> Described:
        """Tokens and features of images of values 0 to 1.

        For a feature network of another patch size than DUSt3R's they are resized to the nearest multiple of it.

        Raises:
            ValueError: sides that are no multiples of DUSt3R's patch size and of the stride.
        """
        height, width = images.shape[1:3]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height}x{width} are no multiple of the stride {self.stride}: crop them")
        geometry, semantics = (nnx.merge(g, s) for g, s in zip((self.dust3r, self.features), states, strict=True))
        assert isinstance(geometry, Dust3r)
        tokens = geometry.encode(2.0 * images - 1.0)
        shown = _to_patches(images, semantics.config.patch_size)
        if isinstance(semantics, FeatUp):
            # Fewer doublings reach the coarser resolution.
            stages = list(semantics.upsampler.stages)
            semantics.upsampler.stages = nnx.List(stages[: max(1, len(stages) + 1 - self.stride.bit_length())])
            features = semantics(normalise(shown), images)
        else:
            assert isinstance(semantics, VisionTransformer)
            features = semantics.features(normalise(shown))
        size = height // self.stride, width // self.stride
        if features.shape[1:3] != size:
            features = resize_bilinear(features, *size, align_corners=False)
        return Described(tokens, features)

    def compare(self, states: tuple[Any, Any], first: Described, second: Described) -> Score:
        """Scores pairs of described images, as many first as second ones."""
        if self.both:
            return summarise(*self.both_ways(states, first, second))
        return summarise(self.one_way(states, first, second))

    def both_ways(self, states: tuple[Any, Any], first: Described, second: Described) -> tuple[OneWay, OneWay]:
        """Renderings and similarities in the first images' cameras, and in the second ones', batched."""
        count = first.tokens.shape[0]
        # One pass of twice the batch; the features, which are large, are not copied for it.
        seen = self._seen(
            states,
            jnp.concatenate([first.tokens, second.tokens]),
            jnp.concatenate([second.tokens, first.tokens]),
        )
        there, back = jax.tree.map(lambda x: x[:count], seen), jax.tree.map(lambda x: x[count:], seen)
        blend = jax.vmap(_blend)
        return blend(there, first.features, second.features), blend(back, second.features, first.features)

    def one_way(self, states: tuple[Any, Any], first: Described, second: Described) -> OneWay:
        """Renderings and similarities in the first images' cameras, batched."""
        return jax.vmap(_blend)(self._seen(states, first.tokens, second.tokens), first.features, second.features)

    def _seen(self, states: tuple[Any, Any], first: Array, second: Array) -> Cover:
        """What of each pair covers the first images' cameras, see `_cover_both`."""
        a, b = nnx.merge(self.dust3r, states[0]).decode(first, second)
        return jax.vmap(functools.partial(_cover_both, radius=self.radius, stride=self.stride))(a.points, b.points)

    def against(
        self,
        states: tuple[Any, Any],
        candidates: Float[Array, "S H W 3"],
        views: Described,
        count: Int[Array, ""] | int | None = None,
        *,
        chunk: int = 1,
    ) -> Float[Array, "S K"]:
        """MEt3R of every candidate, of values 0 to 1, with every finished view, described once.

        So many candidates (``chunk``) at a time, so that memory does not grow with S: features at 256 pixels take 100
        MB an image. With `both` off, in the finished views' cameras, which are the same for all candidates.

        There may be room for more behind the ``count`` finished views (see `pad_views`). The count may be traced, so
        that one compiled program serves while views are finished one after another; the others cost nothing, their
        columns are NaN.
        """
        count = views.tokens.shape[0] if count is None else count
        places = jnp.arange(views.tokens.shape[0])

        def one(image: Array) -> Array:
            described = self.describe(states, image[None])

            def pair(item: tuple[Array, Described]) -> Array:
                place, view = item
                view = jax.tree.map(lambda x: x[None], view)
                return jax.lax.cond(
                    place < count,
                    lambda: self.compare(states, view, described).met3r[0],
                    lambda: jnp.full((), jnp.nan, jnp.float32),
                )

            return jax.lax.map(pair, (places, views))

        return jax.lax.map(one, candidates, batch_size=chunk)


def pad_views(views: Described, size: int) -> Described:
    """Descriptions with room for more views behind them, for `Met3r.against`: `size` in all."""
    more = size - views.tokens.shape[0]
    return jax.tree.map(lambda x: jnp.pad(x, ((0, more), *[(0, 0)] * (x.ndim - 1))), views)


def _to_patches(images: Float[Array, "B H W 3"], patch: int) -> Float[Array, "B h w 3"]:
    """Images at the nearest size that is a multiple of a patch's, averaged where they shrink."""
    sides = [max(patch, round(side / patch) * patch) for side in images.shape[1:3]]
    if tuple(sides) == images.shape[1:3]:
        return images
    return jax.image.resize(images, (len(images), *sides, 3), "linear", antialias=True)


def summarise(*ways: OneWay) -> Score:
    """The score of pairs from what is seen in their first images' cameras and in their second ones', batched."""
    similarity = jnp.stack([mean_similarity(way) for way in ways])
    overlap = jnp.stack([jnp.mean(way.overlap.astype(jnp.float32), axis=(1, 2)) for way in ways])
    return Score(1.0 - jnp.mean(similarity, axis=0), jnp.mean(overlap, axis=0))


def mean_similarity(way: OneWay) -> Float[Array, " *batch"]:
    """Mean over the overlap; NaN where there is none."""
    count = jnp.sum(way.overlap, axis=(-2, -1)).astype(jnp.float32)
    total = jnp.sum(way.similarity, axis=(-2, -1))
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), jnp.nan)


def one_way(
    points1: Float[Array, "H W 3"],
    points2: Float[Array, "H W 3"],
    features1: Float[Array, "H//{stride} W//{stride} C"],
    features2: Float[Array, "H//{stride} W//{stride} C"],
    *,
    radius: float = RADIUS,
    stride: int = 1,
) -> OneWay:
    """Renders both images' features in the first one's camera, in which both point maps are, and compares them.

    The radius is of a point's disc where the picture's shorter side spans [-1, 1] and the stride (s, see `Met3r`) is 1;
    the published one covers neighbouring pixels from some 200 pixels a side on.
    """
    return _blend(_cover_both(points1, points2, radius=radius, stride=stride), features1, features2)


def _cover_both(points1: Array, points2: Array, *, radius: float, stride: int) -> Cover:
    """What covers each pixel of the first image's camera, of the first image (0 of the leading axis) and second."""
    focal = render_focal(points1) / stride
    thinned = jnp.stack([points1, points2])[:, stride // 2 :: stride, stride // 2 :: stride]
    height, width = thinned.shape[1:3]
    return jax.vmap(lambda points: cover(points, focal, height, width, radius=radius * stride))(thinned)


def _blend(covers: Cover, features1: Array, features2: Array) -> OneWay:
    """Both images' features as they are seen in the first one's camera, and what they have in common."""
    halves = [jax.tree.map(lambda x, k=k: x[k], covers) for k in (0, 1)]
    rendered = [composite(c, f) for c, f in zip(halves, (features1, features2), strict=True)]
    overlap = halves[0].covered & halves[1].covered
    norms = [jnp.maximum(jnp.linalg.norm(r, axis=-1), EPSILON) for r in rendered]
    cosine = jnp.sum(rendered[0] * rendered[1], axis=-1) / (norms[0] * norms[1])
    return OneWay(jnp.where(overlap, cosine, 0.0), overlap, *rendered)


def estimate_focal(points: Float[Array, "H W 3"]) -> Float[Array, ""]:
    """Focal length in pixels of the camera that a point map is of: the median of every pixel's and both axes' votes.

    The lower one of two middle votes; undefined votes (0 / 0) do not count.
    """
    height, width = points.shape[:2]
    x, y, z = jnp.unstack(points.astype(jnp.float32), axis=-1)
    u = jnp.broadcast_to((jnp.arange(width, dtype=jnp.float32) - width / 2)[None, :], x.shape)
    v = jnp.broadcast_to((jnp.arange(height, dtype=jnp.float32) - height / 2)[:, None], y.shape)
    votes = jnp.sort(jnp.concatenate([(u * z / x).reshape(-1), (v * z / y).reshape(-1)]))  # NaN goes last
    count = jnp.sum(~jnp.isnan(votes))
    return votes[jnp.maximum(count - 1, 0) // 2]


def render_focal(points: Float[Array, "H W 3"]) -> Float[Array, ""]:
    """The focal length, in pixels, of the camera that features are rendered with.

    As published, it is ``1 + f / size`` where the picture spans [-1, 1] and not ``2 f / size``: both point maps are
    rendered with it, so that it scales the picture and moves nothing against the other.
    """
    size = min(points.shape[:2])
    return 0.5 * (size + estimate_focal(points))
