"""The small feature network's data and loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.models.dino import DinoConfig
from training import train_dino
from training.train_dino import CROP, carry, initial_model, make_batch
from training.views import first_images

PATCH = 8
SIDE = CROP // PATCH
sample = jax.jit(train_dino.sample)
SMALLEST = DinoConfig(width=16, depth=1, heads=1, patch_size=PATCH, native_grid=SIDE)


def test_a_spot_of_a_view_lies_in_that_view_where_it_is(views):
    grid = np.stack(np.meshgrid(np.arange(192), np.arange(128)), -1).reshape(-1, 2) + 0.5
    place, seen = carry(grid, views[0], 2, 2)
    assert seen.all()
    np.testing.assert_allclose(place, grid, atol=1e-3)


def test_a_spot_carried_there_and_back_is_where_it_was(views):
    grid = np.stack(np.meshgrid(np.arange(4, 192, 8), np.arange(4, 128, 8)), -1).reshape(-1, 2) + 0.5
    place, seen = carry(grid, views[1], 0, 3)
    back, seen_again = carry(np.floor(place[seen]) + 0.5, views[1], 3, 0)
    # Rounded to a pixel's middle on the way: half a pixel, and what a slanted surface makes of it.
    far = np.linalg.norm(back - grid[seen], axis=1)[seen_again]
    assert np.quantile(far, 0.9) < 1.5


def test_places_point_at_patches_that_look_alike(views):
    batch = make_batch(np.random.default_rng(1), 0, views=views, count=8, patch=PATCH)
    assert batch["images"].shape == (2, 8, CROP, CROP, 3)
    assert batch["places"].shape == (2, 8, SIDE**2, 2)
    assert 0.1 < batch["valid"].mean() < 0.9
    same, other = [], []
    for k in range(2):
        own, there = (
            x.astype(float).reshape(8, SIDE, PATCH, SIDE, PATCH, 3).mean((2, 4)) for x in batch["images"][[k, 1 - k]]
        )
        column, row = np.clip(np.round(batch["places"][k]), 0, SIDE - 1).astype(int).transpose(2, 0, 1)
        found = there[np.arange(8)[:, None], row, column]
        difference = np.abs(found - own.reshape(8, -1, 3)).mean(-1)[batch["valid"][k]]
        same.append(difference)
        other.append(np.abs(np.roll(found, 17, axis=1) - own.reshape(8, -1, 3)).mean(-1)[batch["valid"][k]])
    assert np.median(np.concatenate(same)) < 0.6 * np.median(np.concatenate(other))


def test_sampling_between_patches_is_linear_and_clamped(rng):
    a, b, c = rng.normal(size=(3, 5)).astype(np.float32)
    y, x = np.mgrid[:6, :8].astype(np.float32)
    features = (y[..., None] * a + x[..., None] * b + c)[None]
    places = np.array([[[0, 0], [7, 5], [2.25, 3.5], [-3, 1], [9, 7]]], np.float32)
    inside = np.clip(places, 0, [7, 5])[0]
    np.testing.assert_allclose(sample(features, places)[0], inside[:, 1:] * a + inside[:, :1] * b + c, atol=1e-5)


def test_the_loss_is_least_where_student_and_teacher_agree_on_spots(views):
    """Features that are the spots' own colours do better than random ones, and count only valid spots."""
    batch = make_batch(np.random.default_rng(2), 0, views=views, count=4, patch=PATCH)

    class Colours(nnx.Module):
        def __init__(self, noise):
            self.noise = nnx.Param(jnp.float32(noise))

        def features(self, images):
            means = images.reshape(images.shape[0], SIDE, PATCH, SIDE, PATCH, 3).mean((2, 4))
            return means + self.noise[...] * jax.random.normal(jax.random.key(1), means.shape)

    values = {}
    for noise in (0.0, 10.0):
        graphdef, state = nnx.split(Colours(noise))
        loss = jax.jit(functools.partial(train_dino.loss, graphdef=graphdef))
        values[noise], numbers = loss(state, batch, jax.random.key(0), state)
        assert 0 <= float(numbers["found"]) <= 1
        hidden = batch | {"valid": np.zeros_like(batch["valid"])}
        assert float(loss(state, hidden, jax.random.key(0), state)[0]) == 0
    assert float(values[0.0]) < float(values[10.0]) - 0.5


@pytest.mark.slow
def test_steps_down_the_slope_find_more_spots_again(views):
    graphdef, parameters = nnx.split(initial_model(SMALLEST, 0, first_images(views)))
    batch = make_batch(np.random.default_rng(3), 0, views=views, count=3, patch=PATCH)
    step = jax.jit(jax.value_and_grad(functools.partial(train_dino.loss, graphdef=graphdef), has_aux=True))
    teacher, history = parameters, []
    for _ in range(12):
        (value, numbers), slope = step(parameters, batch, jax.random.key(0), teacher)
        history.append((float(value), float(numbers["found"])))
        parameters = jax.tree.map(lambda p, g: p - 0.05 * g, parameters, slope)
        teacher = jax.tree.map(lambda t, p: 0.5 * t + 0.5 * p, teacher, parameters)
    assert history[-1][0] < 0.97 * history[0][0]
    assert history[-1][1] > history[0][1]
