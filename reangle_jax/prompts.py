"""Embeddings of prompts by T5 and CLIP, which families of models share; from folders of converted weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from reangle_jax import checkpoints, mesh
from reangle_jax.models.text import tokenizers
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from reangle_jax.models.text.clip_tokenizer import CLIPTokenizer
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.nn.choices import AUTO, Choice
from reangle_jax.nn.execution import Execution


def embed_prompts(
    folder: Path, prompts: Sequence[str], length: int, *, choice: Choice = AUTO
) -> Float[np.ndarray, "N L D"]:
    """Text embeddings of prompts, float32 on the host; equal prompts are encoded once.

    The text encoder is loaded, used and dropped here: it is as large as the transformer and needed only once.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    config = checkpoints.load_config(folder, T5Config)
    tokenizer = tokenizers.for_encoder(folder, config.vocab_size)
    tokenizers.warn_of_cuts(tokenizer, prompts, length)
    model = _load(folder, T5Config, T5Encoder, choice)
    graphdef, state = nnx.split(model)
    encode = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids).astype(jnp.float32))
    known: dict[str, np.ndarray] = {}
    for prompt in prompts:
        if prompt not in known:
            known[prompt] = mesh.on_host(encode(state, jnp.asarray(tokenizer([prompt], length))))[0]
    return np.stack([known[prompt] for prompt in prompts])


def pool_prompts(
    folder: Path, prompts: Sequence[str], *, choice: Choice = AUTO, others: str = ""
) -> Float[np.ndarray, "N D"]:
    """One vector for each prompt by CLIP's text tower, float32 on the host.

    Args:
        folder: the tower's.
        prompts: any number.
        choice: how it is computed.
        others: an encoder that sees what is too long for this one, for the log.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    config = checkpoints.load_config(folder, CLIPConfig)
    tokenizer = CLIPTokenizer(folder, config.vocab_size)
    tokenizers.warn_of_cuts(tokenizer, prompts, config.max_length, encoder="CLIP", others=others)
    model = _load(folder, CLIPConfig, CLIPTextEncoder, choice)
    graphdef, state = nnx.split(model)
    encode = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids)[1].astype(jnp.float32))
    return np.concatenate([encode(state, jnp.asarray(tokenizer([text], config.max_length))) for text in prompts])


def _load(folder: Path, config_class: type, encoder: Callable[..., Any], choice: Choice) -> nnx.Module:
    def build(config: Any, *, rngs: nnx.Rngs) -> nnx.Module:
        return encoder(config, execution=Execution.in_type(config.param_dtype, choice), rngs=rngs)

    return checkpoints.load(folder, config_class, build)
