"""LPIPS with weights from the disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.checkpoints import abstract, save_model
from reangle_jax.errors import InputError
from reangle_jax.models.lpips import Lpips, LpipsConfig
from reangle_jax.scoring import perceptual
from tests.networks import fill_randomly

apply = jax.jit(lambda model, *inputs: model(*inputs))


def build(config):
    model = abstract(lambda: Lpips(config, rngs=nnx.Rngs(0)))
    fill_randomly(model, 0)
    return model


def test_saved_loaded_and_measured(tmp_path, rng):
    config = LpipsConfig("squeeze", divisor=16)
    model = build(config)
    save_model(tmp_path / "lpips", model, config)
    images, references = (rng.integers(0, 256, (2, 32, 40, 3), np.uint8) for _ in range(2))
    got = perceptual.load(tmp_path / "lpips")(images, references)
    assert isinstance(got, np.ndarray)
    want = apply(model, *(jnp.asarray(x, jnp.float32) / 255.0 for x in (images, references)))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_weights_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match=r"^/.*lpips is missing"):
        perceptual.load(tmp_path / "lpips")
    config = LpipsConfig(divisor=16)
    save_model(tmp_path, build(config), config)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"alex"', '"resnet"'))
    with pytest.raises(InputError, match=r"^/.*'resnet': there are alex, vgg, squeeze"):
        perceptual.load(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"divisor": 16', '"divisor": 8'))
    with pytest.raises(InputError, match=r"^(?!.*another network)/.*does not fit the model"):
        perceptual.load(tmp_path)
    with pytest.raises(ValueError, match="divide 16"):
        LpipsConfig(divisor=3)
