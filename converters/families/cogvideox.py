"""CogVideoX pipelines as diffusers keeps them: transformer, autoencoder, text encoder, tokenizer."""

from collections.abc import Mapping
from typing import Any

from converters.families.text_encoders import TEXT_ENCODER
from converters.registry import Layout, Model, Part, expect, names_of, read_fields, write_fields
from converters.tables import cogvideox_transformer, cogvideox_vae
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig

LICENCE_5B = "CogVideoX licence (research, and registered commercial use)"

# Our field, and the published one, which may be absent where it says what our default says.
_TRANSFORMER_FIELDS = names_of(TransformerConfig) | {
    "use_rotary": "use_rotary_positional_embeddings",
    "use_learned": "use_learned_positional_embeddings",
}
_VAE_FIELDS = names_of(VAEConfig, "block_out_channels", "invert_scale_latents", "tile_sample", "tile_overlap")
# What the networks here are, and no field says.
_TRANSFORMER = {
    "_class_name": "CogVideoXTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "attention_bias": True,
    "norm_elementwise_affine": True,
}
_VAE = {
    "_class_name": "AutoencoderKLCogVideoX",
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": None,
}


def read_transformer(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `TransformerConfig` from diffusers' config.json."""
    expect(published, _TRANSFORMER)
    # Absent switches are off: configs written before a switch existed lack it.
    optional = {"patch_size_t": None, "ofs_embed_dim": None, "use_learned": False, "use_rotary": False}
    optional |= {"temporal_interpolation_scale": 1.0, "norm_eps": 1e-5, "temporal_compression_ratio": 4}
    return read_fields(published, _TRANSFORMER_FIELDS, optional)


def write_transformer(config: TransformerConfig) -> dict[str, Any]:
    """The config.json of diffusers."""
    more = {"_diffusers_version": "0.31.0", "dropout": 0.0, "patch_bias": config.patch_size_t is None}
    return {**_TRANSFORMER, **write_fields(config, _TRANSFORMER_FIELDS), **more}


def read_vae(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `VAEConfig` from diffusers' config.json."""
    expect(published, _VAE | {"out_channels": published["in_channels"]})
    invert = {"invert_scale_latents": published["invert_scale_latents"]} if "invert_scale_latents" in published else {}
    widths = tuple(published["block_out_channels"])
    return {**read_fields(published, _VAE_FIELDS), **invert, "block_out_channels": widths}


def write_vae(config: VAEConfig) -> dict[str, Any]:
    """The config.json of diffusers."""
    levels = len(config.block_out_channels)
    return {
        **_VAE,
        **write_fields(config, _VAE_FIELDS),
        "_diffusers_version": "0.31.0",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["CogVideoXDownBlock3D"] * levels,
        "force_upcast": True,
        "invert_scale_latents": config.invert_scale_latents,
        "latents_mean": None,
        "latents_std": None,
        "out_channels": config.in_channels,
        "up_block_types": ["CogVideoXUpBlock3D"] * levels,
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
        network=Transformer,
        layouts=(Layout("diffusers", cogvideox_transformer.table, "patch_embed.proj.weight", dtype),),
        folder="transformer",
        kind=_kind,
        read_config=read_transformer,
        write_config=write_transformer,
        extras={"scheduler/scheduler_config.json": "scheduler_config.json"},
        dtype="bfloat16",
        size=size,
    )


def _vae(config: VAEConfig) -> Part:
    return Part(
        name="vae",
        config=config,
        network=VAE,
        layouts=(Layout("diffusers", lambda config: cogvideox_vae.TABLE, "encoder.conv_in.conv.weight"),),
        folder="vae",
        read_config=read_vae,
        write_config=write_vae,
        size=0.86,
    )


MODELS = (
    Model(
        "cogvideox-5b-i2v",
        "THUDM/CogVideoX-5b-I2V",
        LICENCE_5B,
        (_transformer(TransformerConfig.cogvideox_5b_i2v(), 11.25), _vae(VAEConfig()), TEXT_ENCODER),
    ),
    Model(
        "cogvideox1.5-5b-i2v",
        "THUDM/CogVideoX1.5-5B-I2V",
        LICENCE_5B,
        (
            _transformer(TransformerConfig.cogvideox1_5_5b_i2v(), 11.14),
            _vae(VAEConfig(invert_scale_latents=True)),
            TEXT_ENCODER,
        ),
    ),
    Model(
        "cogvideox-5b",
        "THUDM/CogVideoX-5b",
        LICENCE_5B,
        (_transformer(TransformerConfig.cogvideox_5b(), 11.14), _vae(VAEConfig()), TEXT_ENCODER),
    ),
    Model(
        "cogvideox-2b",
        "THUDM/CogVideoX-2b",
        "Apache-2.0",
        (
            _transformer(TransformerConfig.cogvideox_2b(), 3.39, "float16"),
            _vae(VAEConfig(scaling_factor=1.15258426)),
            TEXT_ENCODER,
        ),
    ),
)
