"""FLUX's transformers and their inpainting ControlNet in diffusers' layout."""

from converters.rules import LINEAR, Rule, Table
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
        for rule in affine(f"time_text_embed.{theirs}.linear_{{n}}", f"{target}.{ours}.linear_{{n}}", LINEAR)
    ]


def _heads(source: str, target: str, maps: tuple[str, str, str], norms: tuple[str, str], dim: int) -> list[Rule]:
    kernel, vector = rotated(dim)
    rules = []
    for theirs, ours in zip(maps[:2], ("to_q", "to_k"), strict=True):
        rules.append(Rule(f"{source}.{theirs}.weight", f"{target}.{ours}.kernel", kernel))
        rules.append(Rule(f"{source}.{theirs}.bias", f"{target}.{ours}.bias", vector))
    rules += affine(f"{source}.{maps[2]}", f"{target}.to_v", LINEAR)
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
        *affine(f"{source}.attn.to_out.0", f"{target}.picture.to_out", LINEAR),
        *affine(f"{source}.attn.to_add_out", f"{target}.text.to_out", LINEAR),
        *affine(f"{source}.norm1.linear", f"{target}.picture.norm.linear", LINEAR),
        *affine(f"{source}.norm1_context.linear", f"{target}.text.norm.linear", LINEAR),
        *affine(f"{source}.ff.net.0.proj", f"{target}.picture.ff.up", LINEAR),
        *affine(f"{source}.ff.net.2", f"{target}.picture.ff.down", LINEAR),
        *affine(f"{source}.ff_context.net.0.proj", f"{target}.text.ff.up", LINEAR),
        *affine(f"{source}.ff_context.net.2", f"{target}.text.ff.down", LINEAR),
    ]


def transformer(config: FluxConfig) -> Table:
    """FLUX.1-dev, FLUX.1-Fill-dev, or another of their shape. No published tensor is left over."""
    dim = config.attention_head_dim
    source, target = "single_transformer_blocks.{i}", "single.layers"
    return Table(
        [
            *affine("x_embedder", "embed_picture", LINEAR),
            *affine("context_embedder", "embed_text", LINEAR),
            *_embedders("embedders"),
            *_joint("transformer_blocks.{i}", "joint.layers", dim),
            *_heads(f"{source}.attn", f"{target}.heads", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), dim),
            *affine(f"{source}.norm.linear", f"{target}.norm.linear", LINEAR),
            *affine(f"{source}.proj_mlp", f"{target}.up", LINEAR),
            *affine(f"{source}.proj_out", f"{target}.out", LINEAR),
            *affine("norm_out.linear", "head.linear", LINEAR),
            *affine("proj_out", "head.proj_out", LINEAR),
        ]
    )


def controlnet(config: FluxConfig) -> Table:
    """The inpainting ControlNet. No published tensor is left over."""
    return Table(
        [
            *affine("x_embedder", "embed_picture", LINEAR),
            *affine("controlnet_x_embedder", "embed_condition", LINEAR),
            *affine("context_embedder", "embed_text", LINEAR),
            *_embedders("embedders"),
            *_joint("transformer_blocks.{i}", "blocks.layers.block", config.attention_head_dim),
            *affine("controlnet_blocks.{i}", "blocks.layers.residual", LINEAR),
        ]
    )
