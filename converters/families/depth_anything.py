"""Depth Anything V2, every size, relative and metric, as transformers keeps it and as the authors' .pth."""

from collections.abc import Mapping
from typing import Any

from converters.registry import Layout, Model, Part
from converters.tables import depth_anything
from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig


def read_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `DepthAnythingConfig` from transformers' config.json."""
    if published.get("model_type", "depth_anything") != "depth_anything":
        raise ValueError(f"model_type is {published['model_type']!r}, and the network here is 'depth_anything'")
    backbone = published["backbone_config"]
    depth = backbone.get("num_hidden_layers", 12)
    taps = backbone.get("out_indices") or [int(str(name).removeprefix("stage")) for name in backbone["out_features"]]
    metric = published.get("depth_estimation_type", "relative") == "metric"
    return {
        "width": backbone["hidden_size"],
        "depth": depth,
        "heads": backbone["num_attention_heads"],
        "taps": tuple(taps),
        "neck_widths": tuple(published["neck_hidden_sizes"]),
        "fusion_width": published["fusion_hidden_size"],
        "head_width": published.get("head_hidden_size", 32),
        "patch_size": backbone.get("patch_size", 14),
        "native_grid": backbone.get("image_size", 518) // backbone.get("patch_size", 14),
        "max_depth": float(published["max_depth"]) if metric else None,
    }


def _model(size: str, config: DepthAnythingConfig, licence: str, gigabytes: float) -> Model:
    part = Part(
        name="depth",
        config=config,
        network=DepthAnything,
        layouts=(
            Layout("transformers", lambda config: depth_anything.hf(), "backbone.embeddings.cls_token"),
            Layout("authors' .pth", lambda config: depth_anything.pth(), "pretrained.cls_token"),
        ),
        stems=("model",),
        read_config=read_config,
        size=gigabytes,
    )
    return Model(f"depth-anything-v2-{size.lower()}", f"depth-anything/Depth-Anything-V2-{size}-hf", licence, (part,))


MODELS = (
    _model("Small", DepthAnythingConfig.small(), "Apache-2.0", 0.10),
    _model("Base", DepthAnythingConfig.base(), "CC-BY-NC-4.0", 0.39),
    _model("Large", DepthAnythingConfig.large(), "CC-BY-NC-4.0", 1.34),
)
