"""The judge of the score: its alterations and its figure."""

import numpy as np
import pytest

from reangle_jax.scoring import networks
from training import judge
from training.judge import KINDS, SHARE, SIDE, altered, auc, covisible, random_blob
from training.views import Views


def test_auc():
    assert auc(np.array([0.1, 0.2]), np.array([0.3, 0.4])) == 1.0
    assert auc(np.array([0.3, 0.4]), np.array([0.1, 0.2])) == 0.0
    assert auc(np.array([0.1, 0.3]), np.array([0.2, 0.3])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_blobs_are_of_the_size_said_and_where_they_may_be(rng):
    allowed = np.zeros((SIDE, SIDE), bool)
    allowed[:, 30:] = True
    sizes = []
    for _ in range(8):
        blob = random_blob(rng, allowed)
        assert blob is not None
        assert allowed[blob].mean() >= judge.COVISIBLE
        sizes.append(blob.mean())
    assert SHARE[0] - 0.01 < min(sizes)
    assert max(sizes) < SHARE[1] + 0.01
    assert random_blob(rng, np.zeros((SIDE, SIDE), bool)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_changed_in_the_blob_alone(rng, kind):
    image, other = rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    blob = np.zeros((SIDE, SIDE), bool)
    blob[40:80, 50:90] = True
    result = altered(rng, image, other, blob, kind)
    near = np.zeros_like(blob)
    near[35:85, 45:95] = True
    np.testing.assert_array_equal(result[~near], image[~near])
    inner = (slice(45, 75), slice(55, 85))
    assert np.abs(result[inner].astype(int) - image[inner]).mean() > 20
    if kind == "replaced":
        np.testing.assert_array_equal(result[inner], other[inner])


def test_what_both_views_see_is_seen_by_both(views):
    both = covisible(views[0])
    assert both.shape == (SIDE, SIDE)
    assert 0.1 < both.mean() < 1
    images, depth, K, poses = views[0]
    assert covisible(Views(images[[0, 0]], depth[[0, 0]], K, poses[[0, 0]])).all()


@pytest.mark.slow
def test_the_report_has_every_figure(views, scorer_weights):
    report = judge.judge(*networks.load(scorer_weights, "dino"), views)
    assert report["pairs"] == 1  # of two: the other scene's views have too little in common
    for rival in ("score", "true_points", "no_geometry"):
        assert set(report[rival]["auc"]) == {*KINDS, "all"}
        assert all(0 <= value <= 1 for value in report[rival]["auc"].values())
        assert all(np.isfinite(value) for value in report[rival]["mean"].values())
    # A picture and itself have one and the same points and features.
    assert abs(report["no_geometry"]["mean"]["itself"]) < 1e-3
    assert abs(report["true_points"]["mean"]["itself"]) < 1e-3
    # Altered pictures' features differ from true ones', whatever the weights.
    means = report["no_geometry"]["mean"]
    assert len({means["true"], *(means[kind] for kind in KINDS)}) == 1 + len(KINDS)


@pytest.mark.slow
def test_the_bundled_networks_score_altered_views_worse(views):
    """On scenes of noise and patterns, which are none of their training's photographs."""
    report = judge.judge(*networks.load("tiny"), views)
    for rival in ("score", "true_points"):
        means = report[rival]["mean"]
        assert means["true"] < 0.9 * min(means["replaced"], means["recoloured"])
    # Knowing the scene's points, a true pair looks consistent; without any geometry it does not.
    assert report["true_points"]["mean"]["true"] < report["no_geometry"]["mean"]["true"]
