"""The small DUSt3R's data, loss and figures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from tests.scoring.small_scorer import random
from training import dust3r_start, train_dust3r
from training.dust3r_pairs import halved, make_batch
from training.dust3r_start import initial_model
from training.train_dino import carry
from training.train_dust3r import (
    depth_correlations,
    disagreement,
    first_pairs,
    loss,
    mean_map_error,
    relative_errors,
    true_points,
)
from training.views import first_images

matches = jax.jit(train_dust3r.matches, static_argnums=3)
match_loss = jax.jit(train_dust3r.match_loss)
truth = jax.jit(true_points)
points_of = jax.jit(train_dust3r.points_of)
SMALLEST = dataclasses.replace(
    Dust3rConfig.tiny(),
    encoder_width=16,
    encoder_depth=1,
    encoder_heads=1,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=1,
)


def test_both_images_points_agree_where_both_see_a_spot(views):
    """The second image's points, in the first camera, lie where `carry`, which shares no code, says they are seen."""
    batch = first_pairs(views)
    first, second = (np.asarray(x) for x in truth(batch))
    grid = np.stack(np.meshgrid(np.arange(2, 192, 5), np.arange(2, 128, 5)), -1).reshape(-1, 2) + 0.5
    for k in range(2):  # as they are, the second view's spots in the first; then exchanged
        place, seen = carry(grid, views[0], 1 - k, k)
        column, row = grid[seen].astype(int).T
        point = second[2 * k][row, column]
        pixel = point @ views[0].K.T
        near = point[:, 2] * np.median(first[0][..., 2]) < 1e3
        # Depth is stored in half precision: 5e-4 of it, and a tenth of a pixel at these baselines.
        far = np.abs(pixel[:, :2] / pixel[:, 2:] - place[seen])[near]
        assert np.quantile(far, 0.9) < 0.2
    # The unit is the mean distance of both.
    np.testing.assert_allclose(np.linalg.norm(np.stack([first[0], second[0]]), axis=-1).mean(), 1.0, rtol=1e-4)


def test_the_sky_is_pulled_near(views):
    depth = jnp.full((1, 4, 6), 60.0)
    points = points_of(depth, views[0].K[None])
    np.testing.assert_array_equal(points[..., 2], train_dust3r.FAR)


@pytest.mark.parametrize("half", [False, True])
def test_batches_stay_true_when_cropped_halved_and_mirrored(views, half):
    """Matched patches look alike, in batches of both shapes; others do not."""
    seen = [halved(scene) for scene in views] if half else views
    scale = 2 if half else 1
    same, other = [], []
    for step in range(2):
        batch = make_batch(np.random.default_rng(step), step, views=seen, count=6)
        assert batch["images"].shape == (2, 6, 128 // scale, (128 if step else 192) // scale, 3)
        first, second = truth(batch)
        target, valid = matches(first[:6], second[:6], batch["K"], 8)
        patches = [
            x.astype(float).reshape(6, x.shape[1] // 8, 8, x.shape[2] // 8, 8, 3).mean((2, 4)).reshape(6, -1, 3)
            for x in batch["images"]
        ]
        found = np.take_along_axis(patches[0], np.asarray(target)[..., None], 1)
        same.append(np.abs(found - patches[1]).mean(-1)[np.asarray(valid)])
        other.append(np.abs(np.roll(found, 5, axis=1) - patches[1]).mean(-1)[np.asarray(valid)])
    assert np.median(np.concatenate(same)) < 0.6 * np.median(np.concatenate(other))


def test_a_network_for_half_the_size_is_enlarged_exactly(tmp_path, rng):
    """The large one sees a picture as the small one sees the means of its pixels, and says every point four times."""
    config = dust3r_start.half_size(SMALLEST)
    half = random(lambda: Dust3r(config, rngs=nnx.Rngs(0)), 1)
    checkpoints.save_model(tmp_path, half, config)
    model = dust3r_start.Trained(SMALLEST, rngs=nnx.Rngs(1))
    dust3r_start.start_from(str(tmp_path), model)
    images = rng.uniform(-1, 1, (2, 1, 32, 48, 3)).astype(np.float32)
    means = images.reshape(2, 1, 16, 2, 24, 2, 3).mean((3, 5))
    for large, small in zip(_run(model.dust3r, images), _run(half, means), strict=True):
        expected = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)
        # Patches' means are added up in another order, which a random network multiplies.
        np.testing.assert_allclose(large, expected, atol=1e-4 * np.abs(expected).max())


def test_a_network_twice_as_wide_begins_as_the_narrow_one(tmp_path, rng):
    """Without absolute positions, whose waves are others at twice the width, it says exactly the same."""
    config = dataclasses.replace(SMALLEST, encoder_heads=2, absolute_positions=False)
    narrow = random(lambda: Dust3r(config, rngs=nnx.Rngs(0)), 1)
    checkpoints.save_model(tmp_path, narrow, config)
    model = dust3r_start.Trained(dust3r_start.wide(config), rngs=nnx.Rngs(1))
    dust3r_start.start_from(str(tmp_path), model)
    images = rng.uniform(-1, 1, (2, 1, 32, 48, 3)).astype(np.float32)
    for wide, expected in zip(_run(model.dust3r, images), _run(narrow, images), strict=True):
        np.testing.assert_allclose(wide, expected, atol=1e-4 * np.abs(expected).max())
    kernel = np.asarray(model.dust3r.decoder_embed.kernel[...])  # the copies of an input weigh unlike
    assert np.abs(kernel[::2] - kernel[1::2]).mean() > 0.1 * np.abs(kernel).mean()


def test_the_loss_sees_every_pixel_in_one_of_four_steps(rng):
    x = jnp.asarray(rng.normal(size=(2, 4, 6, 3)))
    for row in range(2):
        for column in range(2):
            found = train_dust3r.every_other(x, jnp.array([row, column]))
            np.testing.assert_array_equal(found, x[:, row::2, column::2])


def _run(network, images):
    graphdef, state = nnx.split(network)
    run = jax.jit(lambda state, a, b: nnx.merge(graphdef, state)(a, b))
    return [np.asarray(view.points) for view in run(state, *images)]


def test_an_image_matches_itself_patch_by_patch(views):
    batch = first_pairs(views)
    points = points_of(batch["depth"][0], batch["K"])
    target, valid = matches(points, points, batch["K"], 8)
    # A patch's middle lies at a pixel's, so that round-off moves no spot into another patch.
    assert bool(jnp.all(valid))
    np.testing.assert_array_equal(target, np.broadcast_to(np.arange(16 * 24), (2, 16 * 24)))


def test_match_loss_of_right_wrong_and_unseen_tokens():
    tokens = np.eye(6, dtype=np.float32)[None]
    order = np.array([[3, 1, 4, 0, 5, 2]])
    everywhere = np.ones((1, 6), bool)
    value, right = match_loss(tokens, tokens[:, order[0]], order, everywhere)
    assert float(right) == 1.0
    # One of six tokens is alike: log(e^10 + 5) - 10 nats.
    np.testing.assert_allclose(value, np.log(np.exp(10.0) + 5) - 10, rtol=1e-2)
    wrong = match_loss(tokens, tokens[:, np.roll(order[0], 1)], order, everywhere)
    np.testing.assert_allclose(wrong[0], np.log(np.exp(10.0) + 5), rtol=1e-5)
    assert float(wrong[1]) == 0.0
    unseen, spoiled = everywhere.copy(), tokens[:, order[0]]
    unseen[0, 2:], spoiled[:, 2:] = False, 0.5
    assert float(match_loss(tokens, spoiled, order, unseen)[1]) == 1.0


def test_errors_have_no_unit_and_are_relative_to_depth(rng):
    true = tuple(rng.uniform(1, 2, (3, 8, 8, 3)) for _ in range(2))
    assert np.abs(relative_errors((3 * true[0], 3 * true[1]), (true[0], true[1]))).max() < 1e-6
    shifted = tuple(x * np.array([1, 1, 1.0]) + np.array([0.3, 0, 0]) for x in true)
    errors = relative_errors((shifted[0], shifted[1]), (true[0], true[1]))
    assert ((errors > 0.05) & (errors < 0.3)).all()


def test_the_mean_map_is_right_where_nothing_varies(views):
    one = views[:1]
    assert mean_map_error(one, one) < 1e-6
    assert mean_map_error(one, views[1:]) > 0.02


def test_correlations_of_depth(rng):
    z = rng.uniform(1, 4, (12, 16))
    inverse = np.where(rng.random((12, 16)) < 0.2, np.nan, 5.0 / z)
    exact = depth_correlations(z, inverse)
    assert exact["motorcycle_depth"] == pytest.approx(1)
    assert exact["motorcycle_inverse"] == pytest.approx(1)
    noise = depth_correlations(rng.uniform(1, 4, (12, 16)), inverse)
    assert abs(noise["motorcycle_depth"]) < 0.4


def test_training_starts_one_unit_straight_ahead(views):
    model = initial_model(SMALLEST, 0, first_images(views))
    bias = np.asarray(model.dust3r.head1.proj.bias[...]).reshape(4, -1)
    assert (bias[:2] == 0).all()
    np.testing.assert_allclose(np.expm1(bias[2]), 1.0, rtol=1e-6)
    block = jax.tree.map(lambda x: x[0], nnx.state(model.dust3r.decoder))
    flat = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(block)}
    query, key = (next(v for k, v in flat.items() if f"first.cross.{name}.kernel" in k) for name in ("to_q", "to_k"))
    np.testing.assert_array_equal(query[...], key[...])


def test_what_disagrees_is_measured_in_tangents(views):
    """The truth agrees with itself, whatever its depth; points a tenth aside at depth one disagree by a tenth."""
    batch = first_pairs(views)
    points = truth(batch)
    K = np.concatenate([batch["K"], batch["K"]])
    apart = jax.jit(disagreement)
    # Half a pixel, at focal lengths of some 150 pixels, is what spots between pixels are off by.
    assert float(apart(points, points, K)) < 0.006
    deeper = (points[0], 3.0 * points[1])
    np.testing.assert_allclose(apart(deeper, points, K), apart(points, points, K), atol=1e-3)
    aside = (points[0], points[1].at[..., 0].add(0.1 * jnp.maximum(points[1][..., 2], 0.1)))
    np.testing.assert_allclose(apart(aside, points, K), 0.1, atol=0.004)


def test_an_image_is_paired_with_itself_as_often_as_asked(views):
    batch = make_batch(np.random.default_rng(0), 0, views=views, count=8, same=1.0)
    np.testing.assert_array_equal(batch["poses"][0], batch["poses"][1])
    assert (
        (make_batch(np.random.default_rng(0), 0, views=views, count=8, same=0.0)["poses"].std(0) > 0).any((1, 2)).all()
    )


@pytest.mark.slow
@pytest.mark.parametrize("agree", [False, True])
def test_steps_down_the_slope_lower_the_error(views, agree):
    graphdef, parameters = nnx.split(initial_model(SMALLEST, 0, first_images(views)))
    batch = make_batch(np.random.default_rng(0), 1, views=[halved(scene) for scene in views], count=2)
    step = jax.jit(jax.value_and_grad(functools.partial(loss, graphdef=graphdef, agree=agree), has_aux=True))
    history = []
    for _ in range(12):
        (value, numbers), slope = step(parameters, batch, jax.random.key(0))
        history.append((float(value), float(numbers["error"]), float(numbers["apart" if agree else "match"])))
        parameters = jax.tree.map(lambda p, g: p - 0.02 * g, parameters, slope)
    assert all(last < first for first, last in zip(history[0], history[-1], strict=True))
