"""DUSt3R and MASt3R: the Hub's ``model.safetensors`` and the authors' ``.pth`` (the part under ``model``)."""

from converters.rules import CONV2D, Rule, Table
from converters.tables.common import LEVELS, affine, block, fusion, norm, self_attention

REFINE = "resConfUnit2"
SKIP = "resConfUnit1"  # the deepest level's is in the files and never used


def _decoder(source: str, target: str) -> list[Rule]:
    parts = {"projq": "to_q", "projk": "to_k", "projv": "to_v", "proj": "proj"}
    return [
        *norm(f"{source}.norm1", f"{target}.norm1"),
        *self_attention(f"{source}.attn", f"{target}.attn"),
        *norm(f"{source}.norm2", f"{target}.norm2"),
        *norm(f"{source}.norm_y", f"{target}.norm_memory"),
        *(r for s, t in parts.items() for r in affine(f"{source}.cross_attn.{s}", f"{target}.cross.{t}")),
        *norm(f"{source}.norm3", f"{target}.norm3"),
        *affine(f"{source}.mlp.fc1", f"{target}.fc1"),
        *affine(f"{source}.mlp.fc2", f"{target}.fc2"),
    ]


def _dpt(source: str, target: str) -> list[Rule]:
    rules = []
    for k, kind in enumerate(LEVELS):
        rules += affine(f"{source}.act_postprocess.{k}.0", f"{target}.reassemble.{k}.project", CONV2D)
        if kind:
            rules += affine(f"{source}.act_postprocess.{k}.1", f"{target}.reassemble.{k}.resize", kind)
        rules.append(Rule(f"{source}.scratch.layer{k + 1}_rn.weight", f"{target}.convs.{k}.kernel", CONV2D))
        rules += fusion(f"{source}.scratch.refinenet{4 - k}", SKIP, REFINE, "conv", "out_conv", k, head=target)
    for k, name in enumerate(("head.0", "head.2", "head.4"), start=1):
        rules += affine(f"{source}.{name}", f"{target}.conv{k}", CONV2D)
    return rules


def _head(kind: str, n: int) -> tuple[list[Rule], list[str]]:
    """One head's rules, and its tensors that are never used or are another's copy."""
    source, target = f"downstream_head{n}", f"head{n}"
    if kind == "linear":
        return affine(f"{source}.proj", f"{target}.proj"), []
    unused = [f"{source}.dpt.scratch.refinenet4.{SKIP}.conv{c}.{p}" for c in (1, 2) for p in ("weight", "bias")]
    # The .pth files hold these a second time, as layer{1..4}_rn.
    unused += [f"{source}.dpt.scratch.layer_rn.{k}.weight" for k in range(4)]
    if kind == "dpt":
        return _dpt(f"{source}.dpt", target), unused
    local = f"{source}.head_local_features"
    rules = affine(f"{local}.fc1", f"{target}.fc1") + affine(f"{local}.fc2", f"{target}.fc2")
    return rules + _dpt(f"{source}.dpt", f"{target}.dpt"), unused


def table(head: str) -> Table:
    """The rules of both layouts, for one of `reangle_jax.models.dust3r.config.HEADS`.

    What is ignored are the unused ``mask_token`` and skip unit, and the ``.pth`` files' copies.
    """
    rules = [
        *affine("patch_embed.proj", "patch_embed", CONV2D),
        *block("enc_blocks.{i}", "encoder.layers"),
        *norm("enc_norm", "encoder_norm"),
        *affine("decoder_embed", "decoder_embed"),
        *_decoder("dec_blocks.{i}", "decoder.layers.first"),
        *_decoder("dec_blocks2.{i}", "decoder.layers.second"),
        *norm("dec_norm", "decoder_norm"),
    ]
    ignored = ["mask_token"]
    for n in (1, 2):
        head_rules, head_ignored = _head(head, n)
        rules += head_rules
        ignored += head_ignored
    return Table(rules, tuple(ignored))
