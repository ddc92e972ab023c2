"""Adapters of the CogVideoX transformers, as diffusers' ``save_lora_weights`` writes them."""

from converters.rules import LINEAR, Rule, Table
from converters.tables.cogvideox_transformer import rotated
from reangle_jax.models.cogvideox.lora import TARGETS
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig


def table(config: TransformerConfig) -> Table:
    """The rules for the adapters of one transformer; alpha and rank are in the file's metadata, not in a tensor."""
    rules = []
    for name, published in TARGETS.items():
        source = f"transformer.transformer_blocks.{{i}}.attn1.{published}"
        target = f"blocks.layers.attn.{name}"
        out = rotated(config)[0] if name in ("to_q", "to_k") else LINEAR
        rules += [
            Rule(f"{source}.lora_A.weight", f"{target}.lora_a", LINEAR),
            Rule(f"{source}.lora_B.weight", f"{target}.lora_b", out),
        ]
    return Table(rules)
