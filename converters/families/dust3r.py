"""DUSt3R and MASt3R, as the Hub keeps them and as the authors' .pth."""

import ast
from collections.abc import Mapping
from typing import Any

from converters.registry import Layout, Model, Part
from converters.tables import dust3r
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig

LICENCE = "CC-BY-NC-SA-4.0"
_HEADS = {"linear": "linear", "dpt": "dpt", "catmlp+dpt": "mast3r"}
_SIZES = {
    "enc_embed_dim": "encoder_width",
    "enc_depth": "encoder_depth",
    "enc_num_heads": "encoder_heads",
    "dec_embed_dim": "decoder_width",
    "dec_depth": "decoder_depth",
    "dec_num_heads": "decoder_heads",
}


def read_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Dust3rConfig` from the Hub's config.json, as far as it gives them."""
    fields = {ours: published[theirs] for theirs, ours in _SIZES.items() if theirs in published}
    if "head_type" in published:
        fields["head"] = _HEADS.get(published["head_type"], str(published["head_type"]))
    if "img_size" in published:
        size = published["img_size"]  # a tuple, or how Python prints one
        fields["image_size"] = max(ast.literal_eval(size) if isinstance(size, str) else size)
    return fields


def _model(name: str, repo: str, config: Dust3rConfig, gigabytes: float) -> Model:
    part = Part(
        name="dust3r",
        config=config,
        network=Dust3r,
        layouts=(Layout("authors'", lambda config: dust3r.table(config.head), "decoder_embed.weight"),),
        stems=("model",),
        kind=lambda config: {"head_type": config.head},
        read_config=read_config,
        size=gigabytes,
    )
    return Model(name, f"naver/{repo}", LICENCE, (part,))


MODELS = (
    _model("dust3r-512-dpt", "DUSt3R_ViTLarge_BaseDecoder_512_dpt", Dust3rConfig.large("dpt", 512), 2.28),
    _model("dust3r-512-linear", "DUSt3R_ViTLarge_BaseDecoder_512_linear", Dust3rConfig.large("linear", 512), 2.13),
    _model("dust3r-224-linear", "DUSt3R_ViTLarge_BaseDecoder_224_linear", Dust3rConfig.large("linear", 224), 2.13),
    _model("mast3r-512", "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric", Dust3rConfig.large("mast3r", 512), 2.75),
)
