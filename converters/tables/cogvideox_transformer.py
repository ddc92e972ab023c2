"""CogVideoX transformers, diffusers layout: 2b, 5b, 5b-I2V and 1.5-5B-I2V, by config."""

from converters.rules import LINEAR, Rule, Table, Transform
from converters.tables.common import affine, norm, rotated
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig

POSITIONS = Transform("positions", lambda x: x[0], lambda x: x[None])  # [1, S, width] -> [S, width]


def _patches(config: TransformerConfig) -> Transform:
    """[out, in, h, w] -> [in * h * w, out]; models with patches in time are published flat."""
    if config.patch_size_t is not None:
        return LINEAR
    size = config.patch_size
    return Transform(
        "patches",
        lambda x: x.reshape(x.shape[0], -1).T,
        lambda x: x.T.reshape(x.shape[1], -1, size, size),
    )


def table(config: TransformerConfig) -> Table:
    """The rules for one of the published transformers, or for one of their shape. No published tensor is left over."""
    kernel, vector = rotated(config.attention_head_dim)
    layer, stack = "transformer_blocks.{i}", "blocks.layers"
    rules = [
        *affine("patch_embed.proj", "patch_embed.proj", _patches(config)),
        *affine("patch_embed.text_proj", "patch_embed.text_proj"),
        *affine("time_embedding.linear_{n}", "time_embedding.linear_{n}"),
        *affine(f"{layer}.norm{{n}}.linear", f"{stack}.norm{{n}}.linear"),
        *norm(f"{layer}.norm{{n}}.norm", f"{stack}.norm{{n}}.norm"),
        *affine(f"{layer}.attn1.to_q", f"{stack}.attn.to_q", kernel, vector),
        *affine(f"{layer}.attn1.to_k", f"{stack}.attn.to_k", kernel, vector),
        *affine(f"{layer}.attn1.to_v", f"{stack}.attn.to_v"),
        *affine(f"{layer}.attn1.to_out.0", f"{stack}.attn.to_out"),
        *norm(f"{layer}.attn1.norm_q", f"{stack}.attn.norm_q", vector),
        *norm(f"{layer}.attn1.norm_k", f"{stack}.attn.norm_k", vector),
        *affine(f"{layer}.ff.net.0.proj", f"{stack}.ff.up"),
        *affine(f"{layer}.ff.net.2", f"{stack}.ff.down"),
        *norm("norm_final", "head.norm_final"),
        *affine("norm_out.linear", "head.linear"),
        *norm("norm_out.norm", "head.norm"),
        *affine("proj_out", "head.proj_out"),
    ]
    if config.use_learned:
        rules.append(Rule("patch_embed.pos_embedding", "patch_embed.pos_embedding", POSITIONS))
    if config.ofs_embed_dim is not None:
        rules += affine("ofs_embedding.linear_{n}", "ofs_embedding.linear_{n}")
    return Table(rules)
