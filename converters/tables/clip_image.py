"""CLIP's image tower as transformers keeps it, the text tower left over; LAION's linear head."""

from converters.rules import CONV2D, IDENTITY, LINEAR, Rule, Table
from converters.tables.common import affine, norm

_VISION = "vision_model"
_LAYER = f"{_VISION}.encoder.layers.{{i}}"
_TEXT_LAYER = "text_model.encoder.layers.{i}"
_SUBLAYERS = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
_UNUSED = (
    "logit_scale",
    "text_projection.weight",
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    *(f"text_model.final_layer_norm.{end}" for end in ("weight", "bias")),
    *(f"{_TEXT_LAYER}.{name}.{end}" for name in _SUBLAYERS for end in ("weight", "bias")),
    # Counters that old releases saved along.
    "text_model.embeddings.position_ids",
    f"{_VISION}.embeddings.position_ids",
)


def image_tower() -> Table:
    """``openai/clip-vit-base-patch32`` and ``-large-patch14``."""
    layers, parts = "blocks.layers", enumerate(("q", "k", "v"))
    rules = [
        Rule(f"{_VISION}.embeddings.class_embedding", "cls_token"),
        Rule(f"{_VISION}.embeddings.position_embedding.weight", "pos_embed"),
        Rule(f"{_VISION}.embeddings.patch_embedding.weight", "patch_embed.kernel", CONV2D),
        *norm(f"{_VISION}.pre_layrnorm", "norm_in"),  # as published
        *norm(f"{_LAYER}.layer_norm1", f"{layers}.norm1"),
        *norm(f"{_LAYER}.layer_norm2", f"{layers}.norm2"),
        *affine(f"{_LAYER}.self_attn.out_proj", f"{layers}.attn.proj"),
        *affine(f"{_LAYER}.mlp.fc1", f"{layers}.fc1"),
        *affine(f"{_LAYER}.mlp.fc2", f"{layers}.fc2"),
        *norm(f"{_VISION}.post_layernorm", "norm"),
        Rule("visual_projection.weight", "projection.kernel", LINEAR),
    ]
    for k, part in parts:
        name = f"{_LAYER}.self_attn.{part}_proj"
        rules.append(Rule(f"{name}.weight", f"{layers}.attn.qkv_kernel", LINEAR, (k,)))
        rules.append(Rule(f"{name}.bias", f"{layers}.attn.qkv_bias", IDENTITY, (k,)))
    return Table(rules, _UNUSED)


def aesthetic() -> Table:
    """``sa_0_4_vit_l_14_linear.pth``."""
    return Table([Rule("weight", "head.kernel", LINEAR), Rule("bias", "head.bias")])
