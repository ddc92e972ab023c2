import numpy as np
import pytest

from reangle_jax.errors import InputError
from reangle_jax.geometry.depth import align_frames, pivot_depth, scene_depth


def _clip(frames=9, height=48, width=72):
    """Inverse depth of a slanted ground with a near box that moves to the right."""
    rows = np.linspace(0.1, 1.0, height)[:, None] * np.ones((1, width))
    clip = np.tile(rows, (frames, 1, 1))
    for t in range(frames):
        clip[t, 16:32, 10 + 3 * t : 22 + 3 * t] = 1.6
    return clip


def test_inverse_depth_orders_and_has_a_unit_median():
    depth = scene_depth(_clip(), "inverse", align=False)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth * _clip(), np.median(_clip()), rtol=1e-6)  # z = s / d with one s
    assert np.median(depth) == pytest.approx(1, rel=0.01)


def test_unit_of_the_input_does_not_matter():
    np.testing.assert_allclose(scene_depth(_clip() * 255), scene_depth(_clip()), rtol=1e-5)


def test_zero_inverse_depth_is_the_far_limit():
    clip = _clip()
    clip[:, 0] = 0
    depth = scene_depth(clip)
    np.testing.assert_array_equal(depth[:, 0], np.float32(100))
    assert depth[:, 1:].max() < 20


def test_depth_does_not_breathe(rng):
    clip = _clip(17)
    scale, shift = 1 + 0.2 * rng.standard_normal(17), 0.05 * rng.random(17)
    scale[0], shift[0] = 1, 0
    noisy = clip * (1 + 0.01 * rng.standard_normal(clip.shape))
    flickering = noisy * scale[:, None, None] + shift[:, None, None]
    static = np.s_[:, 36:, :]  # below the box's path
    aligned = align_frames(flickering)
    # The mean over 864 pixels of 1 % noise is known to 0.03 %; the fit's own error and drift get the rest.
    np.testing.assert_allclose(aligned[static].mean((1, 2)), clip[static].mean((1, 2)), rtol=0.01)
    spread = flickering[static].mean((1, 2)).std() / flickering[static].mean()
    assert spread > 0.1  # the test has something to mend


def test_alignment_leaves_steady_depth_alone():
    np.testing.assert_allclose(align_frames(_clip()), _clip(), rtol=1e-6)


def test_alignment_does_not_shrink_under_noise(rng):
    ground = np.tile(_clip(1)[:, :, -1:], (49, 1, 72))
    noisy = ground * (1 + 0.1 * rng.standard_normal(ground.shape))
    aligned = align_frames(noisy)
    spread = aligned.mean(2).std(1)  # of the rows' means: the ground's slant, the noise averaged out
    # Least squares would lose about 4 % at every frame (the noise's share of the variance).
    np.testing.assert_allclose(spread, spread[0], rtol=0.03)


def test_metric_keeps_its_unit_and_takes_zero_for_far():
    metric = 1 / _clip()
    np.testing.assert_allclose(scene_depth(metric, "metric"), metric, rtol=1e-6)
    metric[:, 0] = 0
    assert (scene_depth(metric, "metric")[:, 0] > metric.max()).all()


def test_pivot_is_the_subject_in_the_middle():
    depth = np.full((3, 48, 72), 10.0)
    depth[0, 14:34, 28:44] = 4.0  # a person before a wall: a third of the middle
    depth[0, 44:, :] = 1.0  # the ground at the feet
    assert pivot_depth(depth) == 4.0
    assert pivot_depth(np.full((1, 48, 72), 7.0)) == 7.0


@pytest.mark.parametrize("kind", ["inverse", "metric"])
def test_a_frame_without_depth_is_refused(kind):
    clip = _clip() if kind == "inverse" else 1 / _clip()
    clip[0] = 0
    with pytest.raises(InputError, match=r"^frame 0 is zero everywhere \(counted from 0, of 9\).*config\.start"):
        scene_depth(clip, kind)
    clip[4:6] = 0
    with pytest.raises(InputError, match=r"^3 frames, the first of them 0, are zero everywhere"):
        scene_depth(clip, kind)
    clip[[0, 4, 5], 20, 30] = 1  # one measured pixel is enough to place the rest behind it
    scene_depth(clip, kind)


@pytest.mark.parametrize("kind", ["inverse", "metric"])
def test_the_pivot_is_nothing_that_was_not_measured(kind):
    clip = np.full((9, 48, 72), 10.0)
    clip[:, 20:28, 30:42] = 4.0  # a tenth of the middle; around it nothing was measured in the first frame
    clip[0] = np.where(clip[0] == 4, 4, 0)
    if kind == "inverse":
        clip[clip > 0] = 40 / clip[clip > 0]
    depth = scene_depth(clip, kind, align=False)
    assert pivot_depth(depth) == pytest.approx(depth[1, 24, 36])
    assert depth[1, 24, 36] < 0.5 * depth[1, 0, 0]
    beside = np.roll(depth, 30, axis=2)  # nothing known in the middle of the first frame, but beside it
    assert pivot_depth(beside) == pytest.approx(depth[1, 24, 36])
    beside[0] = depth.max()  # nor there
    assert pivot_depth(beside) == pytest.approx(np.quantile(depth[1:], 0.25))


def _with(value):
    clip = _clip()
    clip[2, 3, 4] = value
    return clip


@pytest.mark.parametrize("kind", ["inverse", "metric"])
@pytest.mark.parametrize(
    ("depth", "says"),
    [
        (_with(np.nan), "NaN"),
        (_with(np.inf), "NaN or infinite"),
        (_with(-0.1), "negative"),
        (np.full((3, 4, 5), 2.0), "constant"),
        (np.zeros((3, 4, 5)), "constant"),
        (np.ones((4, 5)), "shape"),
        (np.ones((0, 4, 5)), "shape"),
        (np.full((3, 4, 5), "a"), "give an array of numbers"),
    ],
)
def test_bad_depth_is_refused(depth, says, kind):
    with pytest.raises(InputError) as caught:
        scene_depth(depth, kind)
    assert says in str(caught.value)


def test_size_and_kind_are_checked():
    with pytest.raises(InputError, match=r"^its shape is \(9, 48, 72\), the video's is \(17, 48, 72\)"):
        scene_depth(_clip(), expect_shape=(17, 48, 72))
    with pytest.raises(InputError, match=r"^depth_kind: "):
        scene_depth(_clip(), "logarithmic")  # pyright: ignore[reportArgumentType]
