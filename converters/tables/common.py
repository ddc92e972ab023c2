"""Rules that several models share."""

from converters.rules import CONV2D, IDENTITY, LINEAR, Rule, Transform, permute
from reangle_jax.nn.channel_order import to_halves, to_pairs

UP_CONV = permute("up_conv", 2, 3, 0, 1)  # [in, out, h, w] -> [h, w, in, out]
# [3 out, in] -> [3, in, out] and [3 out] -> [3, out]
QKV_KERNEL = Transform(
    "qkv_kernel",
    lambda x: x.reshape(3, -1, x.shape[-1]).transpose(0, 2, 1),
    lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1]),
)
QKV_BIAS = Transform("qkv_bias", lambda x: x.reshape(3, -1), lambda x: x.reshape(-1))

LEVELS = (UP_CONV, UP_CONV, None, CONV2D)  # how a dense head resizes each level; None: not at all


def rotated(dim: int) -> tuple[Transform, Transform]:
    """Transforms of a kernel and of a vector whose last axis is rotated head by head: interleaved pairs -> halves."""
    vector = Transform("rope_vector", lambda x: to_halves(x, dim), lambda x: to_pairs(x, dim))
    # Rows first, then the transposition: whole rows move faster than values that lie far apart.
    kernel = Transform(
        "rope_linear",
        lambda x: x.reshape(-1, dim // 2, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape).T,
        lambda x: x.T.reshape(-1, 2, dim // 2, x.shape[0]).swapaxes(1, 2).reshape(x.T.shape),
    )
    return kernel, vector


def pointwise(axes: int) -> Transform:
    """A convolution of one pixel is a matrix: [out, in, 1, ...], with so many axes of pixels, -> [in, out]."""
    return Transform(
        "pointwise", lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T.reshape(*x.shape[::-1], *[1] * axes)
    )


def affine(source: str, target: str, kernel: Transform = LINEAR, vector: Transform = IDENTITY) -> list[Rule]:
    """A layer with weight and bias."""
    return [Rule(f"{source}.weight", f"{target}.kernel", kernel), Rule(f"{source}.bias", f"{target}.bias", vector)]


def norm(source: str, target: str, vector: Transform = IDENTITY) -> list[Rule]:
    """A norm with weight and bias."""
    return [Rule(f"{source}.weight", f"{target}.scale", vector), Rule(f"{source}.bias", f"{target}.bias", vector)]


def self_attention(source: str, target: str) -> list[Rule]:
    """`reangle_jax.nn.vit.SelfAttention`, from a layer that joins query, key and value."""
    return [
        Rule(f"{source}.qkv.weight", f"{target}.qkv_kernel", QKV_KERNEL),
        Rule(f"{source}.qkv.bias", f"{target}.qkv_bias", QKV_BIAS),
        *affine(f"{source}.proj", f"{target}.proj"),
    ]


def block(source: str, target: str) -> list[Rule]:
    """`reangle_jax.nn.vit.Block` without LayerScale, in the names of timm, which most authors keep."""
    return [
        *norm(f"{source}.norm1", f"{target}.norm1"),
        *self_attention(f"{source}.attn", f"{target}.attn"),
        *norm(f"{source}.norm2", f"{target}.norm2"),
        *affine(f"{source}.mlp.fc1", f"{target}.fc1"),
        *affine(f"{source}.mlp.fc2", f"{target}.fc2"),
    ]


def fusion(block: str, skip: str, refine: str, conv: str, project: str, k: int, *, head: str = "head") -> list[Rule]:
    """One fusion block's rules, ``k`` counted from the deepest, whose skip unit exists in files but is never used."""
    rules = affine(f"{block}.{project}", f"{head}.fusion.{k}.project", CONV2D)
    for source, target in ((skip, "skip"), (refine, "refine"))[0 if k else 1 :]:
        for n in (1, 2):
            rules += affine(f"{block}.{source}.{conv}{n}", f"{head}.fusion.{k}.{target}.conv{n}", CONV2D)
    return rules
