"""Small random pipelines as huggingface_hub would leave them, and the same in our own layout."""

from pathlib import Path

import diffusers
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from converters import command
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.text.t5 import T5Config
from tests.spiece import write_spiece

PIECES = 150


def write_pipeline(
    folder: Path, transformer: TransformerConfig, vae: VAEConfig, text: T5Config, *, snr_shift_scale: float
) -> diffusers.DiffusionPipeline:
    """Saves a pipeline of these sizes with random parameters, and returns it with the folder's own tokenizer."""
    torch.manual_seed(0)
    write_spiece(folder / "tokenizer" / "spiece.model", pieces=PIECES)
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=transformer.num_attention_heads,
        attention_head_dim=transformer.attention_head_dim,
        in_channels=transformer.in_channels,
        out_channels=transformer.out_channels,
        time_embed_dim=transformer.time_embed_dim,
        ofs_embed_dim=transformer.ofs_embed_dim,
        text_embed_dim=transformer.text_embed_dim,
        num_layers=transformer.num_layers,
        sample_width=transformer.sample_width,
        sample_height=transformer.sample_height,
        sample_frames=transformer.sample_frames,
        patch_size_t=transformer.patch_size_t,
        max_text_seq_length=transformer.max_text_seq_length,
        use_rotary_positional_embeddings=transformer.use_rotary,
        use_learned_positional_embeddings=transformer.use_learned,
        patch_bias=transformer.patch_size_t is None,
    )
    autoencoder = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=vae.block_out_channels,
        layers_per_block=vae.layers_per_block,
        norm_num_groups=vae.norm_num_groups,
        latent_channels=vae.latent_channels,
        scaling_factor=vae.scaling_factor,
        invert_scale_latents=vae.invert_scale_latents,
        sample_height=vae.sample_height,
        sample_width=vae.sample_width,
    )
    encoder = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=text.vocab_size,
            d_model=text.d_model,
            d_kv=text.d_kv,
            d_ff=text.d_ff,
            num_layers=text.num_layers,
            num_heads=text.num_heads,
            feed_forward_proj="gated-gelu",
        )
    )
    network.float()  # a fresh position table is float64
    with torch.no_grad():
        for parameter in (*network.parameters(), *autoencoder.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape))
    has_image = transformer.in_channels == 2 * vae.latent_channels
    kind = diffusers.CogVideoXImageToVideoPipeline if has_image else diffusers.CogVideoXPipeline
    pipeline = kind(
        tokenizer=transformers.T5Tokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=encoder.eval(),
        vae=autoencoder.eval(),
        transformer=network.eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            set_alpha_to_one=True,
            snr_shift_scale=snr_shift_scale,
            timestep_spacing="trailing",
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    # Several shards a part, as the published ones have.
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="100KB")
    return pipeline


def convert_pipeline(source: Path, target: Path, name: str) -> Path:
    """Runs the converters' command on a published folder, in float32; ``name`` is a model of its list."""
    code = command.main([name, "--source", str(source), "--out", str(target), "--dtype", "float32"])
    assert code == 0
    return target


def to_torch(x: np.ndarray | jnp.ndarray) -> torch.Tensor:
    """[B, T, H, W, C] to [B, T, C, H, W]."""
    return torch.from_numpy(np.moveaxis(np.array(x), -1, 2).copy())
