"""DINO and DINOv2 as transformers keeps them and as the authors' .pth; FeatUp's upsampler with its DINO backbone."""

from collections.abc import Mapping
from typing import Any

from converters.registry import Layout, Model, Part
from converters.tables import dino, featup
from reangle_jax.models.dino import DinoConfig, FeatUp, FeatUpConfig, VisionTransformer


def read_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `DinoConfig` from transformers' config.json; its epsilon is not the one it was trained with."""
    kind = published.get("model_type", "vit")
    if kind not in ("vit", "dinov2"):
        raise ValueError(f"model_type is {kind!r}, and the networks here are 'vit' (DINO) and 'dinov2'")
    if published.get("use_swiglu_ffn"):
        raise ValueError("use_swiglu_ffn is true (the giant), and the network here has GELU")
    return {
        "layer_scale": kind == "dinov2",
        "width": published["hidden_size"],
        "depth": published["num_hidden_layers"],
        "heads": published["num_attention_heads"],
        "patch_size": published["patch_size"],
        "native_grid": published["image_size"] // published["patch_size"],
    }


def _kind(config: DinoConfig) -> dict[str, Any]:
    return {"LayerScale (DINOv2)": config.layer_scale}


def _model(name: str, layouts: tuple[Layout, Layout], config: DinoConfig, gigabytes: float, part: str = "") -> Model:
    """Its folder in our weights is ``part``, or the first word of its name."""
    network = Part(
        name=part or name.split("-")[0],
        config=config,
        network=VisionTransformer,
        layouts=layouts,
        stems=("model",),
        kind=_kind,
        read_config=read_config,
        size=gigabytes,
    )
    return Model(name, f"facebook/{name}", "Apache-2.0", (network,))


_DINO = (
    Layout("transformers", lambda config: dino.hf(), "embeddings.cls_token"),
    Layout("authors' .pth", lambda config: dino.pth(), "cls_token"),
)
_DINOV2 = (
    Layout("transformers", lambda config: dino.dinov2_hf(), "embeddings.cls_token"),
    Layout("authors' .pth", lambda config: dino.dinov2_pth(), "cls_token"),
)

MODELS = (
    _model("dino-vits16", _DINO, DinoConfig.vits16(), 0.09),
    # Its folder lies beside dino/, for another purpose.
    _model("dino-vitb16", _DINO, DinoConfig(width=768, depth=12, heads=12), 0.34, "dino_vitb16"),
    _model("dinov2-small", _DINOV2, DinoConfig.dinov2(width=384, depth=12, heads=6), 0.09),
    _model("dinov2-base", _DINOV2, DinoConfig.dinov2(width=768, depth=12, heads=12), 0.35),
    _model("dinov2-large", _DINOV2, DinoConfig.dinov2(width=1024, depth=24, heads=16), 1.22),
    Model(
        "featup-dino16",
        "https://github.com/mhamilton723/FeatUp",
        "MIT",
        (
            Part(
                name="featup",
                config=FeatUpConfig.vits16(),
                network=FeatUp,
                layouts=(Layout("authors' .ckpt", featup.table, "upsampler.up1.range_temp"),),
                stems=("dino16_jbu_stack_cocostuff",),
                size=0.09,
            ),
        ),
    ),
)
