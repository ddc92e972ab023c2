"""T5 v1.1 encoders, transformers layout: ``text_encoder/`` of CogVideoX, ``text_encoder_2/`` of FLUX.1."""

from converters.rules import LINEAR, Rule, Table

_LAYER, _STACK = "encoder.block.{i}.layer", "blocks.layers"
_ATTENTION, _FEED_FORWARD = f"{_LAYER}.0.SelfAttention", f"{_LAYER}.1.DenseReluDense"

TABLE = Table(
    rules=[
        Rule("shared.weight", "embedding"),
        Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "relative_bias"),
        *(Rule(f"{_ATTENTION}.{name}.weight", f"{_STACK}.attn.{name}.kernel", LINEAR) for name in "qkvo"),
        Rule(f"{_LAYER}.0.layer_norm.weight", f"{_STACK}.norm1.scale"),
        Rule(f"{_FEED_FORWARD}.wi_0.weight", f"{_STACK}.ff.gate.kernel", LINEAR),
        Rule(f"{_FEED_FORWARD}.wi_1.weight", f"{_STACK}.ff.up.kernel", LINEAR),
        Rule(f"{_FEED_FORWARD}.wo.weight", f"{_STACK}.ff.down.kernel", LINEAR),
        Rule(f"{_LAYER}.1.layer_norm.weight", f"{_STACK}.norm2.scale"),
        Rule("encoder.final_layer_norm.weight", "norm.scale"),
    ],
    # A second name of shared.weight, in files that were saved with their ties.
    ignored=["encoder.embed_tokens.weight"],
)
