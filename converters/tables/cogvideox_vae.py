"""CogVideoX autoencoder: diffusers' ``vae/diffusion_pytorch_model.safetensors`` of every CogVideoX release."""

from converters.rules import CONV2D, CONV3D, IDENTITY, Rule, Table, Transform

# A 1x1x1 convolution is a matrix: [out, in, 1, 1, 1] -> [in, out].
POINTWISE = Transform("pointwise", lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T[:, :, None, None, None])


def _layer(source: str, target: str, transform: Transform) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{target}.kernel", transform),
        Rule(f"{source}.bias", f"{target}.bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{target}.scale", IDENTITY),
        Rule(f"{source}.bias", f"{target}.bias"),
    ]


def _spatial_norm(source: str, target: str) -> list[Rule]:
    return (
        _norm(f"{source}.norm_layer", f"{target}.norm")
        + _layer(f"{source}.conv_y.conv", f"{target}.scale", POINTWISE)
        + _layer(f"{source}.conv_b.conv", f"{target}.shift", POINTWISE)
    )


def _plain_norm(source: str, target: str) -> list[Rule]:
    return _norm(source, f"{target}.norm")


def _coder(coder: str, levels: str, samplers: tuple[str, str]) -> list[Rule]:
    norm = _plain_norm if coder == "encoder" else _spatial_norm
    rules = _layer(f"{coder}.conv_in.conv", f"{coder}.conv_in.conv", CONV3D)
    rules += _layer(f"{coder}.conv_out.conv", f"{coder}.conv_out.conv", CONV3D)
    rules += norm(f"{coder}.norm_out", f"{coder}.norm_out")
    rules += _layer(f"{coder}.{levels}.{{i}}.{samplers[0]}.0.conv", f"{coder}.{samplers[1]}.{{i}}.conv", CONV2D)
    blocks = [(f"{levels}.{{i}}.resnets.{{j}}", "levels.{i}.blocks.{j}"), ("mid_block.resnets.{j}", "mid.blocks.{j}")]
    for source, target in blocks:
        source, target = f"{coder}.{source}", f"{coder}.{target}"
        rules += norm(f"{source}.norm1", f"{target}.norm1") + norm(f"{source}.norm2", f"{target}.norm2")
        rules += _layer(f"{source}.conv1.conv", f"{target}.conv1.conv", CONV3D)
        rules += _layer(f"{source}.conv2.conv", f"{target}.conv2.conv", CONV3D)
        rules += _layer(f"{source}.conv_shortcut", f"{target}.shortcut", POINTWISE)
    return rules


TABLE = Table(
    _coder("encoder", "down_blocks", ("downsamplers", "downs")) + _coder("decoder", "up_blocks", ("upsamplers", "ups"))
)
