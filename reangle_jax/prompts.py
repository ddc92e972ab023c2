"""Embeddings of prompts by T5 and CLIP, which families of models share; from folders of converted weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

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
    encode = _encoder(folder, config, T5Encoder, choice, lambda tokens: tokens)
    known = {prompt: mesh.on_host(encode(tokenizer([prompt], length)))[0] for prompt in dict.fromkeys(prompts)}
    return np.stack([known[prompt] for prompt in prompts])


def pool_prompts(
    folder: Path, prompts: Sequence[str], *, choice: Choice = AUTO, others: str = ""
) -> Float[np.ndarray, "N D"]:
    """One vector for each prompt by CLIP's text tower, float32 on the host; ``others`` sees what is too long for it.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    config = checkpoints.load_config(folder, CLIPConfig)
    tokenizer = CLIPTokenizer(folder, config.vocab_size)
    tokenizers.warn_of_cuts(tokenizer, prompts, config.max_length, encoder="CLIP", others=others)
    encode = _encoder(folder, config, CLIPTextEncoder, choice, lambda found: found[1])
    return np.concatenate([encode(tokenizer([text], config.max_length)) for text in prompts])


def _encoder(
    folder: Path, config: Any, network: Callable[..., nnx.Module], choice: Choice, of: Callable[[Any], Array]
) -> Callable[[np.ndarray], Array]:
    """A text encoder as a compiled function of ids; ``of`` takes of its result what is wanted, in float32."""
    execution = Execution.in_type(config.param_dtype, choice)
    model = checkpoints.abstract(lambda: network(config, execution=execution, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(checkpoints.load_into(model, folder))
    encode = jax.jit(lambda state, ids: of(nnx.merge(graphdef, state)(ids)).astype(jnp.float32))
    return lambda ids: encode(state, jnp.asarray(ids))
