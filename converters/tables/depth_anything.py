"""Depth Anything V2: the layout of transformers (``*-hf``) and of the authors' ``.pth`` files, relative and metric."""

from converters.rules import CONV2D, Rule, Table
from converters.tables.common import LEVELS, affine, fusion
from converters.tables.dino import backbone, dinov2_hf_backbone


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
    rules = dinov2_hf_backbone("backbone.", "backbone.") + _head(
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
    rules = backbone("pretrained.", "backbone.", layer_scale=True) + _head(
        "depth_head.projects.{k}",
        "depth_head.resize_layers.{k}",
        tuple(f"{scratch}.layer{k}_rn" for k in range(1, 5)),
        (f"{scratch}.output_conv1", f"{scratch}.output_conv2.0", f"{scratch}.output_conv2.2"),
    )
    for k in range(4):
        rules += fusion(f"{scratch}.refinenet{4 - k}", "resConfUnit1", "resConfUnit2", "conv", "out_conv", k)
    unused = [f"{scratch}.refinenet4.resConfUnit1.conv{n}.{p}" for n in (1, 2) for p in ("weight", "bias")]
    return Table(rules, ("pretrained.mask_token", *unused))
