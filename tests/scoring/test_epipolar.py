"""SED and TSED on procedural views with true and wrong cameras, and its parts on points whose cameras are known."""

import itertools

import numpy as np
import pytest

from reangle_jax.scoring import epipolar
from training.scenes import random_scene, render

H, W = 128, 192
K = np.array([[170.0, 0, W / 2], [0, 170.0, H / 2], [0, 0, 1]])


def pose(yaw=0.0, shift=(0.0, 0.0, 0.0)):
    cosine, sine = np.cos(yaw), np.sin(yaw)
    matrix = np.eye(4)
    matrix[:3, :3] = [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]
    matrix[:3, 3] = shift
    return matrix


POSES = np.stack([pose(), pose(-0.05, (0.25, 0.0, 0.0)), pose(-0.09, (0.45, -0.1, 0.05))])
KS = np.stack([K] * 3)


@pytest.fixture(scope="module")
def views():
    """Three views of one moment of one scene."""
    scene, _ = random_scene(np.random.default_rng(7))
    rgb, _ = render(scene, KS.astype(np.float32), POSES.astype(np.float32), np.zeros(3, np.float32), H, W)
    return np.round(255 * np.clip(np.asarray(rgb), 0, 1)).astype(np.uint8)


def test_true_cameras_agree_and_wrong_ones_do_not(views):
    true = epipolar.tsed(views, KS, POSES)
    assert [(p.first, p.second) for p in true.pairs] == [(0, 1), (1, 2)]
    assert all(p.matches >= 20 for p in true.pairs)
    assert true.tsed == 1.0
    assert true.sed is not None
    assert true.sed < 0.3  # SIFT's own precision

    # The images moved sideways; the cameras say that they moved up.
    wrong = np.stack([pose(0, (0, 0.3 * k, 0)) for k in range(3)])
    other = epipolar.tsed(views, KS, wrong)
    assert other.tsed == 0.0
    assert other.sed is not None
    assert other.sed > 10 * true.sed
    assert [p.matches for p in other.pairs] == [p.matches for p in true.pairs]


def test_a_small_error_of_the_camera_shows_and_the_threshold_decides(views):
    tilted = POSES.copy()
    angle = 1.0 / K[0, 0]  # about one pixel
    tilted[1, :3, :3] = tilted[1, :3, :3] @ [
        [1, 0, 0],
        [0, np.cos(angle), -np.sin(angle)],
        [0, np.sin(angle), np.cos(angle)],
    ]
    off = epipolar.tsed(views, KS, tilted, [(0, 1)])
    assert off.sed == pytest.approx(1.0, abs=0.3)
    assert off.tsed == 1.0
    assert epipolar.tsed(views, KS, tilted, [(0, 1)], max_error=0.5).tsed == 0.0


def test_too_few_matches_are_inconsistent_and_have_no_distance(views):
    grey = np.full_like(views[0], 128)
    mixed = epipolar.tsed([views[0], views[1], grey], KS, POSES)
    assert mixed.tsed == 0.5
    assert mixed.pairs[1] == epipolar.PairSed(1, 2, 0, None, True)
    assert mixed.sed == mixed.pairs[0].sed
    nothing = epipolar.tsed([grey, grey], KS[:2], POSES[:2])
    assert (nothing.tsed, nothing.sed) == (0.0, None)
    many = mixed.pairs[0].matches + 1
    strict = epipolar.tsed(views[:2], KS[:2], POSES[:2], min_matches=many)
    assert (strict.tsed, strict.sed) == (0.0, None)


def test_cameras_at_one_place_are_left_out(views):
    poses = np.stack([pose(0.1, (3, 2, 1)), pose(0.0, (3, 2, 1)), pose(-0.05, (3.25, 2, 1))])
    result = epipolar.tsed(views, KS, poses)
    assert result.pairs[0].sed is None
    assert not result.pairs[0].has_baseline
    assert result.pairs[1].has_baseline
    assert result.tsed in (0.0, 1.0)  # of one pair
    alone = epipolar.tsed(views, KS, poses, [(0, 1)])
    assert (alone.tsed, alone.sed) == (None, None)


def test_all_pairs_of_views_of_one_moment(views):
    result = epipolar.tsed(views, KS, POSES, [*itertools.combinations(range(3), 2)])
    assert [(p.first, p.second) for p in result.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert result.tsed == 1.0


@pytest.mark.usefixtures("unchecked")
def test_one_camera_an_image(views):
    with pytest.raises(ValueError, match="3 images, 2 K"):
        epipolar.tsed(views, KS[:2], POSES)
    with pytest.raises(ValueError, match="two or more"):
        epipolar.tsed(views[:1], KS[:1], POSES[:1])


def test_keypoints_have_pixel_centres_at_a_half(views):
    """An image turned by half a turn: every point goes to (W - x, H - y)."""
    places, turned = epipolar.match(epipolar.keypoints(views[0]), epipolar.keypoints(views[0][::-1, ::-1]))
    assert len(places) > 50
    np.testing.assert_allclose(np.median(places + turned, axis=0), [W, H], atol=0.02)


def test_distance_of_known_points(rng):
    """Points in space lie on the lines of two different cameras; moved off them, as far away as they were moved."""
    points = rng.uniform([-1, -1, 3], [1, 1, 6], (50, 3))
    K2 = K + np.array([[30.0, 0, 7], [0, -20, -5], [0, 0, 0]])
    second = pose(0.2, (0.5, 0.2, -0.3))

    def project(K, pose):
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        image = local @ K.T
        return image[:, :2] / image[:, 2:]

    matrix = epipolar.fundamental(K, pose(), K2, second)
    assert matrix is not None
    there, here = project(K2, second), project(K, pose())
    np.testing.assert_allclose(epipolar.epipolar_distance(here, there, matrix), 0, atol=1e-9)
    # Moved across its line by 3 pixels in the second image: distance 3 there, and something in the first.
    lines = np.concatenate([here, np.ones((50, 1))], 1) @ matrix.T
    normals = lines[:, :2] / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    moved = epipolar.epipolar_distance(here, there + 3 * normals, matrix)
    backwards = np.concatenate([there + 3 * normals, np.ones((50, 1))], 1) @ matrix
    own = np.abs(np.sum(backwards[:, :2] * here, 1) + backwards[:, 2]) / np.linalg.norm(backwards[:, :2], axis=1)
    np.testing.assert_allclose(moved, 0.5 * (3 + own), rtol=1e-9)
    # The same from either side.
    opposite = epipolar.fundamental(K2, second, K, pose())
    assert opposite is not None
    np.testing.assert_allclose(epipolar.epipolar_distance(there + 3 * normals, here, opposite), moved, rtol=1e-6)
