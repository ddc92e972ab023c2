"""CogVideoX autoencoder: diffusers' ``vae/diffusion_pytorch_model.safetensors`` of every CogVideoX release."""

from converters.rules import CONV2D, CONV3D, Rule, Table
from converters.tables.common import affine, norm, pointwise

POINTWISE = pointwise(3)


def _spatial_norm(source: str, target: str) -> list[Rule]:
    return (
        norm(f"{source}.norm_layer", f"{target}.norm")
        + affine(f"{source}.conv_y.conv", f"{target}.scale", POINTWISE)
        + affine(f"{source}.conv_b.conv", f"{target}.shift", POINTWISE)
    )


def _plain_norm(source: str, target: str) -> list[Rule]:
    return norm(source, f"{target}.norm")


def _coder(coder: str, levels: str, samplers: tuple[str, str]) -> list[Rule]:
    own_norm = _plain_norm if coder == "encoder" else _spatial_norm
    rules = affine(f"{coder}.conv_in.conv", f"{coder}.conv_in.conv", CONV3D)
    rules += affine(f"{coder}.conv_out.conv", f"{coder}.conv_out.conv", CONV3D)
    rules += own_norm(f"{coder}.norm_out", f"{coder}.norm_out")
    rules += affine(f"{coder}.{levels}.{{i}}.{samplers[0]}.0.conv", f"{coder}.{samplers[1]}.{{i}}.conv", CONV2D)
    blocks = [(f"{levels}.{{i}}.resnets.{{j}}", "levels.{i}.blocks.{j}"), ("mid_block.resnets.{j}", "mid.blocks.{j}")]
    for source, target in blocks:
        source, target = f"{coder}.{source}", f"{coder}.{target}"
        rules += own_norm(f"{source}.norm1", f"{target}.norm1") + own_norm(f"{source}.norm2", f"{target}.norm2")
        rules += affine(f"{source}.conv1.conv", f"{target}.conv1.conv", CONV3D)
        rules += affine(f"{source}.conv2.conv", f"{target}.conv2.conv", CONV3D)
        rules += affine(f"{source}.conv_shortcut", f"{target}.shortcut", POINTWISE)
    return rules


TABLE = Table(
    _coder("encoder", "down_blocks", ("downsamplers", "downs")) + _coder("decoder", "up_blocks", ("upsamplers", "ups"))
)
