"""A whole image-to-video sampling loop, guidance included, against diffusers' pipeline on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables.cogvideox_transformer import table
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.diffusion.guidance import guidance_scales, guided
from reangle_jax.diffusion.samplers import sample
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from tests.conversion import convert, fill

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

STEPS = 5
SCALE = 6.0
CONFIG = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=8,
    out_channels=4,
    time_embed_dim=16,
    text_embed_dim=24,
    max_text_seq_length=6,
    sample_frames=9,
    sample_height=8,
    sample_width=8,
    use_learned=True,
)
CLASSES = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}


def to_torch(x):
    return torch.from_numpy(np.moveaxis(np.array(x), -1, 2).copy())  # [B, T, H, W, C] -> [B, T, C, H, W]


def from_torch(x):
    return np.moveaxis(x.numpy(), 2, -1)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=CONFIG.num_attention_heads,
        attention_head_dim=CONFIG.attention_head_dim,
        in_channels=CONFIG.in_channels,
        out_channels=CONFIG.out_channels,
        time_embed_dim=CONFIG.time_embed_dim,
        text_embed_dim=CONFIG.text_embed_dim,
        num_layers=CONFIG.num_layers,
        sample_width=CONFIG.sample_width,
        sample_height=CONFIG.sample_height,
        sample_frames=CONFIG.sample_frames,
        max_text_seq_length=CONFIG.max_text_seq_length,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )
    pipe = diffusers.CogVideoXImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=transformer.eval(), scheduler=scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(pipeline):
    model = abstract(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(model).items()}
    tensors = {name: tensor.numpy() for name, tensor in pipeline.transformer.state_dict().items()}
    fill(model, convert(tensors, table(CONFIG), shapes))
    return model


def predict(latents, t, model, text, image):
    return model(jnp.concatenate([latents, image], axis=-1), text, t.astype(jnp.float32))


@pytest.mark.parametrize(("sampler", "dynamic"), [("ddim", True), ("ddim", False), ("dpm", True)])
def test_five_steps_with_guidance(rng, monkeypatch, pipeline, model, sampler, dynamic):
    schedule, key = Schedule(), jax.random.key(7)
    noise = rng.normal(size=(1, 3, 8, 8, 4)).astype(np.float32)
    negative, positive = (rng.normal(size=(1, 6, 24)).astype(np.float32) for _ in range(2))
    pipeline.scheduler = getattr(diffusers, CLASSES[sampler]).from_config(pipeline.scheduler.config)
    seen = {"draws": 0}

    def our_noise(shape, **_):
        # One draw in the first and in the last step, two in the others, of which the second counts.
        index = (seen["draws"] + 1) // 2
        seen["draws"] += 1
        draw = jax.random.normal(jax.random.fold_in(key, index), (shape[0], shape[1], *shape[3:], shape[2]))
        return to_torch(draw)

    prepare = pipeline.prepare_latents

    def prepare_latents(*args, **kwargs):
        seen["latents"], seen["image"] = prepare(*args, **kwargs)
        return seen["latents"], seen["image"]

    monkeypatch.setattr("diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor", our_noise)
    monkeypatch.setattr(pipeline, "prepare_latents", prepare_latents)
    expected = pipeline(
        image=torch.from_numpy(rng.random((1, 3, 64, 64)).astype(np.float32)),
        prompt_embeds=torch.from_numpy(positive),
        negative_prompt_embeds=torch.from_numpy(negative),
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        use_dynamic_cfg=dynamic,
        latents=to_torch(noise),
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames
    assert seen["draws"] == {"ddim": 0, "dpm": 2 * STEPS - 2}[sampler]

    scales = guidance_scales(schedule.timesteps(STEPS), STEPS, SCALE, dynamic)
    text = jnp.concatenate([negative, positive])
    image = jnp.asarray(np.concatenate([from_torch(seen["image"])] * 2))
    got = sample(
        guided(predict, scales), jnp.asarray(noise), model, text, image,
        sampler=sampler, steps=STEPS, schedule=schedule, key=key,
    )  # fmt: skip
    expected = from_torch(expected)
    # Neither died out nor blown up: the comparison below is one of numbers of order 1.
    assert 0.3 < expected.std() < 30
    # Float32 on both sides through five guided passes, which magnify rounding by the guidance scale.
    np.testing.assert_allclose(got, expected, atol=1e-4)
