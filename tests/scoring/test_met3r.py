"""MEt3R's parts against plain loops in NumPy, and what must hold of the whole."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.models.dino import DinoConfig, FeatUp, FeatUpConfig, VisionTransformer
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.scoring.met3r import Met3r, estimate_focal, mean_similarity, one_way, render_focal
from reangle_jax.scoring.rendering import RADIUS, SLOTS, composite, cover

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


@pytest.mark.parametrize("radius", [RADIUS, 0.1, 0.5])  # a fraction of a pixel, one, and crowds of more than ten discs
def test_rendering_equals_the_definition(rng, radius):
    points, features = random_points(rng), rng.normal(size=(H, W, 5)).astype(np.float32)

    @jax.jit
    def render(points, features):
        found = cover(points, jnp.float32(30.0), H, W, radius=radius)
        return composite(found, features), found.covered

    with np.errstate(invalid="ignore"):
        want, want_covered = brute_force(points, features, 30.0, radius)
    got, covered = render(points, features)
    # A disc's rim may fall on either side in float32: at most one pixel in a thousand.
    assert np.mean(np.asarray(covered) != want_covered) < 2e-3
    assert np.mean(np.abs(np.asarray(got) - want).max(-1) > 2e-4) < 2e-3


def test_nothing_to_render(rng):
    found = cover(jnp.full((H, W, 3), -1.0), jnp.float32(30.0), H, W)
    assert not np.asarray(found.covered).any()
    assert not np.asarray(composite(found, jnp.ones((H, W, 2)))).any()


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


def test_the_same_image_and_points_agree_fully(rng):
    features = rng.normal(size=(H, W, 8)).astype(np.float32)
    way = one_way(plane(), plane(), features, features, radius=0.1)
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
        way = one_way(points, second, features(points), features(second) + share * noise, radius=0.1)
        scores.append(1 - float(mean_similarity(way)))
    assert scores[0] < 5e-3
    assert all(a < b for a, b in itertools.pairwise(scores))


def test_no_overlap_is_undefined():
    far = plane() + np.array([1e3, 0, 0], np.float32)
    features = np.ones((H, W, 2), np.float32)
    assert np.isnan(float(mean_similarity(one_way(plane(), far, features, features, radius=0.1))))


def metric(semantics):
    geometry = Dust3r(Dust3rConfig.tiny(), rngs=nnx.Rngs(0))
    (g1, s1), (g2, s2) = nnx.split(geometry), nnx.split(semantics)
    return Met3r(g1, g2), (s1, s2)


@pytest.mark.slow
def test_candidates_against_views_equal_single_pairs(rng):
    score, states = metric(VisionTransformer(DinoConfig.tiny(), rngs=nnx.Rngs(1)))
    images = jnp.asarray(rng.uniform(size=(5, 32, 48, 3)), jnp.float32)
    described = jax.jit(score.describe)(states, images)
    views = jax.tree.map(lambda x: x[3:], described)
    table = jax.jit(score.against)(states, images[:3], views)
    pairs = [(s, 3 + k) for s in range(3) for k in range(2)]
    first, second = (jax.tree.map(lambda x, n=n: x[jnp.asarray([p[n] for p in pairs])], described) for n in range(2))
    single = jax.jit(score.compare)(states, first, second)
    np.testing.assert_allclose(table.reshape(-1), single.met3r, atol=2e-5)
    assert ((single.overlap >= 0) & (single.overlap <= 1)).all()


def test_the_order_of_two_images_does_not_matter(rng):
    score, states = metric(FeatUp(FeatUpConfig.tiny(), rngs=nnx.Rngs(1)))
    both = jax.jit(score.describe)(states, jnp.asarray(rng.uniform(size=(2, 32, 48, 3)), jnp.float32))
    turned = jax.tree.map(lambda x: x[::-1], both)
    scores = np.asarray(jax.jit(score.compare)(states, both, turned).met3r)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
