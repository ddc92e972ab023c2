"""CLIP's image towers, and LAION's aesthetic predictor over the larger one: what VBench looks with."""

from collections.abc import Mapping
from typing import Any

from converters.registry import Layout, Model, Part, expect
from converters.tables import clip_image
from reangle_jax.models.clip import Aesthetic, AestheticConfig, ClipImage, ClipImageConfig


def read_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ClipImageConfig` from transformers' config.json of both towers, or of this one."""
    tower = published.get("vision_config", published)
    expect(tower, {"hidden_act": "quick_gelu"})
    return {
        "width": tower["hidden_size"],
        "depth": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "patch_size": tower["patch_size"],
        "native_grid": tower["image_size"] // tower["patch_size"],
        "mlp_ratio": tower["intermediate_size"] // tower["hidden_size"],
        "projection": published["projection_dim"],
    }


def _tower(name: str, folder: str, config: ClipImageConfig, gigabytes: float) -> Model:
    part = Part(
        name=folder,
        config=config,
        network=ClipImage,
        layouts=(
            Layout("transformers", lambda config: clip_image.image_tower(), "vision_model.embeddings.class_embedding"),
        ),
        stems=("model",),
        read_config=read_config,
        size=gigabytes,
    )
    return Model(name, f"openai/{name}", "MIT", (part,))


MODELS = (
    _tower("clip-vit-base-patch32", "clip_vitb32", ClipImageConfig.vitb32(), 0.61),
    _tower("clip-vit-large-patch14", "clip_vitl14", ClipImageConfig.vitl14(), 1.71),
    Model(
        "aesthetic-vit-l-14",
        "https://github.com/LAION-AI/aesthetic-predictor",
        "MIT",
        (
            Part(
                name="aesthetic",
                config=AestheticConfig(),
                network=Aesthetic,
                layouts=(Layout("LAION's .pth", lambda config: clip_image.aesthetic(), "weight"),),
                stems=("sa_0_4_vit_l_14_linear",),
            ),
        ),
    ),
)
