"""FLUX.1 pipelines: as diffusers keeps them, and the authors' single files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from converters.families.text_encoders import CLIP, TEXT_ENCODER
from converters.registry import Layout, Model, Part, expect
from converters.tables import flux_autoencoder
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.text.tokenizers import SPIECE

LICENCE = "FLUX.1 [dev] non-commercial"

_AUTOENCODER_FIELDS = ("layers_per_block", "latent_channels", "in_channels", "norm_num_groups", "scaling_factor")


def read_autoencoder(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an `AutoencoderConfig` from diffusers' config.json."""
    expect(published, "_class_name", ("AutoencoderKL",))
    expect(published, "act_fn", ("silu",))
    expect(published, "mid_block_add_attention", (True,))
    expect(published, "use_quant_conv", (False,))
    expect(published, "use_post_quant_conv", (False,))
    expect(published, "out_channels", (published["in_channels"],))
    expect(published, "latents_mean", (None,))
    expect(published, "latents_std", (None,))
    shift = published["shift_factor"]
    return {
        **{name: published[name] for name in _AUTOENCODER_FIELDS},
        "shift_factor": 0.0 if shift is None else shift,
        "block_out_channels": tuple(published["block_out_channels"]),
    }


def write_autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
    """The config.json of diffusers."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.31.0",
        **{name: getattr(config, name) for name in _AUTOENCODER_FIELDS},
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "out_channels": config.in_channels,
        "shift_factor": config.shift_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


AUTOENCODER = Part(
    name="vae",
    config=AutoencoderConfig.flux1(),
    build=lambda config: Autoencoder(config, rngs=nnx.Rngs(0)),
    layouts=(
        Layout("diffusers", lambda config: flux_autoencoder.DIFFUSERS, "encoder.conv_norm_out.weight", "bfloat16"),
        Layout(
            "single file",
            lambda config: flux_autoencoder.original(len(config.block_out_channels)),
            "encoder.norm_out.weight",
            "float32",
        ),
    ),
    folder="vae",
    read_config=read_autoencoder,
    write_config=write_autoencoder,
    dtype="bfloat16",
    size=0.17,
)
T5 = dataclasses.replace(
    TEXT_ENCODER, name="text_encoder_2", folder="text_encoder_2", extras={"tokenizer_2/spiece.model": SPIECE}
)

# What all pipelines of the family share, beside their transformers.
SHARED = (AUTOENCODER, CLIP, T5)
MODELS = (
    Model("flux.1-dev", "black-forest-labs/FLUX.1-dev", LICENCE, SHARED),
    Model("flux.1-fill-dev", "black-forest-labs/FLUX.1-Fill-dev", LICENCE, SHARED),
)
