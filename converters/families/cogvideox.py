"""CogVideoX pipelines as diffusers keeps them: transformer, autoencoder, text encoder, tokenizer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from converters.families.text_encoders import TEXT_ENCODER
from converters.registry import Layout, Model, Part, expect
from converters.tables import cogvideox_transformer, cogvideox_vae
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig

LICENCE_5B = "CogVideoX licence (research, and registered commercial use)"

# Our field, and the published one, which may be absent where it says what our default says.
_TRANSFORMER_FIELDS = {
    **{
        name: name
        for name in (
            "num_layers",
            "num_attention_heads",
            "attention_head_dim",
            "in_channels",
            "out_channels",
            "time_embed_dim",
            "text_embed_dim",
            "max_text_seq_length",
            "sample_frames",
            "sample_height",
            "sample_width",
            "patch_size",
            "patch_size_t",
            "temporal_compression_ratio",
            "spatial_interpolation_scale",
            "temporal_interpolation_scale",
            "ofs_embed_dim",
            "norm_eps",
        )
    },
    "use_rotary": "use_rotary_positional_embeddings",
    "use_learned": "use_learned_positional_embeddings",
}
_VAE_FIELDS = (
    "layers_per_block",
    "latent_channels",
    "in_channels",
    "norm_num_groups",
    "temporal_compression_ratio",
    "sample_height",
    "sample_width",
    "scaling_factor",
)


def read_transformer(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `TransformerConfig` from diffusers' config.json."""
    expect(published, "_class_name", ("CogVideoXTransformer3DModel",))
    expect(published, "activation_fn", ("gelu-approximate",))
    expect(published, "timestep_activation_fn", ("silu",))
    expect(published, "flip_sin_to_cos", (True,))
    expect(published, "freq_shift", (0,))
    expect(published, "attention_bias", (True,))
    expect(published, "norm_elementwise_affine", (True,))
    # Absent switches are off: configs written before a switch existed lack it.
    optional = {"patch_size_t": None, "ofs_embed_dim": None, "use_learned": False, "use_rotary": False}
    optional |= {"temporal_interpolation_scale": 1.0, "norm_eps": 1e-5, "temporal_compression_ratio": 4}
    return {
        ours: published.get(theirs, optional[ours]) if ours in optional else published[theirs]
        for ours, theirs in _TRANSFORMER_FIELDS.items()
    }


def write_transformer(config: TransformerConfig) -> dict[str, Any]:
    """The config.json of diffusers."""
    fields = {theirs: getattr(config, ours) for ours, theirs in _TRANSFORMER_FIELDS.items()}
    return {
        "_class_name": "CogVideoXTransformer3DModel",
        "_diffusers_version": "0.31.0",
        **fields,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_elementwise_affine": True,
        "patch_bias": config.patch_size_t is None,
        "timestep_activation_fn": "silu",
    }


def read_vae(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `VAEConfig` from diffusers' config.json."""
    expect(published, "_class_name", ("AutoencoderKLCogVideoX",))
    expect(published, "act_fn", ("silu",))
    expect(published, "norm_eps", (1e-6,))
    expect(published, "use_quant_conv", (False,))
    expect(published, "use_post_quant_conv", (False,))
    expect(published, "out_channels", (published["in_channels"],))
    expect(published, "shift_factor", (None,))
    fields = {name: published[name] for name in _VAE_FIELDS}
    invert = {"invert_scale_latents": published["invert_scale_latents"]} if "invert_scale_latents" in published else {}
    return {**fields, **invert, "block_out_channels": tuple(published["block_out_channels"])}


def write_vae(config: VAEConfig) -> dict[str, Any]:
    """The config.json of diffusers."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKLCogVideoX",
        "_diffusers_version": "0.31.0",
        **{name: getattr(config, name) for name in _VAE_FIELDS},
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "force_upcast": True,
        "invert_scale_latents": config.invert_scale_latents,
        "latents_mean": None,
        "latents_std": None,
        "norm_eps": 1e-6,
        "out_channels": config.in_channels,
        "shift_factor": None,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def _kind(config: TransformerConfig) -> dict[str, Any]:
    return {
        "patch_size_t": config.patch_size_t,
        "use_rotary_positional_embeddings": config.use_rotary,
        "use_learned_positional_embeddings": config.use_learned,
        "patch_embed's input channels per latent channel": config.in_channels / config.out_channels,
        "ofs_embed_dim is set": config.ofs_embed_dim is not None,
    }


def _transformer(config: TransformerConfig, size: float, dtype: str = "bfloat16") -> Part:
    return Part(
        name="transformer",
        config=config,
        build=lambda config: Transformer(config, rngs=nnx.Rngs(0)),
        layouts=(Layout("diffusers", cogvideox_transformer.table, "patch_embed.proj.weight", dtype),),
        folder="transformer",
        kind=_kind,
        read_config=read_transformer,
        write_config=write_transformer,
        extras={"scheduler/scheduler_config.json": "scheduler_config.json"},
        dtype="bfloat16",
        size=size,
    )


def _vae(config: VAEConfig, dtype: str = "float32", size: float = 0.86) -> Part:
    return Part(
        name="vae",
        config=config,
        build=lambda config: VAE(config, rngs=nnx.Rngs(0)),
        layouts=(Layout("diffusers", lambda config: cogvideox_vae.TABLE, "encoder.conv_in.conv.weight", dtype),),
        folder="vae",
        read_config=read_vae,
        write_config=write_vae,
        size=size,
    )


MODELS = (
    Model(
        "cogvideox-5b-i2v",
        "THUDM/CogVideoX-5b-I2V",
        LICENCE_5B,
        (_transformer(TransformerConfig.cogvideox_5b_i2v(), 11.25), _vae(VAEConfig.cogvideox_5b()), TEXT_ENCODER),
    ),
    Model(
        "cogvideox1.5-5b-i2v",
        "THUDM/CogVideoX1.5-5B-I2V",
        LICENCE_5B,
        (_transformer(TransformerConfig.cogvideox1_5_5b_i2v(), 11.14), _vae(VAEConfig.cogvideox1_5_5b()), TEXT_ENCODER),
    ),
    Model(
        "cogvideox-5b",
        "THUDM/CogVideoX-5b",
        LICENCE_5B,
        (_transformer(TransformerConfig.cogvideox_5b(), 11.14), _vae(VAEConfig.cogvideox_5b()), TEXT_ENCODER),
    ),
    Model(
        "cogvideox-2b",
        "THUDM/CogVideoX-2b",
        "Apache-2.0",
        (
            _transformer(TransformerConfig.cogvideox_2b(), 3.39, "float16"),
            _vae(dataclasses.replace(VAEConfig.cogvideox_5b(), scaling_factor=1.15258426)),
            TEXT_ENCODER,
        ),
    ),
)
