"""MEt3R's parts against plain loops in NumPy, and what must hold of the whole."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.models.dino import DinoConfig, JBUStage, VisionTransformer, normalise
from reangle_jax.models.dust3r import Dust3r
from reangle_jax.scoring import networks
from reangle_jax.scoring.met3r import Met3r, estimate_focal, mean_similarity, one_way, pad_views, render_focal
from reangle_jax.scoring.rendering import RADIUS, SLOTS, composite, cover
from tests.scoring.small_scorer import GEOMETRY, random

H, W = 24, 32


def brute_force(points, features, focal, radius, height=H, width=W):
    """Every pixel looks at every point: features, whether covered, straight from the definition."""
    points, features = points.reshape(-1, 3).astype(np.float64), features.reshape(len(points.reshape(-1, 3)), -1)
    radius *= min(height, width) / 2
    keep = (points[:, 2] > 0) & np.isfinite(points).all(-1)
    z = np.where(keep, points[:, 2], 1.0)
    u, v = points[:, 0] / z * focal + width / 2, points[:, 1] / z * focal + height / 2
    image, covered = np.zeros((height, width, features.shape[1])), np.zeros((height, width), bool)
    for row, column in np.ndindex(height, width):
        squared = (column + 0.5 - u) ** 2 + (row + 0.5 - v) ** 2
        (near,) = np.nonzero(keep & (squared < radius**2))
        through = 1.0
        for k in near[np.argsort(z[near], kind="stable")][:SLOTS]:
            alpha = 1 - squared[k] / radius**2
            image[row, column] += through * alpha * features[k]
            through *= 1 - alpha
            covered[row, column] = True
    return image, covered


def random_points(rng, height=H, width=W):
    """A rough surface with a few points behind the camera, undefined or far outside."""
    u, v = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
    z = rng.uniform(1.0, 3.0, (height, width))
    points = np.stack([u * z / 30, v * z / 30, z], -1) + 0.05 * rng.normal(size=(height, width, 3))
    points[0, 0], points[1, 1], points[2, 2], points[3, 3] = (0, 0, -1), (np.nan, 0, 1), (1e30, 0, 1), (1, np.inf, 1)
    return points.astype(np.float32)


@functools.partial(jax.jit, static_argnames="radius")
def render(points, features, radius):
    found = cover(points, jnp.float32(30.0), H, W, radius=radius)
    return composite(found, features), found.covered


@pytest.mark.parametrize("radius", [RADIUS, 0.1, 0.5])  # a fraction of a pixel, one, and crowds of more than ten discs
def test_rendering_equals_the_definition(rng, radius):
    points, features = random_points(rng), rng.normal(size=(H, W, 5)).astype(np.float32)

    with np.errstate(invalid="ignore"):
        want, want_covered = brute_force(points, features, 30.0, radius)
    got, covered = render(points, features, radius=radius)
    # A disc's rim may fall on either side in float32: at most one pixel in a thousand.
    assert np.mean(np.asarray(covered) != want_covered) < 2e-3
    assert np.mean(np.abs(np.asarray(got) - want).max(-1) > 2e-4) < 2e-3


def test_nothing_to_render():
    picture, covered = render(jnp.full((H, W, 3), -1.0), jnp.ones((H, W, 5)), radius=RADIUS)
    assert not np.asarray(covered).any()
    assert not np.asarray(picture).any()


def plane(focal=40.0, tilt=0.3):
    u, v = np.meshgrid(np.arange(W) - W / 2, np.arange(H) - H / 2)
    z = 4.0 / (1.0 - tilt * u / focal)
    return np.stack([u * z / focal, v * z / focal, z], -1).astype(np.float32)


def test_focal_is_the_lower_median_of_all_votes(rng):
    np.testing.assert_allclose(estimate_focal(jnp.asarray(plane())), 40.0, rtol=1e-5)
    np.testing.assert_allclose(render_focal(jnp.asarray(plane())), (H + 40.0) / 2, rtol=1e-5)
    points = random_points(rng)
    with np.errstate(all="ignore"):
        u, v = np.meshgrid(np.arange(W) - W / 2, np.arange(H) - H / 2)
        votes = np.concatenate(
            [(u * points[..., 2] / points[..., 0]).ravel(), (v * points[..., 2] / points[..., 1]).ravel()]
        )
    votes = np.sort(votes[~np.isnan(votes)])
    np.testing.assert_allclose(estimate_focal(jnp.asarray(points)), votes[(len(votes) - 1) // 2], rtol=1e-5)


one_way_jit = jax.jit(one_way, static_argnames=("radius", "stride"))


def test_the_same_image_and_points_agree_fully(rng):
    features = rng.normal(size=(H, W, 6)).astype(np.float32)
    way = one_way_jit(plane(), plane(), features, features, radius=0.1)
    assert float(jnp.mean(way.overlap)) > 0.5
    np.testing.assert_allclose(mean_similarity(way), 1.0, atol=1e-6)


def test_a_plane_seen_by_a_camera_that_moved(rng):
    """Features that are functions of the place on the plane agree; the further one image is altered, the less."""
    points = plane()
    there = np.array([0.4, 0.1, 0.0], np.float32)  # the second camera stands here, in the first one's frame

    def features(places):
        waves = places[..., :1] * np.array([1.0, 0.5, 0.0]) + places[..., 1:2] * np.array([0.0, 0.7, 1.0])
        return np.concatenate([np.cos(waves), np.sin(waves)], -1).astype(np.float32)

    second = plane() + there * np.array([1.0, 1.0, 0.0], np.float32)
    # The plane's points in the second image: the same plane, at the places that the moved camera sees.
    second[..., 2] = 4.0 + 0.3 * second[..., 0]
    noise = rng.normal(size=(H, W, 6)).astype(np.float32)
    scores = []
    for share in (0.0, 0.25, 0.5, 1.0, 2.0):
        way = one_way_jit(points, second, features(points), features(second) + np.float32(share) * noise, radius=0.1)
        scores.append(1 - float(mean_similarity(way)))
    assert scores[0] < 5e-3
    assert all(a < b for a, b in itertools.pairwise(scores))


def test_no_overlap_is_undefined():
    far = plane() + np.array([1e3, 0, 0], np.float32)
    features = np.ones((H, W, 6), np.float32)
    assert np.isnan(float(mean_similarity(one_way_jit(plane(), far, features, features, radius=0.1))))


# The metric is static, so that the tests share a program each, compiled in half the time for a little slower code.
shared = functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
describe = shared(lambda metric, states, images: metric.describe(states, images))
compare = shared(lambda metric, states, first, second: metric.compare(states, first, second))
against = shared(lambda metric, states, *rest: metric.against(states, *rest, chunk=3))


@pytest.fixture(scope="module")
def scorer(scorer_weights):
    """Discs of about a pixel: the published ones are for large pictures."""
    metric, states = networks.load(scorer_weights, "dino")
    return dataclasses.replace(metric, radius=0.06), states


def pictures(seed, count=3):
    """With large patches of colour."""
    rng = np.random.default_rng(seed)
    return jnp.stack([jax.image.resize(rng.uniform(size=(4, 5, 3)), (32, 48, 3), "cubic") for _ in range(count)])


def test_candidates_against_views_equal_single_pairs(scorer):
    metric, states = scorer
    views, candidates = pictures(0), pictures(1, 6)
    described = describe(metric, states, views)
    table = np.asarray(against(metric, states, candidates, described, 3))
    sides = [describe(metric, states, candidates[k : k + 3]) for k in (0, 3)]
    for k in range(3):
        view = jax.tree.map(lambda x, k=k: jnp.repeat(x[k : k + 1], 3, axis=0), described)
        scores = [compare(metric, states, side, view) for side in sides]
        want = np.concatenate([score.met3r for score in scores])
        assert want.std() > 1e-3
        np.testing.assert_allclose(table[:, k], want, atol=2e-5)  # float32, another batch
        assert all(((score.overlap > 0.1) & (score.overlap <= 1)).all() for score in scores)


def test_one_program_while_views_are_finished_one_after_another(scorer):
    metric, states = scorer
    described = describe(metric, states, pictures(0))
    candidates = pictures(1, 6)
    full = np.asarray(against(metric, states, candidates, described, 3))
    before = against._cache_size()
    for count in (1, 2):
        views = pad_views(jax.tree.map(lambda x, n=count: x[:n], described), 3)
        table = np.asarray(against(metric, states, candidates, views, count))
        np.testing.assert_array_equal(table[:, :count], full[:, :count])
        assert np.isnan(table[:, count:]).all()
    assert against._cache_size() == before


def test_the_order_of_two_images_does_not_matter(scorer):
    metric, states = scorer
    described = describe(metric, states, pictures(0))
    others = jax.tree.map(lambda x: x[jnp.asarray([1, 2, 0])], described)
    scores, turned = compare(metric, states, described, others), compare(metric, states, others, described)
    np.testing.assert_allclose(scores.met3r, turned.met3r, atol=1e-6)
    np.testing.assert_allclose(scores.overlap, turned.overlap, atol=1e-6)
    assert (scores.met3r > 1e-3).all()


def test_the_cheap_score_ranks_candidates_alike(scorer):
    """Each candidate is the finished view altered a little more than the one before."""
    metric, states = scorer
    cheap = dataclasses.replace(metric, stride=2, both=False)
    views, other = pictures(0), pictures(1)
    shares = jnp.asarray([0.0, 0.1, 0.25, 0.45, 0.7, 1.0]).reshape(-1, 1, 1, 1)
    candidates = (1 - shares) * views[:1] + shares * other[:1]
    tables = []
    for kind in (metric, cheap):
        described = describe(kind, states, views)
        assert described.features.shape[1:3] == (32 // kind.stride, 48 // kind.stride)
        tables.append(np.asarray(against(kind, states, candidates, described, 1))[:, 0])
    for scores in tables:
        assert abs(scores[0]) < 1e-6  # cosines of equal vectors in float32
        assert scores[-1] > 0.01
    orders = [np.argsort(np.argsort(scores)) for scores in tables]
    assert np.corrcoef(*orders)[0, 1] > 0.9


def test_a_stride_takes_its_points_and_its_focal_length():
    """The coarse picture is the fine one at half the size: a smooth scene's renderings agree where both are covered."""
    points = plane()
    features = np.stack([np.cos(points[..., 0]), np.sin(points[..., 1]), np.ones((H, W))], -1).astype(np.float32)
    coarse = 0.25 * sum(features[i::2, j::2] for i in range(2) for j in range(2))
    # Discs of two fine pixels, so that each pixel is the mean of several, and of one coarse one: of one size.
    fine = one_way_jit(points, points, features, features, radius=2 / 12)
    half = one_way_jit(points, points, coarse, coarse, radius=1 / 12, stride=2)
    assert half.similarity.shape == (H // 2, W // 2)
    assert float(jnp.mean(half.overlap)) > 0.6
    colours = [np.asarray(way.rendered1 / jnp.maximum(way.rendered1[..., 2:], 1e-6)) for way in (fine, half)]
    blocks = 0.25 * sum(colours[0][i::2, j::2] for i in range(2) for j in range(2))
    inner = np.asarray(half.overlap)[2:-2, 2:-2]
    # The point that stands for four is half a pixel off their middle, where features change by 1 / 10 a pixel.
    assert np.abs((blocks - colours[1])[2:-2, 2:-2][inner]).max() < 0.08


def test_images_are_resized_for_the_feature_network_alone():
    """32x48 pixels for patches of 7 and 8: shown at 35x49 to the one, as they are to the other."""
    semantics = random(lambda: VisionTransformer(DinoConfig(16, 1, 2, 7, 5, layer_scale=True), rngs=nnx.Rngs(0)), 4)
    geometry = random(lambda: Dust3r(GEOMETRY, rngs=nnx.Rngs(0)), 1)
    (g1, s1), (g2, s2) = nnx.split(geometry), nnx.split(semantics)
    images = pictures(0, 1)
    got = describe(Met3r(g1, g2), (s1, s2), images)
    assert got.tokens.shape[1:3] == (4, 6)
    shown = jax.image.resize(images, (1, 35, 49, 3), "linear")
    features = jax.jit(lambda model, x: model.features(normalise(x)))(semantics, shown)
    want = jax.image.resize(features, (1, 32, 48, 16), "linear")
    np.testing.assert_allclose(got.features, want, atol=1e-5)


@pytest.mark.parametrize(("stride", "doublings"), [(1, 2), (2, 1), (4, 1)])
def test_a_stride_spares_doublings(scorer_weights, monkeypatch, stride, doublings):
    metric, states = networks.load(scorer_weights, "featup")
    calls, published = [], JBUStage.__call__
    monkeypatch.setattr(JBUStage, "__call__", lambda *inputs: calls.append(0) or published(*inputs))
    describe = dataclasses.replace(metric, stride=stride).describe
    found = jax.eval_shape(describe, states, jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32))
    assert found.features.shape[1:3] == (32 // stride, 48 // stride)
    assert len(calls) == doublings


def test_sizes_that_the_stride_does_not_divide(scorer):
    metric, states = scorer
    with pytest.raises(ValueError, match="no multiple of the stride 3"):
        dataclasses.replace(metric, stride=3).describe(states, jnp.zeros((1, 32, 48, 3)))
