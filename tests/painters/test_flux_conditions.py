"""What FLUX is told of a picture with holes, with an autoencoder whose latents are plain means of pixels."""

import types

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.tokens import unpack
from reangle_jax.painters.flux import conditions

RATIO = 4


class Means(Autoencoder):
    """Each latent is the mean of its cell's colours."""

    def __init__(self):
        self.config = types.SimpleNamespace(spatial_compression_ratio=RATIO, shift_factor=0.5, scaling_factor=2.0)

    def encode(self, picture):
        mean = einops.reduce(picture, "b (h p) (w q) c -> b h w c", "mean", p=RATIO, q=RATIO)
        return mean, jnp.full_like(mean, -30.0).at[..., 0].set(0.0)


@pytest.fixture
def picture(rng):
    return jnp.asarray(rng.uniform(-1, 1, size=(2, 16, 24, 3)), jnp.float32)


@pytest.fixture
def visible():
    seen = np.ones((2, 16, 24), bool)
    seen[0, 4:8, 8:16] = False  # two whole cells
    seen[1, 9, 1] = False  # one pixel of a cell, and not its first
    return jnp.asarray(seen)


def test_the_controlnets_condition(picture, visible):
    tokens = conditions.control_condition(Means(), picture, visible, key=None)
    assert tokens.shape == (2, 2 * 3, 4 * 4)
    cells = np.asarray(unpack(tokens, (2, 3)))
    holed = np.where(np.asarray(visible)[..., None], picture, -1.0)
    means = einops.reduce(holed, "b (h p) (w q) c -> b h w c", "mean", p=RATIO, q=RATIO)
    np.testing.assert_allclose(cells[..., :3], (means - 0.5) * 2.0, atol=1e-5)
    np.testing.assert_allclose(cells[0, 1, 2:4, :3], (-1.0 - 0.5) * 2.0, atol=1e-6)  # black
    known = np.ones((2, 4, 6))
    known[0, 1, 2:4] = known[1, 2, 0] = 0  # 1 is known; a narrow hole counts
    np.testing.assert_array_equal(cells[..., 3], known)


def test_fills_condition(picture, visible):
    tokens = conditions.fill_condition(Means(), picture, visible, key=None)
    assert tokens.shape == (2, 6, 4 * 3 + 4 * RATIO**2)
    latents = np.asarray(unpack(tokens[..., :12], (2, 3)))
    np.testing.assert_allclose(latents[0, 1, 2:4], (0.0 - 0.5) * 2.0, atol=1e-6)  # grey
    # diffusers' FluxFillPipeline.prepare_mask_latents: every pixel of a cell is a channel, 1 in the hole.
    by_cell = einops.rearrange(~visible, "b (h y) (w x) -> b h w (y x)", y=RATIO, x=RATIO)
    packed = einops.rearrange(by_cell, "b (h p) (w q) c -> b (h w) (c p q)", p=2, q=2)
    np.testing.assert_array_equal(tokens[..., 12:], packed)


@pytest.mark.parametrize("told", [conditions.control_condition, conditions.fill_condition])
def test_a_filled_picture_is_told_as_it_is_and_its_holes_are_told_all_the_same(picture, visible, told):
    plain = told(Means(), picture, visible, key=None)
    found = told(Means(), picture, visible, key=None, filled=True)
    everywhere = told(Means(), picture, jnp.ones_like(visible), key=None)
    size = 4 * 3  # of the latents in a token; the mask follows
    np.testing.assert_array_equal(found[..., :size], everywhere[..., :size])
    np.testing.assert_array_equal(found[..., size:], plain[..., size:])
    assert np.abs(np.asarray(found - plain)[..., :size]).max() > 0.1


def test_the_condition_is_drawn_by_key(picture, visible):
    draws = [conditions.control_condition(Means(), picture, visible, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    spread = unpack(draws[2] - conditions.control_condition(Means(), picture, visible, key=None), (2, 3))
    assert np.asarray(spread)[..., 0].std() == pytest.approx(2.0, rel=0.3)  # its variance is 1, the scale 2
    assert np.abs(np.asarray(spread)[..., 1:3]).max() < 1e-5
