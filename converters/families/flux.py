"""FLUX.1 pipelines: as diffusers keeps them, and the authors' single files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from converters.families.text_encoders import CLIP, TEXT_ENCODER
from converters.registry import Layout, Model, Part, expect, names_of, read_fields, write_fields
from converters.tables import flux_autoencoder, flux_transformer
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.models.text.tokenizers import SPIECE

LICENCE = "FLUX.1 [dev] non-commercial"

# Our field, and the published one.
_TRANSFORMER_FIELDS = {
    **{name: name for name in ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")},
    "text_embed_dim": "joint_attention_dim",
    "pooled_embed_dim": "pooled_projection_dim",
    "guidance_embeds": "guidance_embeds",
}
_AUTOENCODER_FIELDS = names_of(AutoencoderConfig, "block_out_channels", "shift_factor")
# What the network here is, and no field says.
_AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "latents_mean": None,
    "latents_std": None,
}


def read_autoencoder(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an `AutoencoderConfig` from diffusers' config.json."""
    expect(published, _AUTOENCODER | {"out_channels": published["in_channels"]})
    shift = published["shift_factor"]
    return {
        **read_fields(published, _AUTOENCODER_FIELDS),
        "shift_factor": 0.0 if shift is None else shift,
        "block_out_channels": tuple(published["block_out_channels"]),
    }


def write_autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
    """The config.json of diffusers."""
    levels = len(config.block_out_channels)
    return {
        **_AUTOENCODER,
        **write_fields(config, _AUTOENCODER_FIELDS),
        "_diffusers_version": "0.31.0",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "out_channels": config.in_channels,
        "shift_factor": config.shift_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


AUTOENCODER = Part(
    name="vae",
    config=AutoencoderConfig.flux1(),
    network=Autoencoder,
    layouts=(
        Layout("diffusers", lambda config: flux_autoencoder.DIFFUSERS, "encoder.conv_norm_out.weight", "bfloat16"),
        Layout(
            "single file",
            lambda config: flux_autoencoder.original(len(config.block_out_channels)),
            "encoder.norm_out.weight",
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


def _read_flux(published: Mapping[str, Any], name: str) -> dict[str, Any]:
    expect(published, {"_class_name": name, "patch_size": 1})
    return {**read_fields(published, _TRANSFORMER_FIELDS), "axes_dims_rope": tuple(published["axes_dims_rope"])}


def _write_flux(config: FluxConfig, name: str) -> dict[str, Any]:
    return {
        "_class_name": name,
        "_diffusers_version": "0.31.0",
        **write_fields(config, _TRANSFORMER_FIELDS),
        "axes_dims_rope": list(config.axes_dims_rope),
        "num_single_layers": config.num_single_layers,
        "patch_size": 1,
    }


def read_transformer(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `FluxConfig` from diffusers' config.json."""
    return {
        **_read_flux(published, "FluxTransformer2DModel"),
        "num_single_layers": published["num_single_layers"],
        "out_channels": published.get("out_channels") or published["in_channels"],
    }


def write_transformer(config: FluxConfig) -> dict[str, Any]:
    """The config.json of diffusers."""
    return {**_write_flux(config, "FluxTransformer2DModel"), "out_channels": config.out_channels}


def read_controlnet(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ControlNetConfig` from the config.json of its authors; ``base_layers`` is our own field there."""
    expect(published, {"num_single_layers": 0, "num_mode": None, "conditioning_embedding_channels": None})
    return {
        **_read_flux(published, "FluxControlNetModel"),
        "condition_channels": published["in_channels"] + published.get("extra_condition_channels", 0),
        "base_layers": published.get("base_layers", ControlNetConfig.inpainting_beta().base_layers),
    }


def write_controlnet(config: ControlNetConfig) -> dict[str, Any]:
    """The config.json of its authors."""
    return {
        **_write_flux(config, "FluxControlNetModel"),
        "extra_condition_channels": config.condition_channels - config.in_channels,
        "base_layers": config.base_layers,
    }


def _transformer(config: FluxConfig, size: float) -> Part:
    return Part(
        name="transformer",
        config=config,
        network=FluxTransformer,
        layouts=(
            Layout("diffusers", flux_transformer.transformer, "x_embedder.weight", "bfloat16"),
            Layout("single file", flux_transformer.original, "img_in.weight", "bfloat16"),
        ),
        folder="transformer",
        kind=lambda config: {
            "in_channels per predicted channel": config.in_channels / config.out_channels,
            "guidance_embeds": config.guidance_embeds,
        },
        read_config=read_transformer,
        write_config=write_transformer,
        extras={"scheduler/scheduler_config.json": "scheduler_config.json"},
        dtype="bfloat16",
        size=size,
    )


CONTROLNET = Part(
    name="controlnet",
    config=ControlNetConfig.inpainting_beta(),
    network=FluxControlNet,
    layouts=(Layout("diffusers", flux_transformer.controlnet, "controlnet_x_embedder.weight", "bfloat16"),),
    kind=lambda config: {"the condition has a mask": config.condition_channels > config.in_channels},
    read_config=read_controlnet,
    write_config=write_controlnet,
    dtype="bfloat16",
    size=4.28,
)
# What all pipelines of the family share, beside their transformers.
SHARED = (AUTOENCODER, CLIP, T5)
MODELS = (
    Model("flux.1-dev", "black-forest-labs/FLUX.1-dev", LICENCE, (_transformer(FluxConfig.dev(), 23.8), *SHARED)),
    Model(
        "flux.1-fill-dev",
        "black-forest-labs/FLUX.1-Fill-dev",
        LICENCE,
        (_transformer(FluxConfig.fill_dev(), 23.8), *SHARED),
    ),
    Model(
        "flux.1-dev-controlnet-inpainting-beta",
        "alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta",
        LICENCE,
        (CONTROLNET,),
    ),
)
