"""The autoencoder's training data, its loss's weights, and the start from a network of another shape."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from tests.networks import fill_randomly
from training import train_vae
from training.movers import moving_things
from training.pool import ImagePool

WALL, THING = 60, 220


@pytest.fixture(scope="module")
def pool():
    """One grey photograph and one white cut-out."""
    stamp = np.zeros((128, 128, 4), np.uint8)
    stamp[20:108, 40:88] = (THING, THING, THING, 255)
    photo = np.full((200, 300, 3), WALL, np.uint8)
    return ImagePool((photo,), ("wall",), (), (), stamp[None], ("thing",))


@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_movers_pass_over_a_scene_that_stands_still(pool, size):
    clips = np.stack([moving_things(pool, np.random.default_rng(k), 9, *size) for k in range(12)])
    assert clips.shape == (12, 9, *size, 3)
    assert clips.dtype == np.uint8
    covered = clips.max(-1) != WALL
    # Seen and small: the scene is most of every clip, and most clips show something.
    assert 0.02 < covered.mean() < 0.5
    assert (covered.any((1, 2, 3)).mean()) > 0.7
    moved = np.abs(np.diff(clips.astype(int), axis=1)).max(-1) > 40
    assert moved.any((1, 2, 3)).mean() > 0.7
    assert not moved[~(covered[:, 1:] | covered[:, :-1])].any()


def test_movers_are_the_generators(pool):
    first, again, other = (moving_things(pool, np.random.default_rng(k), 5, 32, 32) for k in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_weights_are_four_times_as_high_where_things_move():
    grey = np.full((1, 5, 4, 10, 3), 0.0, np.float32)
    for t in range(5):
        grey[0, t, :, 2 * t] = 50 / 127.5  # a bar that passes
    weights = np.asarray(train_vae.moving_weights(jnp.asarray(grey)))
    assert weights.shape == (1, 5, 4, 10, 1)
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    bar = grey[..., :1] > 0
    np.testing.assert_allclose(weights[bar] / weights[~bar].min(), train_vae.MOVING_WEIGHT, rtol=1e-5)
    assert np.ptp(weights[~bar]) == 0


def test_a_new_shape_inherits_the_finest_levels():
    shape = VAEConfig(block_out_channels=(4, 8, 12, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4)
    other = dataclasses.replace(shape, block_out_channels=(4, 8, 12), latent_channels=6)
    old, new = (checkpoints.abstract(lambda config=config: VAE(config, rngs=nnx.Rngs(0))) for config in (shape, other))
    for seed, vae in enumerate((old, new)):
        fill_randomly(vae, seed)
    before = {path: np.asarray(value[...]) for path, value in checkpoints.parameter_paths(new).items()}
    theirs = {path: np.asarray(value[...]) for path, value in checkpoints.parameter_paths(old).items()}
    taken = train_vae.inherit(new, old)
    after = {path: np.asarray(value[...]) for path, value in checkpoints.parameter_paths(new).items()}
    pairs = {
        "encoder.levels.1.blocks.0.conv1.conv.kernel": "encoder.levels.1.blocks.0.conv1.conv.kernel",
        "decoder.levels.2.blocks.0.conv1.conv.kernel": "decoder.levels.3.blocks.0.conv1.conv.kernel",
        "decoder.ups.1.conv.kernel": "decoder.ups.2.conv.kernel",
        "decoder.conv_out.conv.kernel": "decoder.conv_out.conv.kernel",
    }
    for mine, source in pairs.items():
        assert mine in taken
        np.testing.assert_array_equal(after[mine], theirs[source])
    # Latents are other ones: what reads or writes them starts anew.
    for path in ("decoder.conv_in.conv.kernel", "encoder.conv_out.conv.kernel", "decoder.norm_out.scale.kernel"):
        assert path not in taken
        np.testing.assert_array_equal(after[path], before[path])
