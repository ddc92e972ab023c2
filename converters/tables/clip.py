"""CLIP's text tower, transformers layout: ``text_encoder/`` of FLUX.1."""

from converters.rules import Rule, Table
from converters.tables.common import affine, norm

_PROJECTIONS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}


def table(prefix: str = "text_model.") -> Table:
    """The rules; published names have the prefix, those that transformers writes from version 5 on have none."""
    layer, stack = f"{prefix}encoder.layers.{{i}}", "blocks.layers"
    rules = [
        Rule(f"{prefix}embeddings.token_embedding.weight", "embedding"),
        Rule(f"{prefix}embeddings.position_embedding.weight", "positions"),
        *norm(f"{layer}.layer_norm1", f"{stack}.norm1"),
        *norm(f"{layer}.layer_norm2", f"{stack}.norm2"),
        *affine(f"{layer}.mlp.fc1", f"{stack}.fc1"),
        *affine(f"{layer}.mlp.fc2", f"{stack}.fc2"),
        *norm(f"{prefix}final_layer_norm", "norm"),
    ]
    for theirs, ours in _PROJECTIONS.items():
        rules += affine(f"{layer}.self_attn.{theirs}", f"{stack}.attn.{ours}")
    # A counter that old releases saved along.
    return Table(rules, ignored=[f"{prefix}embeddings.position_ids"])
