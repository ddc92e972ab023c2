"""Whole published pipelines, from a prompt and an image to frames, against ours on the converted folder.

Everything random is drawn by us and handed to the original: the first noise, the draw from the image's posterior, and
what the DPM sampler adds. Frames are of order 1; both sides compute in float32, and four guided steps magnify rounding
by the guidance scale: hence 1e-4 (1.5e-5 was measured).
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from reangle_jax.backbones.cogvideox import sampling
from reangle_jax.backbones.cogvideox.pipeline import CogVideoX
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.text.t5 import T5Config

# Frames are compared before they are rounded to bytes, which is not what `decode` says that it gives.
pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("unchecked")]
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
published = pytest.importorskip("tests.parity.published")

ATOL = 1e-4
STEPS = 4
HEIGHT, WIDTH, FRAMES = 32, 48, 9
CHANNELS, LENGTH = 4, 12
PROMPTS = ["A cat plays piano in an old house.", "Two dogs, filmed in 4K!"]
CLASSES = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}
TEXT = T5Config(vocab_size=256, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
AUTOENCODER = VAEConfig(
    block_out_channels=(8, 8, 8, 8),
    layers_per_block=1,
    norm_num_groups=2,
    latent_channels=CHANNELS,
    sample_height=HEIGHT,
    sample_width=WIDTH,
)
BASE = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    time_embed_dim=16,
    text_embed_dim=TEXT.d_model,
    max_text_seq_length=LENGTH,
    sample_frames=FRAMES,
    sample_height=HEIGHT // 8,
    sample_width=WIDTH // 8,
)
# What tells the four published kinds apart: transformer, autoencoder, shift of the signal-to-noise ratio.
# Their names are those that the converters have for them.
KINDS = {
    "cogvideox-5b-i2v": (dataclasses.replace(BASE, in_channels=2 * CHANNELS, use_learned=True), AUTOENCODER, 1.0),
    # Three latent frames are filled up to four; the image's latents are divided.
    "cogvideox1.5-5b-i2v": (
        dataclasses.replace(
            BASE, in_channels=2 * CHANNELS, patch_size_t=2, ofs_embed_dim=16, sample_height=30, sample_width=30
        ),
        dataclasses.replace(AUTOENCODER, invert_scale_latents=True),
        1.0,
    ),
    "cogvideox-5b": (BASE, AUTOENCODER, 1.0),
    "cogvideox-2b": (
        dataclasses.replace(BASE, use_rotary=False),
        dataclasses.replace(AUTOENCODER, scaling_factor=1.15258426),
        3.0,
    ),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The original and ours of a kind, made once."""

    @functools.cache
    def make(kind):
        transformer, vae, shift = KINDS[kind]
        folder = tmp_path_factory.mktemp(kind)
        original = published.write_pipeline(folder / "published", transformer, vae, TEXT, snr_shift_scale=shift)
        published.convert_pipeline(folder / "published", folder / "ours", kind)
        ours = CogVideoX.load(folder / "ours")
        assert ours.schedule.snr_shift_scale == shift
        return original, ours

    return make


def images(count):
    return np.random.default_rng(3).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def share_randomness(monkeypatch, key, shape):
    """Makes the original draw what ours draws from ``key``; returns the first noise, of ``shape``."""
    noise_key, image_key = jax.random.split(key)
    sampler_key = jax.random.fold_in(key, 1)
    draws = {"posterior": 0, "sampler": 0}
    # Ours draws for all images at once.
    posterior = np.asarray(jax.random.normal(image_key, (shape[0], 1, *shape[2:])))

    def of_the_posterior(size, **_):
        draw = posterior[draws["posterior"]]
        draws["posterior"] += 1
        return torch.from_numpy(np.moveaxis(draw, -1, 0)[None].copy()).reshape(size)

    def of_the_sampler(size, **_):
        # One draw in the first and in the last step, two in the others, of which the second counts.
        index = (draws["sampler"] + 1) // 2
        draws["sampler"] += 1
        return published.to_torch(jax.random.normal(jax.random.fold_in(sampler_key, index), shape)).reshape(size)

    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", of_the_posterior)
    monkeypatch.setattr("diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor", of_the_sampler)
    return published.to_torch(jax.random.normal(noise_key, shape)), draws


def compare(monkeypatch, build, kind, *, sampler, dynamic, scale=6.0, prompts=PROMPTS[:1], negative="", tiles=None):
    original, ours = build(kind)
    config, key, count = KINDS[kind][0], jax.random.key(11), len(prompts)
    latent_frames = sampling.latent_frames(config, ours.vae.config, FRAMES)[0]
    shape = (count, latent_frames, HEIGHT // 8, WIDTH // 8, CHANNELS)
    noise, draws = share_randomness(monkeypatch, key, shape)
    original.scheduler = getattr(diffusers, CLASSES[sampler]).from_config(original.scheduler.config)
    has_image = config.in_channels != CHANNELS
    first = images(count) if has_image else None
    arguments = {"image": torch.from_numpy(first).permute(0, 3, 1, 2).float() / 255} if has_image else {}
    expected = original(
        prompt=list(prompts),
        negative_prompt=[negative] * count,
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        use_dynamic_cfg=dynamic,
        latents=noise,
        max_sequence_length=LENGTH,
        output_type="pt",
        **arguments,
    ).frames
    expected = np.moveaxis(expected.numpy(), 2, -1) * 2 - 1
    assert draws == {"posterior": count if has_image else 0, "sampler": 0 if sampler == "ddim" else 2 * STEPS - 2}
    # Frames before they are rounded to bytes.
    monkeypatch.setattr(sampling, "to_bytes", lambda frames: frames.clip(-1, 1))
    got = ours(
        list(prompts),
        first,
        key=key,
        negative_prompt=negative,
        num_frames=FRAMES,
        steps=STEPS,
        guidance_scale=scale,
        dynamic_guidance=dynamic,
        sampler=sampler,
    )
    ours._samplers.clear()
    assert got.shape == expected.shape == (count, FRAMES, HEIGHT, WIDTH, 3)
    # Neither died out nor all clipped.
    assert expected.std() > 0.05
    assert (np.abs(expected) < 0.99).mean() > 0.3
    error = np.abs(got - expected).max()
    print(f"\n{kind} {sampler}: {error:.1e}")
    assert error < ATOL


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "dynamic"), [("ddim", True), ("dpm", False)])
@pytest.mark.parametrize("kind", KINDS)
def test_frames(monkeypatch, build, kind, sampler, dynamic):
    compare(monkeypatch, build, kind, sampler=sampler, dynamic=dynamic)


@pytest.mark.slow
def test_two_prompts_two_images_and_a_negative_prompt(monkeypatch, build):
    compare(
        monkeypatch, build, "cogvideox-5b-i2v", sampler="dpm", dynamic=True, prompts=PROMPTS, negative="rain, 1920s"
    )


@pytest.mark.parametrize(("scale", "dynamic"), [(1.0, True), (0.5, False)])
def test_no_guidance_at_a_scale_of_one_or_less(monkeypatch, build, scale, dynamic):
    compare(monkeypatch, build, "cogvideox-5b", sampler="ddim", dynamic=dynamic, scale=scale)


def test_what_the_published_pipelines_do_not_do(build):
    """Arguments that they accept and that change nothing, or that they refuse: there is nothing to reproduce."""
    original, _ = build("cogvideox-5b")
    arguments = {
        "prompt": PROMPTS[0],
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "max_sequence_length": LENGTH,
        "output_type": "latent",
    }
    for name in CLASSES.values():
        original.scheduler = getattr(diffusers, name).from_config(original.scheduler.config)

        def run(original=original, **more):
            return original(num_inference_steps=2, generator=torch.manual_seed(0), **arguments, **more).frames

        assert torch.equal(run(), run(eta=1.0))
        assert run(num_videos_per_prompt=3).shape[0] == 1
        with pytest.raises(ValueError, match="custom timestep schedules"):
            original(timesteps=[900, 500], **arguments)
