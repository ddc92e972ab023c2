"""The small depth network's loss and data."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.errors import InputError
from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig
from reangle_jax.nn.colours import IMAGENET_MEAN, IMAGENET_STD
from training import depth_frames, records
from training.dataset import Clip
from training.depth_frames import Frames, clip_frames, load_frames, load_motorcycle, make_batch
from training.pool import ImagePool
from training.train_depth import (
    carry_over,
    correlation,
    correlations,
    depth_loss,
    gradient_difference,
    initial_model,
    main,
    principal_patches,
)

loss = jax.jit(depth_loss)


@pytest.fixture
def frames(rng):
    """Pictures whose grey is their inverse depth."""
    ramp = np.linspace(20, 200, 224)[None, None, :] + np.linspace(0, 40, 144)[None, :, None]
    images = np.repeat(np.broadcast_to(ramp, (4, 144, 224))[..., None], 3, axis=-1).astype(np.uint8)
    return Frames(images, (images[..., 0] / 255).astype(np.float16))


def maps(rng, count=2):
    return jnp.asarray(rng.uniform(0.1, 1.9, (count, 24, 32)), jnp.float32)


def test_loss_of_the_truth_over_its_mean_is_zero(rng):
    truth = maps(rng)
    truth = truth / jnp.mean(truth, (1, 2), keepdims=True)
    value, parts = loss(truth, truth, jnp.array([True, True]))
    # Dividing by the mean + 1e-6 errs by 1e-6, over a deviation of 0.2, and again in eight gradients of order 1.
    np.testing.assert_allclose(value, 0.0, atol=3e-5)
    assert set(parts) == {"exact", "teacher", "gradient", "uncorrelated"}
    # In another unit the truth is the same.
    np.testing.assert_allclose(loss(truth, 7.0 * truth, jnp.array([True, True]))[0], 0.0, atol=1e-4)


def test_scale_and_shift_count_only_where_the_truth_is_known(rng):
    truth = maps(rng)
    prediction = 3.0 * truth + 2.0
    # Its part in the loss: both maps over their own deviation.
    assert float(loss(prediction, truth, jnp.array([False, False]))[0]) < 0.03
    assert float(loss(prediction, truth, jnp.array([True, True]))[0]) > 0.5


def test_what_the_correlation_lacks_is_part_of_the_loss(rng):
    truth, prediction = maps(rng), maps(rng)
    found = jax.jit(correlation)(prediction, truth)
    by_hand = [
        np.corrcoef(p.ravel(), t.ravel())[0, 1] for p, t in zip(*map(np.asarray, (prediction, truth)), strict=True)
    ]
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    parts = loss(prediction, truth, jnp.array([True, False]))[1]
    np.testing.assert_allclose(parts["uncorrelated"], 1 - np.mean(by_hand), atol=1e-4)
    # A map without any contrast has no correlation, and a slope that is finite.
    flat = jnp.ones_like(truth)
    np.testing.assert_allclose(jax.jit(correlation)(flat, truth), 0.0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda p: jnp.sum(correlation(p, truth)))(flat)).all()


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


def test_batch_is_seeded_and_a_third_of_it_labelled(frames):
    real = Frames(255 - frames.images, frames.inverse_depth)
    draw = functools.partial(make_batch, scenes=frames, real=real, count=6)
    batch = draw(np.random.default_rng(3), 2)
    assert batch["images"].shape == (6, *frames.images.shape[1:])
    assert batch["exact"].tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(batch["images"][:4], frames.images[:1].repeat(4, 0))
    np.testing.assert_array_equal(batch["images"][4:], real.images[:1].repeat(2, 0))
    np.testing.assert_array_equal(batch["images"], draw(np.random.default_rng(3), 5)["images"])
    assert make_batch(np.random.default_rng(3), 0, scenes=frames, real=None, count=6)["exact"].all()


def test_batches_are_seen_at_each_of_the_sizes_and_have_the_share_of_labels(frames):
    sizes = ((42, 63), (56, 84))
    draw = functools.partial(make_batch, scenes=frames, real=frames, count=6, share=0.5, sizes=sizes)
    found = [draw(np.random.default_rng(k), k) for k in range(16)]
    assert {batch["seen"].shape for batch in found} == {(*size, 0) for size in sizes}
    assert all(batch["exact"].tolist() == [True] * 3 + [False] * 3 for batch in found)


def test_frames_of_clips_come_with_their_inverse_depth(tmp_path, rng):
    clips = [
        Clip(rng.integers(0, 256, (17, 8, 12, 3), np.uint8), rng.uniform(1, 8, (17, 8, 12)).astype(np.float16), "x")
        for _ in range(2)
    ]
    records.write(tmp_path, Clip, 0, clips)
    frames = clip_frames(tmp_path, 12)
    assert len(frames.images) == 12
    np.testing.assert_array_equal(frames.images[7], clips[1].frames[3])
    np.testing.assert_allclose(frames.inverse_depth[7], 1 / clips[1].depth[3].astype(float), rtol=1e-3)
    assert len(clip_frames(tmp_path, 6).images) == 6


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A network, and the folder of its weights."""
    config = dataclasses.replace(DepthAnythingConfig.tiny(), width=16, heads=2, depth=1, taps=(1, 1, 1, 1))
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    model, folder = initial_model(config, 0, pictures), tmp_path_factory.mktemp("old")
    checkpoints.save_model(folder, model, config)
    return model, folder


def test_weights_are_carried_over_to_smaller_patches(old, rng):
    """A network of patches of 7 sees a smooth picture as the one of 14 sees it at twice the size."""
    old, folder = old
    config = old.config
    finer = dataclasses.replace(config, patch_size=7, native_grid=18)
    new = DepthAnything(finer, rngs=nnx.Rngs(1))
    carry_over(new, folder)
    small = cv2.resize(rng.normal(size=(3, 4, 3)).astype(np.float32), (56, 42), interpolation=cv2.INTER_CUBIC)
    large = cv2.resize(small, (112, 84), interpolation=cv2.INTER_CUBIC)
    run = jax.jit(lambda net, x: net.backbone.patch_embed(x))
    fine, coarse = (np.asarray(run(net, jnp.asarray(x)[None])) for net, x in [(new, small), (old, large)])
    np.testing.assert_allclose(fine, coarse, atol=0.03 * np.abs(coarse).max())
    np.testing.assert_array_equal(new.head.conv2.kernel[...], old.head.conv2.kernel[...])
    assert new.backbone.pos_embed[...].shape == (1, 1 + 18 * 18, 16)


def test_a_network_made_for_another_size_gives_there_what_the_old_one_gives(old, rng, tmp_path):
    config = dataclasses.replace(old[0].config, width=144, heads=3)  # more channels than OpenCV resizes
    networks = [
        DepthAnything(dataclasses.replace(config, native_grid=grid), rngs=nnx.Rngs(k)) for k, grid in enumerate((9, 4))
    ]
    checkpoints.save_model(tmp_path, networks[0], networks[0].config)
    carry_over(networks[1], tmp_path)
    side = 4 * config.patch_size
    images = jnp.asarray(rng.normal(size=(1, side, side, 3)), jnp.float32)
    run = jax.jit(lambda net, x: net(x))
    np.testing.assert_allclose(*(run(net, images) for net in networks), atol=1e-5)


def test_a_network_of_twice_the_width_gives_what_the_narrow_one_gave(old, rng):
    old, folder = old
    new = DepthAnything(dataclasses.replace(old.config, width=32), rngs=nnx.Rngs(1))
    carry_over(new, folder)
    images = jnp.asarray(rng.normal(size=(1, 42, 56, 3)), jnp.float32)
    run = jax.jit(lambda net, x: (net.backbone(x), net(x)))
    (tokens, depth), (narrow_tokens, narrow) = run(new, images), run(old, images)
    np.testing.assert_allclose(depth, narrow, atol=1e-4)
    np.testing.assert_allclose(tokens, np.repeat(narrow_tokens, 2, -1), atol=1e-3)
    # The copies differ in what they take, so that they will not stay copies.
    kernel = np.asarray(new.backbone.blocks.layers.fc1.kernel[...])
    assert np.abs(kernel[:, ::2] - kernel[:, 1::2]).max() > 0.05


def test_correlations_ignore_what_is_not_known(rng):
    truth = rng.uniform(0.1, 1, (2, 8, 8))
    prediction = 2 * truth + 1
    truth[0, 0, 0], truth[1, 3, 3] = np.nan, 0.0
    prediction[0, 0, 0] = 100.0
    np.testing.assert_allclose(correlations(prediction, truth), 1.0)
    np.testing.assert_allclose(correlations(-prediction, truth), -1.0)
    np.testing.assert_array_equal(correlations(np.ones((2, 8, 8)), truth), 0.0)


def test_principal_patches_are_white(rng):
    # Smooth pictures: neighbours agree, as in photographs.
    images = np.stack([cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (64, 64)) for _ in range(40)])
    filters = principal_patches(images, 6, 8)
    assert filters.shape == (6, 6, 3, 8)
    assert principal_patches(images, 2, 20).shape == (2, 2, 3, 20)  # of 12 values
    corners = rng.integers(59, size=(40, 50, 2))
    patches = np.stack([i[y : y + 6, x : x + 6] for i, places in zip(images, corners, strict=True) for y, x in places])
    values = np.einsum("nyxc,yxcd->nd", (patches / 255.0 - IMAGENET_MEAN) / IMAGENET_STD, filters)
    # Other patches of the same pictures than those that it was made from, 2000 in 40 pictures: about 10 % of error.
    np.testing.assert_allclose(np.cov(values, rowvar=False), np.eye(8), atol=0.3)


def test_training_starts_near_the_mean_and_keeps_tokens_apart(frames, rng):
    config = dataclasses.replace(DepthAnythingConfig.tiny(), width=32, heads=1, depth=2, taps=(1, 1, 2, 2))
    model = initial_model(config, 0, rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    images = jnp.asarray(rng.normal(size=(2, 42, 56, 3)), jnp.float32)
    tokens, depth = jax.jit(lambda net, x: (net.backbone(x), net(x)))(model, images)
    np.testing.assert_allclose(depth, 1.0, atol=0.5)
    assert float(jnp.std(tokens, axis=1).mean()) > 0.5


def test_frames_are_rendered_once_and_where_they_are_missing(frames, tmp_path, monkeypatch):
    rendered = []

    def render_scene(seed, number, pool):
        rendered.append((seed, number))
        if number == 2 and len(rendered) == 3:
            raise KeyboardInterrupt
        return Frames(frames.images[:3] + np.uint8(number), frames.inverse_depth[:3])

    monkeypatch.setattr(depth_frames, "render_scene", render_scene)
    monkeypatch.setattr(depth_frames, "PART", 2)
    pool = ImagePool((), (), (), (), np.zeros((0, 128, 128, 4), np.uint8), ())
    with pytest.raises(KeyboardInterrupt):
        depth_frames.rendered_frames(tmp_path, "train", 5, 7, pool)
    for _ in range(2):
        found = depth_frames.rendered_frames(tmp_path, "train", 5, 7, pool)
    assert rendered == [(5, 0), (5, 1), (5, 2), (5, 2)]
    assert found.images.shape == (7, 144, 224, 3)
    np.testing.assert_array_equal(found.images[6], frames.images[0] + np.uint8(2))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"labels: .*train\.npz"):
        load_frames(tmp_path / "train.npz")
    with pytest.raises(InputError, match=r"motorcycle_left\.png"):
        load_motorcycle(tmp_path)


def test_a_bank_and_clips_are_not_both_learnt_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_depth", "--workdir", "none", "--bank", "none", "--clips", "none"])
    with pytest.raises(InputError, match="--clips: a bank's frames are learnt from instead"):
        main()
