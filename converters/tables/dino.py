"""DINO and DINOv2 backbones: the authors' ``.pth`` and the layout of transformers (``facebook/dino-*``)."""

from converters.rules import CONV2D, IDENTITY, LINEAR, Rule, Table
from converters.tables.common import affine, block, norm


def backbone(source: str = "", target: str = "", *, layer_scale: bool = False) -> list[Rule]:
    """A `reangle_jax.nn.vit.VisionTransformer` in the authors' names.

    Args:
        source: prefix of the published names, with its dot.
        target: prefix of the parameters' paths, with its dot.
        layer_scale: whether there is LayerScale (DINOv2).

    Returns:
        The rules.
    """
    layer, layers = f"{source}blocks.{{i}}", f"{target}blocks.layers"
    scales = [Rule(f"{layer}.ls{n}.gamma", f"{layers}.scale{n}") for n in (1, 2)] if layer_scale else []
    return [
        Rule(f"{source}cls_token", f"{target}cls_token"),
        Rule(f"{source}pos_embed", f"{target}pos_embed"),
        *affine(f"{source}patch_embed.proj", f"{target}patch_embed", CONV2D),
        *block(layer, layers),
        *scales,
        *norm(f"{source}norm", f"{target}norm"),
    ]


def pth() -> Table:
    """``dino_deitsmall16_pretrain.pth``."""
    return Table(backbone())


def dinov2_pth() -> Table:
    """``dinov2_vits14_pretrain.pth`` and its larger siblings without registers."""
    return Table(backbone(layer_scale=True), ("mask_token",))


def dinov2_hf_backbone(source: str = "", target: str = "") -> list[Rule]:
    """The same network with LayerScale in the names of transformers' Dinov2; prefixes as in `backbone`."""
    layer, layers, parts = f"{source}encoder.layer.{{i}}", f"{target}blocks.layers", ("query", "key", "value")
    attention = f"{layer}.attention.attention"
    return [
        Rule(f"{source}embeddings.cls_token", f"{target}cls_token"),
        Rule(f"{source}embeddings.position_embeddings", f"{target}pos_embed"),
        *affine(f"{source}embeddings.patch_embeddings.projection", f"{target}patch_embed", CONV2D),
        *(Rule(f"{attention}.{p}.weight", f"{layers}.attn.qkv_kernel", LINEAR, (k,)) for k, p in enumerate(parts)),
        *(Rule(f"{attention}.{p}.bias", f"{layers}.attn.qkv_bias", IDENTITY, (k,)) for k, p in enumerate(parts)),
        *affine(f"{layer}.attention.output.dense", f"{layers}.attn.proj", LINEAR),
        *affine(f"{layer}.mlp.fc1", f"{layers}.fc1", LINEAR),
        *affine(f"{layer}.mlp.fc2", f"{layers}.fc2", LINEAR),
        *norm(f"{layer}.norm1", f"{layers}.norm1"),
        *norm(f"{layer}.norm2", f"{layers}.norm2"),
        Rule(f"{layer}.layer_scale1.lambda1", f"{layers}.scale1"),
        Rule(f"{layer}.layer_scale2.lambda1", f"{layers}.scale2"),
        *norm(f"{source}layernorm", f"{target}norm"),
    ]


def dinov2_hf() -> Table:
    """``facebook/dinov2-small`` and its larger siblings without registers."""
    return Table(dinov2_hf_backbone(), ("embeddings.mask_token",))


def hf() -> Table:
    """``facebook/dino-vits16``, whose pooler, where one was saved, was never trained."""
    layer, layers, parts = "encoder.layer.{i}", "blocks.layers", ("query", "key", "value")
    attention = f"{layer}.attention.attention"
    rules = [
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        *affine("embeddings.patch_embeddings.projection", "patch_embed", CONV2D),
        *(Rule(f"{attention}.{p}.weight", f"{layers}.attn.qkv_kernel", LINEAR, (k,)) for k, p in enumerate(parts)),
        *(Rule(f"{attention}.{p}.bias", f"{layers}.attn.qkv_bias", IDENTITY, (k,)) for k, p in enumerate(parts)),
        *affine(f"{layer}.attention.output.dense", f"{layers}.attn.proj", LINEAR),
        *affine(f"{layer}.intermediate.dense", f"{layers}.fc1", LINEAR),
        *affine(f"{layer}.output.dense", f"{layers}.fc2", LINEAR),
        *norm(f"{layer}.layernorm_before", f"{layers}.norm1"),
        *norm(f"{layer}.layernorm_after", f"{layers}.norm2"),
        *norm("layernorm", "norm"),
    ]
    return Table(rules, ("pooler.dense.weight", "pooler.dense.bias"))
