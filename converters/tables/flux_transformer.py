"""FLUX's transformers and their inpainting ControlNet: diffusers' layout, and the authors' own of the transformers."""

from collections.abc import Sequence

import numpy as np

from converters.rules import IDENTITY, LINEAR, Rule, Table, Transform
from converters.tables.common import affine, rotated
from reangle_jax.models.flux.transformer_config import FluxConfig


def _embedders(target: str) -> list[Rule]:
    return [
        rule
        for theirs, ours in (
            ("timestep_embedder", "timestep"),
            ("guidance_embedder", "guidance"),
            ("text_embedder", "text"),
        )
        for rule in affine(f"time_text_embed.{theirs}.linear_{{n}}", f"{target}.{ours}.linear_{{n}}")
    ]


def _heads(source: str, target: str, maps: tuple[str, str, str], norms: tuple[str, str], dim: int) -> list[Rule]:
    kernel, vector = rotated(dim)
    rules = []
    for theirs, ours in zip(maps[:2], ("to_q", "to_k"), strict=True):
        rules.append(Rule(f"{source}.{theirs}.weight", f"{target}.{ours}.kernel", kernel))
        rules.append(Rule(f"{source}.{theirs}.bias", f"{target}.{ours}.bias", vector))
    rules += affine(f"{source}.{maps[2]}", f"{target}.to_v")
    for theirs, ours in zip(norms, ("norm_q", "norm_k"), strict=True):
        rules.append(Rule(f"{source}.{theirs}.weight", f"{target}.{ours}.scale", vector))
    return rules


def _joint(source: str, target: str, dim: int) -> list[Rule]:
    return [
        *_heads(f"{source}.attn", f"{target}.picture.heads", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), dim),
        *_heads(
            f"{source}.attn",
            f"{target}.text.heads",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            ("norm_added_q", "norm_added_k"),
            dim,
        ),
        *affine(f"{source}.attn.to_out.0", f"{target}.picture.to_out"),
        *affine(f"{source}.attn.to_add_out", f"{target}.text.to_out"),
        *affine(f"{source}.norm1.linear", f"{target}.picture.norm.linear"),
        *affine(f"{source}.norm1_context.linear", f"{target}.text.norm.linear"),
        *affine(f"{source}.ff.net.0.proj", f"{target}.picture.ff.up"),
        *affine(f"{source}.ff.net.2", f"{target}.picture.ff.down"),
        *affine(f"{source}.ff_context.net.0.proj", f"{target}.text.ff.up"),
        *affine(f"{source}.ff_context.net.2", f"{target}.text.ff.down"),
    ]


def transformer(config: FluxConfig) -> Table:
    """FLUX.1-dev, FLUX.1-Fill-dev, or another of their shape. No published tensor is left over."""
    dim = config.attention_head_dim
    source, target = "single_transformer_blocks.{i}", "single.layers"
    return Table(
        [
            *affine("x_embedder", "embed_picture"),
            *affine("context_embedder", "embed_text"),
            *_embedders("embedders"),
            *_joint("transformer_blocks.{i}", "joint.layers", dim),
            *_heads(f"{source}.attn", f"{target}.heads", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), dim),
            *affine(f"{source}.norm.linear", f"{target}.norm.linear"),
            *affine(f"{source}.proj_mlp", f"{target}.up"),
            *affine(f"{source}.proj_out", f"{target}.out"),
            *affine("norm_out.linear", "head.linear"),
            *affine("proj_out", "head.proj_out"),
        ]
    )


def controlnet(config: FluxConfig) -> Table:
    """The inpainting ControlNet. No published tensor is left over."""
    return Table(
        [
            *affine("x_embedder", "embed_picture"),
            *affine("controlnet_x_embedder", "embed_condition"),
            *affine("context_embedder", "embed_text"),
            *_embedders("embedders"),
            *_joint("transformer_blocks.{i}", "blocks.layers.block", config.attention_head_dim),
            *affine("controlnet_blocks.{i}", "blocks.layers.residual"),
        ]
    )


def _halves_swapped(name: str, after: Transform) -> Transform:
    """Another order of two halves of the rows, then a transform."""

    def swap(x):
        return np.roll(x, len(x) // 2, axis=0)

    return Transform(name, lambda x: after.forward(swap(x)), lambda x: swap(after.inverse(x)))


def _sharing(source: str, parts: Sequence[tuple[str, int, Transform, Transform]]) -> list[Rule]:
    """Layers (target, width, transforms of kernel and bias) whose rows are joined in one published layer."""
    total = sum(width for _, width, _, _ in parts)
    rules, first = [], 0
    for target, width, kernel, vector in parts:
        rows = (first, first + width, total)
        rules.append(Rule(f"{source}.weight", f"{target}.kernel", kernel, rows=rows))
        rules.append(Rule(f"{source}.bias", f"{target}.bias", vector, rows=rows))
        first += width
    return rules


def original(config: FluxConfig) -> Table:
    """The same transformers in the authors' single files. No published tensor is left over.

    Queries, keys and values are one layer there, joined by the feed-forward's first in single blocks; the last norm has
    its shift before its scale.
    """
    width = config.inner_dim
    kernel, vector = rotated(config.attention_head_dim)

    def heads(target: str) -> list[tuple[str, int, Transform, Transform]]:
        turned = [(f"{target}.{to}", width, kernel, vector) for to in ("to_q", "to_k")]
        return [*turned, (f"{target}.to_v", width, LINEAR, IDENTITY)]

    def norms(source: str, target: str) -> list[Rule]:
        pairs = (("query_norm", "norm_q"), ("key_norm", "norm_k"))
        return [Rule(f"{source}.{theirs}.scale", f"{target}.{ours}.scale", vector) for theirs, ours in pairs]

    rules = [*affine("img_in", "embed_picture"), *affine("txt_in", "embed_text")]
    for theirs, ours in (("time_in", "timestep"), ("guidance_in", "guidance"), ("vector_in", "text")):
        rules += affine(f"{theirs}.in_layer", f"embedders.{ours}.linear_1")
        rules += affine(f"{theirs}.out_layer", f"embedders.{ours}.linear_2")
    for theirs, ours in (("img", "picture"), ("txt", "text")):
        source, target = f"double_blocks.{{i}}.{theirs}", f"joint.layers.{ours}"
        rules += _sharing(f"{source}_attn.qkv", heads(f"{target}.heads"))
        rules += norms(f"{source}_attn.norm", f"{target}.heads")
        rules += affine(f"{source}_attn.proj", f"{target}.to_out")
        rules += affine(f"{source}_mod.lin", f"{target}.norm.linear")
        rules += affine(f"{source}_mlp.0", f"{target}.ff.up")
        rules += affine(f"{source}_mlp.2", f"{target}.ff.down")
    source, target = "single_blocks.{i}", "single.layers"
    rules += _sharing(f"{source}.linear1", [*heads(f"{target}.heads"), (f"{target}.up", 4 * width, LINEAR, IDENTITY)])
    rules += norms(f"{source}.norm", f"{target}.heads")
    rules += affine(f"{source}.linear2", f"{target}.out")
    rules += affine(f"{source}.modulation.lin", f"{target}.norm.linear")
    rules += [
        Rule("final_layer.adaLN_modulation.1.weight", "head.linear.kernel", _halves_swapped("scale_first", LINEAR)),
        Rule("final_layer.adaLN_modulation.1.bias", "head.linear.bias", _halves_swapped("scale_first", IDENTITY)),
        *affine("final_layer.linear", "head.proj_out"),
    ]
    return Table(rules)
