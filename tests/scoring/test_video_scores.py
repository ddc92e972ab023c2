"""Which pairs are scored and how they are averaged; temporal flickering; the pictures of a score."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.scoring import maps, networks
from reangle_jax.scoring.met3r import OneWay
from reangle_jax.scoring.video import PairScore, mean_score, score_views, temporal_flickering
from tests.scoring.small_scorer import SIZE


@pytest.fixture(scope="module")
def scorer(scorer_weights):
    return networks.load(scorer_weights, "dino")


def test_views_are_all_unordered_pairs_and_equal_the_metric(scorer, rng):
    metric, states = scorer
    images = rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    scores = list(score_views(metric, states, images))
    assert [(s.first, s.second) for s in scores] == [(0, 1), (0, 2), (1, 2)]
    quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # to compile
    described = quick(metric.describe)(states, jnp.asarray(images, jnp.float32) / 255)
    sides = (jax.tree.map(lambda x, i=i: x[jnp.asarray(i)], described) for i in ([0, 0, 1], [1, 2, 2]))
    direct = quick(metric.compare)(states, *sides)
    np.testing.assert_allclose([s.met3r for s in scores], direct.met3r, atol=2e-5)  # float32, another batch
    np.testing.assert_allclose([s.overlap for s in scores], direct.overlap, atol=2e-3)  # a disc's rim may fall aside


def test_videos_are_compared_moment_by_moment(scorer, rng):
    """Three videos that are one another's copies, frame by frame, and not moment against moment."""
    frames = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    moments = [list(score_views(*scorer, [frame] * 3)) for frame in frames]
    assert len(moments) == 2
    assert all([(s.first, s.second) for s in scores] == [(0, 1), (0, 2), (1, 2)] for scores in moments)
    assert mean_score(itertools.chain(*moments)) == pytest.approx(0, abs=1e-6)
    (across,) = score_views(*scorer, list(frames))
    assert across.met3r is not None
    assert across.met3r > 1e-3


def test_pairs_without_a_score_are_left_out_of_the_mean():
    scores = [PairScore(0, 1, 0.2, 0.5), PairScore(0, 2, None, 0.0), PairScore(1, 2, 0.4, 0.5)]
    assert mean_score(scores) == pytest.approx(0.3)
    assert mean_score(scores[1:2]) is None
    assert mean_score([]) is None


def test_temporal_flickering(rng):
    still = np.full((4, 6, 8, 3), 77, np.uint8)
    assert temporal_flickering(still) == 1.0
    steps = np.broadcast_to(np.array([10, 200, 10], np.uint8).reshape(3, 1, 1, 1), (3, 6, 8, 3))
    assert temporal_flickering(steps) == pytest.approx(1 - 190 / 255)
    frames = rng.integers(0, 256, (5, 6, 8, 3), np.uint8)
    change = np.abs(np.diff(frames.astype(float), axis=0)).mean(axis=(1, 2, 3)).mean()
    assert temporal_flickering(iter(frames)) == pytest.approx(1 - change / 255)
    with pytest.raises(ValueError, match="two frames"):
        temporal_flickering(still[:1])


def test_equal_features_have_equal_colours(rng):
    palette = rng.normal(size=(7, 20)).astype(np.float32)
    labels = rng.integers(0, 7, (2, 12, 16))
    features = palette[labels]
    features[0, :3] = 0  # not seen
    first, second = maps.colour_by_components(*features)
    assert not first[:3].any()
    for label in range(7):
        colours = np.concatenate([first[3:][labels[0, 3:] == label], second[labels[1] == label]])
        assert (colours == colours[0]).all()
    assert len(np.unique(second.reshape(-1, 3), axis=0)) == 7
    assert (second.reshape(-1, 3).min(0) == 0).all()
    assert (second.reshape(-1, 3).max(0) == 255).all()


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_colours_of_few_channels_and_of_nothing(rng, channels):
    nothing = np.zeros((4, 5, channels), np.float32)
    assert not np.stack(maps.colour_by_components(nothing, nothing)).any()
    some = rng.normal(size=(4, 5, channels)).astype(np.float32)
    (picture,) = maps.colour_by_components(some)
    assert picture[..., : min(channels, 3)].any()
    assert not picture[..., channels:].any()


def test_the_score_map_is_black_where_nothing_was_compared():
    overlap = np.zeros((4, 6), bool)
    overlap[:, :3] = True
    similarity = np.where(overlap, np.array([1.0, 0.5, -1.0, 0, 0, 0], np.float32)[None], 0)
    ones = np.ones((4, 6, 2), np.float32)
    pictures = maps.pictures(OneWay(similarity, overlap, ones, ones))  # pyright: ignore[reportArgumentType]
    assert set(pictures) == set(maps.PARTS)
    assert not pictures["score"][~overlap].any()
    brightness = pictures["score"][0, :3].sum(-1)
    assert (np.diff(brightness.astype(int)) > 0).all()
    np.testing.assert_array_equal(pictures["overlap"][..., 0] == 255, overlap)
