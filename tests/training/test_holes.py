"""Pictures with the holes of warps: what a moved camera uncovers, and the truth beside what is known."""

import numpy as np
import pytest

from training import holes
from training.dataset import HEIGHT, WIDTH
from training.holes import random_holes, seen_from_elsewhere, there_and_back
from training.pool import ImagePool

K = np.array([[100, 0, WIDTH / 2], [0, 100, HEIGHT / 2], [0, 0, 1]], np.float32)


@pytest.fixture(scope="module")
def pool():
    """One photograph of noise and one square cut-out."""
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    stamp = np.zeros((128, 128, 4), np.uint8)
    stamp[20:108, 20:108] = 255
    return ImagePool((photo,), ("noise",), (), (), stamp[None], ("square",))


def test_what_lies_behind_a_near_thing_is_not_seen_from_the_side():
    """A camera a step to the left sees behind the near thing's left edge, not behind its right one, and no left rim."""
    depth = np.full((HEIGHT, WIDTH), 4.0, np.float32)
    depth[40:90, 80:120] = 2.0
    pose = np.eye(4, dtype=np.float32)
    pose[0, 3] = -0.4  # far things move 10 pixels, near ones 20
    visible = np.asarray(there_and_back(depth, K, pose))
    row = visible[64]
    # The 10 pixels right of the thing are hidden by it there, and the hole is dilated by 2.
    assert not row[120:130].any()
    assert row[132:170].all()
    assert row[14:78].all()
    assert row[82:116].all()
    # The picture's right rim has left the other camera's picture.
    assert not row[WIDTH - 10 :].any()


def test_a_camera_that_stays_sees_everything():
    depth = np.linspace(1, 5, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    assert np.asarray(there_and_back(depth, K, np.eye(4, dtype=np.float32))).all()


def test_what_is_known_is_the_truth_and_holes_are_black(pool):
    shares = []
    for number in range(6):
        found = random_holes(number, pool)
        assert found.picture.shape == found.warp.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_array_equal(found.warp[found.visible], found.picture[found.visible])
        assert not found.warp[~found.visible].any()
        shares.append(1 - found.visible.mean())
    assert all(holes.HOLE[0] < share < holes.HOLE[1] for share in shares)
    again = random_holes(5, pool)
    np.testing.assert_array_equal(again.picture, found.picture)
    np.testing.assert_array_equal(again.visible, found.visible)


def test_a_view_warped_to_another_one_is_close_to_it_where_it_is_known(views):
    found = holes.of_views(np.random.default_rng(2), views)
    away = np.abs(found.picture.astype(int) - found.warp).mean(-1)
    assert found.visible.mean() > 0.4
    assert np.median(away[found.visible]) < 8
    assert np.median(away[~found.visible]) > 20


def test_motions_are_within_what_is_asked_for():
    rng = np.random.default_rng(3)
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    shares = [1 - seen_from_elsewhere(depth, K, rng).mean() for _ in range(10)]
    assert min(shares) > 0.005
    assert max(shares) < 0.5
