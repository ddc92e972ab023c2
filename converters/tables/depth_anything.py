"""Depth Anything V2: the layout of transformers (``*-hf``) and of the authors' ``.pth`` files, relative and metric."""

from converters.rules import CONV2D, IDENTITY, LINEAR, Rule, Table
from converters.tables.common import LEVELS, affine, block, fusion, norm

BLOCK = "backbone.blocks.layers"


def _backbone_hf() -> list[Rule]:
    layer, parts = "backbone.encoder.layer.{i}", ("query", "key", "value")
    attention = f"{layer}.attention.attention"
    return [
        Rule("backbone.embeddings.cls_token", "backbone.cls_token"),
        Rule("backbone.embeddings.position_embeddings", "backbone.pos_embed"),
        *affine("backbone.embeddings.patch_embeddings.projection", "backbone.patch_embed", CONV2D),
        *(Rule(f"{attention}.{p}.weight", f"{BLOCK}.attn.qkv_kernel", LINEAR, (k,)) for k, p in enumerate(parts)),
        *(Rule(f"{attention}.{p}.bias", f"{BLOCK}.attn.qkv_bias", IDENTITY, (k,)) for k, p in enumerate(parts)),
        *affine(f"{layer}.attention.output.dense", f"{BLOCK}.attn.proj", LINEAR),
        *affine(f"{layer}.mlp.fc1", f"{BLOCK}.fc1", LINEAR),
        *affine(f"{layer}.mlp.fc2", f"{BLOCK}.fc2", LINEAR),
        *norm(f"{layer}.norm1", f"{BLOCK}.norm1"),
        *norm(f"{layer}.norm2", f"{BLOCK}.norm2"),
        Rule(f"{layer}.layer_scale1.lambda1", f"{BLOCK}.scale1"),
        Rule(f"{layer}.layer_scale2.lambda1", f"{BLOCK}.scale2"),
        *norm("backbone.layernorm", "backbone.norm"),
    ]


def _backbone_pth() -> list[Rule]:
    layer = "pretrained.blocks.{i}"
    return [
        Rule("pretrained.cls_token", "backbone.cls_token"),
        Rule("pretrained.pos_embed", "backbone.pos_embed"),
        *affine("pretrained.patch_embed.proj", "backbone.patch_embed", CONV2D),
        *block(layer, BLOCK),
        Rule(f"{layer}.ls1.gamma", f"{BLOCK}.scale1"),
        Rule(f"{layer}.ls2.gamma", f"{BLOCK}.scale2"),
        *norm("pretrained.norm", "backbone.norm"),
    ]


def _head(project: str, resize: str, convs: tuple[str, ...], last: tuple[str, ...]) -> list[Rule]:
    """The head's rules but for fusion; ``project`` and ``resize`` are templates in ``k``, the level."""
    rules = []
    for k, kind in enumerate(LEVELS):
        rules += affine(project.format(k=k), f"head.reassemble.{k}.project", CONV2D)
        rules += affine(resize.format(k=k), f"head.reassemble.{k}.resize", kind) if kind else []
        rules.append(Rule(f"{convs[k]}.weight", f"head.convs.{k}.kernel", CONV2D))
    for k, name in enumerate(last, start=1):
        rules += affine(name, f"head.conv{k}", CONV2D)
    return rules


def hf() -> Table:
    """The ``model.safetensors`` of depth-anything/Depth-Anything-V2-*-hf."""
    stage = "neck.fusion_stage.layers"
    rules = _backbone_hf() + _head(
        "neck.reassemble_stage.layers.{k}.projection",
        "neck.reassemble_stage.layers.{k}.resize",
        tuple(f"neck.convs.{k}" for k in range(4)),
        ("head.conv1", "head.conv2", "head.conv3"),
    )
    for k in range(4):
        rules += fusion(f"{stage}.{k}", "residual_layer1", "residual_layer2", "convolution", "projection", k)
    unused = [f"{stage}.0.residual_layer1.convolution{n}.{p}" for n in (1, 2) for p in ("weight", "bias")]
    return Table(rules, ("backbone.embeddings.mask_token", *unused))


def pth() -> Table:
    """The authors' ``depth_anything_v2_{vits,vitb,vitl}.pth`` and their metric variants."""
    scratch = "depth_head.scratch"
    rules = _backbone_pth() + _head(
        "depth_head.projects.{k}",
        "depth_head.resize_layers.{k}",
        tuple(f"{scratch}.layer{k}_rn" for k in range(1, 5)),
        (f"{scratch}.output_conv1", f"{scratch}.output_conv2.0", f"{scratch}.output_conv2.2"),
    )
    for k in range(4):
        rules += fusion(f"{scratch}.refinenet{4 - k}", "resConfUnit1", "resConfUnit2", "conv", "out_conv", k)
    unused = [f"{scratch}.refinenet4.resConfUnit1.conv{n}.{p}" for n in (1, 2) for p in ("weight", "bias")]
    return Table(rules, ("pretrained.mask_token", *unused))
