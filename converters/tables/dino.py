"""DINO and DINOv2 backbones: the authors' ``.pth`` and the layout of transformers (``facebook/dino-*``)."""

from converters.rules import CONV2D, IDENTITY, LINEAR, Rule, Table
from converters.tables.common import affine, block, norm


def backbone(source: str = "", target: str = "", *, layer_scale: bool = False) -> list[Rule]:
    """A `reangle_jax.nn.vit.VisionTransformer` in the authors' names, both behind a prefix; DINOv2 has LayerScale."""
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


def _hf_backbone(source: str, target: str, names: tuple[str, str, str, str]) -> list[Rule]:
    """The same as transformers names it; ``names`` are the feed-forward's two layers' and the two norms'."""
    layer, layers, parts = f"{source}encoder.layer.{{i}}", f"{target}blocks.layers", ("query", "key", "value")
    attention = f"{layer}.attention.attention"
    return [
        Rule(f"{source}embeddings.cls_token", f"{target}cls_token"),
        Rule(f"{source}embeddings.position_embeddings", f"{target}pos_embed"),
        *affine(f"{source}embeddings.patch_embeddings.projection", f"{target}patch_embed", CONV2D),
        *(Rule(f"{attention}.{p}.weight", f"{layers}.attn.qkv_kernel", LINEAR, (k,)) for k, p in enumerate(parts)),
        *(Rule(f"{attention}.{p}.bias", f"{layers}.attn.qkv_bias", IDENTITY, (k,)) for k, p in enumerate(parts)),
        *affine(f"{layer}.attention.output.dense", f"{layers}.attn.proj"),
        *affine(f"{layer}.{names[0]}", f"{layers}.fc1"),
        *affine(f"{layer}.{names[1]}", f"{layers}.fc2"),
        *norm(f"{layer}.{names[2]}", f"{layers}.norm1"),
        *norm(f"{layer}.{names[3]}", f"{layers}.norm2"),
        *norm(f"{source}layernorm", f"{target}norm"),
    ]


def dinov2_hf_backbone(source: str = "", target: str = "") -> list[Rule]:
    """The network with LayerScale in the names of transformers' Dinov2; prefixes as in `backbone`."""
    layer, layers = f"{source}encoder.layer.{{i}}", f"{target}blocks.layers"
    scales = [Rule(f"{layer}.layer_scale{n}.lambda1", f"{layers}.scale{n}") for n in (1, 2)]
    return _hf_backbone(source, target, ("mlp.fc1", "mlp.fc2", "norm1", "norm2")) + scales


def dinov2_hf() -> Table:
    """``facebook/dinov2-small`` and its larger siblings without registers."""
    return Table(dinov2_hf_backbone(), ("embeddings.mask_token",))


def hf() -> Table:
    """``facebook/dino-vits16``, whose pooler, where one was saved, was never trained."""
    rules = _hf_backbone("", "", ("intermediate.dense", "output.dense", "layernorm_before", "layernorm_after"))
    return Table(rules, ("pooler.dense.weight", "pooler.dense.bias"))
