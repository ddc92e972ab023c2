"""The small depth network's loss and data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.errors import InputError
from reangle_jax.tiny.train_depth import (
    INPUT,
    Frames,
    correlations,
    depth_loss,
    gradient_difference,
    load_frames,
    load_motorcycle,
    make_batch,
)

loss = jax.jit(depth_loss)


@pytest.fixture
def frames(rng):
    """Pictures whose grey is their inverse depth."""
    ramp = np.linspace(20, 200, 224)[None, None, :] + np.linspace(0, 40, 144)[None, :, None]
    images = np.repeat(np.broadcast_to(ramp, (4, 144, 224))[..., None], 3, axis=-1).astype(np.uint8)
    return Frames(images, (images[..., 0] / 255).astype(np.float16))


def maps(rng, count=2):
    return jnp.asarray(rng.uniform(0.1, 1.0, (count, 24, 32)), jnp.float32)


def test_loss_of_the_truth_over_its_mean_is_zero(rng):
    truth = maps(rng)
    truth = truth / jnp.mean(truth, (1, 2), keepdims=True)
    value, parts = loss(truth, truth, jnp.array([True, True]))
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    assert set(parts) == {"invariant", "gradient", "anchor"}
    # In another unit the truth is the same.
    np.testing.assert_allclose(loss(truth, 7.0 * truth, jnp.array([True, True]))[1]["anchor"], 0.0, atol=1e-5)


def test_scale_and_shift_count_only_where_the_truth_is_known(rng):
    truth = maps(rng)
    prediction = 3.0 * truth + 2.0
    assert float(loss(prediction, truth, jnp.array([False, False]))[0]) < 1e-2
    assert float(loss(prediction, truth, jnp.array([True, True]))[0]) > 0.5


def test_the_teachers_worst_pixels_are_left_out(rng):
    truth = jnp.broadcast_to(jnp.linspace(1.0, 2.0, 32)[None, None], (2, 24, 32))
    # One row in 24: what it does to the median and the deviation of all others is small.
    wrong = truth.at[:, 3].add(2.0)
    exact, labelled = (loss(truth, wrong, jnp.full(2, known))[1]["invariant"] for known in (True, False))
    residual_of_row = float(exact) - float(labelled)
    assert residual_of_row > 0.2
    assert float(labelled) < 0.6 * float(exact)


def test_what_lies_below_zero_is_pushed_up(rng):
    truth = maps(rng)
    slope = jax.grad(lambda p: loss(p, truth, jnp.array([False, False]))[0])(truth - 5.0)
    assert float(jnp.mean(slope)) < 0


def test_gradient_difference_sees_edges_and_not_shifts():
    flat = jnp.full((1, 16, 16), 3.0)
    np.testing.assert_allclose(jax.jit(gradient_difference)(flat), 0.0)
    step = flat.at[:, :, 8:].add(1.0)
    # One of 15, 7, 3 and 1 differences along a row is 1.
    np.testing.assert_allclose(jax.jit(gradient_difference)(step), 1 / 15 + 1 / 7 + 1 / 3 + 1, rtol=1e-6)


def test_batch_is_seeded_and_its_depth_follows_its_picture(frames):
    batch = make_batch(np.random.default_rng(3), 0, scenes=frames, real=frames, size=6)
    assert batch["images"].shape == (6, *INPUT, 3)
    assert batch["images"].dtype == np.uint8
    assert batch["inverse_depth"].dtype == np.float32
    assert batch["exact"].tolist() == [True] * 4 + [False] * 2
    again = make_batch(np.random.default_rng(3), 7, scenes=frames, real=frames, size=6)
    np.testing.assert_array_equal(batch["images"], again["images"])
    # Mirrored, cropped and blurred together.
    assert correlations(batch["images"].mean(-1), batch["inverse_depth"]).min() > 0.9
    alone = make_batch(np.random.default_rng(3), 0, scenes=frames, real=None, size=6)
    assert alone["exact"].all()


def test_correlations_ignore_what_is_not_known(rng):
    truth = rng.uniform(0.1, 1, (2, 8, 8))
    prediction = 2 * truth + 1
    truth[0, 0, 0], truth[1, 3, 3] = np.nan, 0.0
    prediction[0, 0, 0] = 100.0
    np.testing.assert_allclose(correlations(prediction, truth), 1.0)
    np.testing.assert_allclose(correlations(-prediction, truth), -1.0)
    np.testing.assert_array_equal(correlations(np.ones((2, 8, 8)), truth), 0.0)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"labels: .*train\.npz"):
        load_frames(tmp_path / "train.npz")
    with pytest.raises(InputError, match=r"motorcycle_left\.png"):
        load_motorcycle(tmp_path)
