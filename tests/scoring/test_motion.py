"""The figures of what moves, on a clip whose answers are known: a bar that passes over a grey wall."""

import numpy as np
import pytest

from reangle_jax.scoring import motion

FRAMES, HEIGHT, WIDTH = 7, 8, 21
WALL, BAR = 100, 200


@pytest.fixture
def clip():
    """A bar three columns wide that moves by its own width each frame: no pixel sees it twice."""
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), WALL, np.uint8)
    for t in range(FRAMES):
        frames[t, :, 3 * t : 3 * t + 3] = BAR
    return frames


def everything(clip):
    return np.ones(clip.shape[:-1], bool)


def still(clip):
    return np.broadcast_to(motion.median_frame(clip), clip.shape)


def test_median_is_the_scene_without_what_passes(clip):
    np.testing.assert_array_equal(motion.median_frame(clip), WALL)


def test_moving_pixels_are_the_bar_where_it_is_seen(clip):
    visible = everything(clip)
    visible[:, : HEIGHT // 2] = False
    np.testing.assert_array_equal(motion.moving(clip, still(clip), visible), visible & (clip[..., 0] == BAR))


def test_forty_grey_levels_of_one_channel_are_the_limit(clip):
    frozen = still(clip)
    warp = frozen.copy()
    warp[0, 0, 0, 2] += motion.THRESHOLD
    warp[0, 0, 1, 1] -= motion.THRESHOLD + 1
    assert np.argwhere(motion.moving(warp, frozen, everything(clip))).tolist() == [[0, 0, 1]]


def test_frozen_scene_gains_nothing_and_errors_elsewhere_do_not_count(clip):
    frozen = still(clip)
    mask = motion.moving(clip, frozen, everything(clip))
    psnr, gain = motion.likeness(frozen, clip, frozen, mask)
    assert psnr == pytest.approx(20 * np.log10(255 / (BAR - WALL)))
    assert gain == 0
    # A bar half as bright as it should be has half the error, 6.02 dB less; what the wall looks like is another matter.
    made = np.zeros_like(clip)
    made[mask] = (WALL + BAR) // 2
    assert motion.likeness(made, clip, frozen, mask).gain == pytest.approx(20 * np.log10(2))
    assert motion.likeness(np.where(mask[..., None], clip, np.uint8(0)), clip, frozen, mask).psnr == np.inf


def test_where_nothing_moves_nothing_is_said(clip):
    frozen = still(clip)
    mask = motion.moving(frozen, frozen, everything(clip))
    assert not mask.any()
    assert np.isnan(motion.likeness(clip, frozen, frozen, mask)).all()
