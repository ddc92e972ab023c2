"""The public model class on very small random networks; its values are compared in tests/parity/test_pipelines.py."""

import json

import jax
import numpy as np
import pytest
from networks import FRAMES, HEIGHT, WIDTH

from reangle_jax.backbones.cogvideox import networks
from reangle_jax.backbones.cogvideox.pipeline import CogVideoX, load_schedule
from reangle_jax.backbones.cogvideox.sampling import latent_frames
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig


@pytest.fixture(scope="module")
def model(small_weights):
    return CogVideoX.load(small_weights)


@pytest.mark.slow
def test_videos_of_a_prompt_and_a_key(rng, model):
    picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

    def run(seed):
        return model("a cat", picture, key=jax.random.key(seed), steps=2, videos_per_prompt=2)

    first, other = run(1), run(2)
    assert first.shape == (2, FRAMES, HEIGHT, WIDTH, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, run(1))
    assert not np.array_equal(first, other)
    # One program for all calls with the same options.
    assert len(model._samplers) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "an image and a text"),
        ({"image": np.zeros((HEIGHT, WIDTH, 3), np.float32)}, "give bytes"),
        ({"image": np.zeros((3, HEIGHT, WIDTH, 3), np.uint8)}, "3 images for 2 prompts"),
        ({"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8), "height": 64}, "resize the image instead"),
        ({"image": np.zeros((HEIGHT, WIDTH + 8, 3), np.uint8)}, "multiples of 16"),
        ({"image": np.zeros((HEIGHT, WIDTH + 16, 3), np.uint8)}, "positions are for 64x64 only"),
        ({"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8), "num_frames": 6}, "not 1 \\+ 4k: give such as 5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments(model, arguments, message):
    with pytest.raises(InputError, match=message):
        model(["a cat", "a dog"], key=jax.random.key(0), **arguments)


def test_the_schedule_is_the_folders_or_the_kinds(tmp_path):
    assert load_schedule(tmp_path, TransformerConfig.cogvideox_5b()) == Schedule()
    assert load_schedule(tmp_path, TransformerConfig.cogvideox_2b()) == Schedule(snr_shift_scale=3.0)
    fields = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(fields | {"snr_shift_scale": 2.0}))
    assert load_schedule(tmp_path, TransformerConfig.cogvideox_5b()).snr_shift_scale == 2.0
    (tmp_path / "scheduler_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_schedule(tmp_path, TransformerConfig.cogvideox_5b())


@pytest.mark.parametrize(
    ("config", "frames", "expected"),
    [
        (TransformerConfig.cogvideox_5b_i2v(), 49, (13, 0)),
        (TransformerConfig.cogvideox1_5_5b_i2v(), 81, (22, 1)),
        (TransformerConfig.cogvideox1_5_5b_i2v(), 85, (22, 0)),
    ],
)
def test_latent_frames(config, frames, expected):
    assert latent_frames(config, VAEConfig(), frames) == expected


@pytest.mark.parametrize(
    ("tiles", "size", "expected"),
    [
        ("on", (64, 64), True),
        ("off", (768, 1360), False),
        ("auto", (480, 720), False),
        ("auto", (768, 1360), True),
        ("auto", None, False),
    ],
)
def test_when_frames_are_tiled(small_weights, tiles, size, expected):
    vae = networks.describe_vae(small_weights / "vae", tiles=tiles, size=size)
    assert vae.config.tile_sample == ((240, 360) if expected else None)
