"""The small upsampler's data and loss."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.dino import DinoConfig, FeatUpConfig, VisionTransformer
from training import train_featup
from training.train_featup import SIDE, initial_model, make_batch, upsampler_alone

cut_out = jax.jit(train_featup.cut_out, static_argnums=(2, 3))
SMALLEST = FeatUpConfig(width=8, depth=1, heads=1, patch_size=8, native_grid=8, key_width=4, radius=1, stages=3)


def backbone(folder):
    numbers = {name: getattr(SMALLEST, name) for name in ("width", "depth", "heads", "patch_size", "native_grid")}
    config = DinoConfig(**numbers)
    checkpoints.save_model(folder, VisionTransformer(config, rngs=nnx.Rngs(3)), config)
    return folder


def test_the_part_is_what_the_window_shows(views):
    batch = make_batch(np.random.default_rng(0), 0, views=views, count=6)
    assert batch["whole"].shape == batch["part"].shape == (6, SIDE, SIDE, 3)
    whole = batch["whole"].astype(np.float32)
    seen = np.asarray(cut_out(whole, batch["window"], 16, 16))
    part = batch["part"].reshape(6, 16, 4, 16, 4, 3).mean((2, 4))
    # Both are means over the same four by four pixels' worth of the window, one interpolated cubically.
    assert np.abs(seen - part).mean() < 4
    assert np.abs(seen - np.roll(part, 1, axis=2)).mean() > 1.5 * np.abs(seen - part).mean()


def test_windows_of_a_ramp_are_ramps():
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    features = np.stack([x, y], -1)[None]
    window = np.array([[10, 20, 32]], np.float32)
    middles = (np.arange(8) + 0.5) * 4
    expected = np.stack(np.broadcast_arrays(10 + middles[None, :], 20 + middles[:, None]), -1)
    np.testing.assert_allclose(cut_out(features, window, 8, 8)[0], expected, atol=1e-4)


def test_the_whole_picture_is_patches_means(rng):
    features = rng.normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    window = np.array([[0, 0, SIDE]], np.float32)
    means = features.reshape(1, 16, 4, 16, 4, 3).mean((2, 4))
    np.testing.assert_allclose(cut_out(features, window, 16, 16), means, atol=1e-5)


def test_difference_is_relative_to_variance(rng):
    a = rng.normal(size=(2, 4, 4, 5)).astype(np.float32)
    difference = jax.jit(train_featup.difference)
    assert float(difference(a, a)) == 0
    mean = np.broadcast_to(a.mean((0, 1, 2), keepdims=True), a.shape)
    np.testing.assert_allclose(difference(mean, a), 1.0, rtol=1e-5)  # the mean explains nothing
    np.testing.assert_allclose(difference(3 * a + 1, 3 * a), 1 / (9 * np.var(a - mean)), rtol=1e-4)


def test_only_the_upsampler_is_free(tmp_path):
    graphdef, parameters = nnx.split(initial_model(SMALLEST, 0, backbone(tmp_path / "dino")))
    del graphdef
    for path, factor in checkpoints.parameter_paths(upsampler_alone(parameters)).items():
        assert float(factor[...]) == path.startswith("upsampler."), path


@pytest.mark.slow
def test_steps_down_the_slope_lower_the_loss_of_unseen_parts(views, tmp_path):
    graphdef, parameters = nnx.split(initial_model(SMALLEST, 0, backbone(tmp_path / "dino")))
    batches = [make_batch(np.random.default_rng(k), k, views=views, count=2) for k in range(2)]
    loss = functools.partial(train_featup.loss, graphdef=graphdef)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    free = upsampler_alone(parameters)
    losses = []
    for _ in range(8):
        (value, numbers), slope = step(parameters, batches[0], jax.random.key(0))
        losses.append(float(value))
        assert float(numbers["bilinear"]) > 0
        parameters = jax.tree.map(lambda p, g, f: p - 0.3 * f * g, parameters, slope, free)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]
    assert np.isfinite(float(step(parameters, batches[1], jax.random.key(0))[0][0]))
