"""Text encoders as transformers keeps them, each with its tokenizer: T5 v1.1, which pipelines share, and CLIP's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.registry import Layout, Part, expect, read_fields, write_fields
from converters.tables import clip, t5
from reangle_jax.models.text import tokenizers
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from reangle_jax.models.text.clip_tokenizer import MERGES, VOCABULARY, CLIPTokenizer
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.models.text.tokenizers import SPIECE

_T5_FIELDS = {
    **{name: name for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")},
    "relative_buckets": "relative_attention_num_buckets",
    "relative_max_distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
}
_CLIP_FIELDS = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
}


# What the encoders here are, and no field says.
_T5 = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"}
_CLIP = {"model_type": "clip_text_model", "hidden_act": "quick_gelu"}


def read_t5(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `T5Config` from transformers' config.json."""
    expect(published, _T5)
    return read_fields(published, _T5_FIELDS, {"relative_buckets": 32, "relative_max_distance": 128, "norm_eps": 1e-6})


def check_tokenizer(extras: Mapping[str, Path], config: T5Config) -> None:
    """Reads the tokenizer, if it is there: a damaged one would be found after the conversion."""
    if SPIECE in extras:
        tokenizers.for_encoder(extras[SPIECE], config.vocab_size)


def write_t5(config: T5Config) -> dict[str, Any]:
    """The config.json of transformers."""
    return {
        **_T5,
        **write_fields(config, _T5_FIELDS),
        "architectures": ["T5EncoderModel"],
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": config.param_dtype,
        "use_cache": True,
    }


TEXT_ENCODER = Part(
    name="text_encoder",
    config=T5Config.t5_v1_1_xxl(),
    network=T5Encoder,
    layouts=(Layout("transformers", lambda config: t5.TABLE, "shared.weight", "bfloat16"),),
    folder="text_encoder",
    stems=("model",),
    read_config=read_t5,
    write_config=write_t5,
    extras={"tokenizer/spiece.model": SPIECE},
    check_extras=check_tokenizer,
    dtype="bfloat16",
    size=9.52,
    licence="Apache-2.0",
)


def read_clip(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `CLIPConfig` from transformers' config.json."""
    # 2 is what old files say for the token with the highest id; any other would be pooled at another place.
    old = published.get("eos_token_id") == 2
    expect(published, _CLIP | ({} if old else {"eos_token_id": published["vocab_size"] - 1}))
    return read_fields(published, _CLIP_FIELDS)


def write_clip(config: CLIPConfig) -> dict[str, Any]:
    """The config.json of transformers."""
    return {
        **_CLIP,
        **write_fields(config, _CLIP_FIELDS),
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "pad_token_id": 1,
        "projection_dim": config.width,
        "torch_dtype": config.param_dtype,
    }


def check_clip_tokenizer(extras: Mapping[str, Path], config: CLIPConfig) -> None:
    """Reads CLIP's tokenizer, if it is there: a damaged one would be found after the conversion."""
    if VOCABULARY in extras and MERGES in extras:
        CLIPTokenizer(extras[VOCABULARY].parent, config.vocab_size)


CLIP = Part(
    name="text_encoder",
    config=CLIPConfig.clip_l(),
    network=CLIPTextEncoder,
    layouts=(
        Layout("transformers", lambda config: clip.table(), "text_model.embeddings.token_embedding.weight", "bfloat16"),
        Layout("transformers 5", lambda config: clip.table(""), "embeddings.token_embedding.weight", "bfloat16"),
    ),
    folder="text_encoder",
    stems=("model",),
    read_config=read_clip,
    write_config=write_clip,
    extras={f"tokenizer/{VOCABULARY}": VOCABULARY, f"tokenizer/{MERGES}": MERGES},
    check_extras=check_clip_tokenizer,
    dtype="bfloat16",
    size=0.25,
    licence="MIT",
)
