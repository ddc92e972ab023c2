"""FLUX's painter against whole pipelines of several steps on random weights: Fill's, and the inpainting ControlNet's.

The first is diffusers' own, from text to picture. Of the second there is none in diffusers: the authors' steps are
written out here over its networks. Both sides draw one noise; the autoencoder's posterior is so narrow that drawing
from it is its mean. Holes are whole latent cells: of others the published pipelines see one pixel, ours all.

Tolerance: pictures are values 0 to 1; 2e-4 for float32 on both sides through a few steps and the decoder.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from converters.families import text_encoders
from converters.tables import clip, flux_autoencoder, flux_transformer, t5
from reangle_jax.checkpoints import abstract, parameter_paths, save_model
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.painters.flux.painter import FluxPainter
from reangle_jax.painters.interface import Painting
from tests.clip_files import write_clip_tokenizer
from tests.conversion import convert, fill
from tests.parity import test_flux_transformer
from tests.spiece import write_spiece

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

# FLUX.1-dev's scheduler_config.json.
SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
SIZE, STEPS, KEY = (16, 24), 4, jax.random.key(3)
PROMPT = "The cat's old piano"
LATENTS = (SIZE[0] // 2, SIZE[1] // 2, 4)
VAE = AutoencoderConfig((8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
TEXT = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
_SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 4, 8),
    "text_embed_dim": 16,
    "pooled_embed_dim": 16,
    "out_channels": 16,
}
DEV = FluxConfig(num_layers=2, num_single_layers=1, in_channels=16, **_SIZES)
FILL = FluxConfig(num_layers=1, num_single_layers=2, in_channels=16 + 16 + 16, **_SIZES)
CONTROL = ControlNetConfig(
    num_layers=1, num_single_layers=0, in_channels=16, condition_channels=20, base_layers=2, **_SIZES
)


def save(folder, theirs, network, config, table):
    """Their network's parameters as ours in a folder of weights."""
    ours = abstract(lambda: network(config, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(variable.shape) for path, variable in parameter_paths(ours).items()}
    fill(ours, convert({name: x.numpy() for name, x in theirs.state_dict().items()}, table, shapes))
    save_model(folder, ours, config)
    return theirs


def autoencoder():
    theirs = diffusers.AutoencoderKL(
        block_out_channels=VAE.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=VAE.norm_num_groups,
        latent_channels=VAE.latent_channels,
        scaling_factor=VAE.scaling_factor,
        shift_factor=VAE.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    theirs = test_flux_transformer.scattered(theirs)
    with torch.no_grad():  # log variances of -30
        theirs.encoder.conv_out.weight[VAE.latent_channels :] = 0
        theirs.encoder.conv_out.bias[VAE.latent_channels :] = -30
    return theirs


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Our folder, and diffusers' Fill pipeline of the same networks."""
    folder = tmp_path_factory.mktemp("weights")
    tokens = write_clip_tokenizer(folder / "text_encoder")
    write_spiece(folder / "text_encoder_2/spiece.model")
    words = CLIPConfig(tokens, width=16, mlp_width=24, num_layers=2, num_heads=2)
    fields = {k: v for k, v in text_encoders.write_clip(words).items() if k not in ("architectures", "model_type")}
    of_t5 = {k: v for k, v in text_encoders.write_t5(TEXT).items() if k not in ("architectures", "model_type")}
    scattered = test_flux_transformer.scattered
    made = diffusers.FluxFillPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=save(folder / "vae", autoencoder(), Autoencoder, VAE, flux_autoencoder.DIFFUSERS),
        text_encoder=save(
            folder / "text_encoder",
            scattered(transformers.CLIPTextModel(transformers.CLIPTextConfig(**fields))),
            CLIPTextEncoder,
            words,
            clip.table(""),
        ),
        text_encoder_2=save(
            folder / "text_encoder_2",
            scattered(transformers.T5EncoderModel(transformers.T5Config(**of_t5))),
            T5Encoder,
            TEXT,
            t5.TABLE,
        ),
        transformer=save(
            folder / "transformer",
            test_flux_transformer.original(FILL),
            FluxTransformer,
            FILL,
            flux_transformer.transformer(FILL),
        ),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "text_encoder", model_max_length=77),
        tokenizer_2=transformers.T5Tokenizer.from_pretrained(folder / "text_encoder_2"),
    )
    made.set_progress_bar_config(disable=True)
    return folder, made


def picture():
    """A picture with a hole of whole cells: [H, W, 3] of bytes, and where it is known."""
    rng = np.random.default_rng(0)
    visible = np.ones(SIZE, bool)
    visible[4:12, 10:18] = visible[:4, :2] = False
    return rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) * visible[..., None], visible


def noise():
    """What the painter begins with, [1, C, h, w]."""
    drawn = jax.random.normal(jax.random.split(KEY, 3)[0], LATENTS)
    return torch.from_numpy(np.array(drawn)).permute(2, 0, 1)[None]


def pack(latents):
    return diffusers.FluxPipeline._pack_latents(latents, *latents.shape)


def paint(folder, name, parts, guidance, control_scale=1.0):
    """Our picture, and our embeddings of the prompt."""
    painter = FluxPainter(name, {part: folder / part for part in parts}, SIZE)
    how = Painting(STEPS, guidance, control_scale, 1, 0.0, "ddim", (0.0, 1.0), 1, reimpose=False)
    text = painter.embed([PROMPT])
    made = painter.paint(
        painter.load(), text, *picture(), how, key=KEY, reward=None, on_step=lambda saved, chosen: None
    )
    return made, text


def test_fill_is_diffusers_whole_pipeline(pipeline):
    folder, theirs = pipeline
    image, visible = picture()
    expected = theirs(
        prompt=PROMPT,
        image=torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None],
        mask_image=torch.from_numpy(~visible)[None, None].float(),
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=STEPS,
        guidance_scale=30.0,
        latents=pack(noise()),
        output_type="np",
    ).images[0]
    made, text = paint(folder, "flux.1-fill-dev", ("transformer", "vae", "text_encoder", "text_encoder_2"), 30.0)
    for ours, original in zip(text, theirs.encode_prompt(PROMPT, PROMPT), strict=False):
        original = original.detach().numpy()
        np.testing.assert_allclose(ours, original, atol=2e-5 * np.abs(original).max())
    assert expected.std() > 0.02
    np.testing.assert_allclose(made, expected, atol=2e-4)


def test_the_controlnet_is_the_authors_loop_written_out(pipeline, tmp_path):
    folder, theirs = pipeline
    transformer = save(
        tmp_path / "transformer",
        test_flux_transformer.original(DEV),
        FluxTransformer,
        DEV,
        flux_transformer.transformer(DEV),
    )
    controlnet = save(
        tmp_path / "controlnet",
        test_flux_transformer.original_controlnet(CONTROL),
        FluxControlNet,
        CONTROL,
        flux_transformer.controlnet(CONTROL),
    )
    for part in ("vae", "text_encoder", "text_encoder_2"):
        (tmp_path / part).symlink_to(folder / part)
    parts = ("transformer", "controlnet", "vae", "text_encoder", "text_encoder_2")
    made, text = paint(tmp_path, "flux.1-dev", parts, 3.5, control_scale=0.9)

    image, visible = picture()
    holes = torch.from_numpy(~visible)[None, None].float()
    masked = torch.from_numpy(image / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    masked[holes.expand_as(masked) > 0.5] = -1
    scheduler = theirs.scheduler
    tokens = LATENTS[0] * LATENTS[1] // 4
    mu = (1.15 - 0.5) / (4096 - 256) * (tokens - 256) + 0.5
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)
    ids = np.zeros((LATENTS[0] // 2, LATENTS[1] // 2, 3), np.float32)
    ids[..., 1], ids[..., 2] = np.indices(ids.shape[:2])
    with torch.no_grad():
        latents = theirs.vae.encode(masked).latent_dist.sample()
        latents = (latents - VAE.shift_factor) * VAE.scaling_factor
        known = 1 - torch.nn.functional.interpolate(holes, size=LATENTS[:2])
        condition, x = pack(torch.cat([latents, known], dim=1)), pack(noise())
        for t in scheduler.timesteps:
            shared = {
                "hidden_states": x,
                "encoder_hidden_states": torch.from_numpy(np.array(text.tokens)),
                "pooled_projections": torch.from_numpy(np.array(text.pooled)),
                "timestep": t.expand(1) / 1000,
                "guidance": torch.full([1], 3.5),
                "img_ids": torch.from_numpy(ids.reshape(-1, 3)),
                "txt_ids": torch.zeros(text.tokens.shape[1], 3),
                "return_dict": False,
            }
            samples, _ = controlnet(controlnet_cond=condition, conditioning_scale=0.9, **shared)
            x = scheduler.step(transformer(controlnet_block_samples=samples, **shared)[0], t, x, return_dict=False)[0]
        z = diffusers.FluxPipeline._unpack_latents(x, *SIZE, 2) / VAE.scaling_factor + VAE.shift_factor
        expected = (theirs.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    assert expected.std() > 0.02
    np.testing.assert_allclose(made, expected, atol=2e-4)
