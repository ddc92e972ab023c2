"""FLUX's autoencoder: diffusers' ``vae/diffusion_pytorch_model.safetensors`` and the single file ``ae.safetensors``."""

from converters.rules import CONV2D, Rule, Table
from converters.tables.common import affine, norm, pointwise

POINTWISE = pointwise(2)


def _block(source: str, target: str, shortcut: str) -> list[Rule]:
    rules = affine(f"{source}.{shortcut}", f"{target}.shortcut", POINTWISE)
    for n in (1, 2):
        rules += norm(f"{source}.norm{n}", f"{target}.norm{n}")
        rules += affine(f"{source}.conv{n}", f"{target}.conv{n}", CONV2D)
    return rules


def _coder(coder: str, levels: str, samplers: tuple[str, str]) -> list[Rule]:
    rules = affine(f"{coder}.conv_in", f"{coder}.conv_in", CONV2D)
    rules += affine(f"{coder}.conv_out", f"{coder}.conv_out", CONV2D)
    rules += norm(f"{coder}.conv_norm_out", f"{coder}.norm_out")
    rules += affine(f"{coder}.{levels}.{{i}}.{samplers[0]}.0.conv", f"{coder}.{samplers[1]}.{{i}}", CONV2D)
    rules += _block(f"{coder}.{levels}.{{i}}.resnets.{{j}}", f"{coder}.levels.{{i}}.blocks.{{j}}", "conv_shortcut")
    for k, target in enumerate(("before", "after")):
        rules += _block(f"{coder}.mid_block.resnets.{k}", f"{coder}.mid.{target}", "conv_shortcut")
    source, target = f"{coder}.mid_block.attentions.0", f"{coder}.mid.attention"
    rules += norm(f"{source}.group_norm", f"{target}.norm")
    for theirs, ours in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out.0", "to_out")):
        rules += affine(f"{source}.{theirs}", f"{target}.{ours}")
    return rules


DIFFUSERS = Table(
    _coder("encoder", "down_blocks", ("downsamplers", "downs")) + _coder("decoder", "up_blocks", ("upsamplers", "ups"))
)


def _original_coder(coder: str, levels: str, sampler: str, samplers: str, order: range) -> list[Rule]:
    """Rules of a half, ``order`` being the published numbers of our levels."""
    rules = affine(f"{coder}.conv_in", f"{coder}.conv_in", CONV2D)
    rules += affine(f"{coder}.conv_out", f"{coder}.conv_out", CONV2D)
    rules += norm(f"{coder}.norm_out", f"{coder}.norm_out")
    for ours, theirs in enumerate(order):
        source = f"{coder}.{levels}.{theirs}"
        rules += _block(f"{source}.block.{{j}}", f"{coder}.levels.{ours}.blocks.{{j}}", "nin_shortcut")
        if ours < len(order) - 1:
            rules += affine(f"{source}.{sampler}.conv", f"{coder}.{samplers}.{ours}", CONV2D)
    for k, target in enumerate(("before", "after"), 1):
        rules += _block(f"{coder}.mid.block_{k}", f"{coder}.mid.{target}", "nin_shortcut")
    rules += norm(f"{coder}.mid.attn_1.norm", f"{coder}.mid.attention.norm")
    for theirs, ours in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out")):
        rules += affine(f"{coder}.mid.attn_1.{theirs}", f"{coder}.mid.attention.{ours}", POINTWISE)
    return rules


def original(levels: int) -> Table:
    """The authors' layout, which numbers the decoder's levels from the finest, for a network of so many levels."""
    return Table(
        _original_coder("encoder", "down", "downsample", "downs", range(levels))
        + _original_coder("decoder", "up", "upsample", "ups", range(levels - 1, -1, -1))
    )
