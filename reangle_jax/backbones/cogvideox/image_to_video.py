"""CogVideoX image-to-video as parts: its three networks loaded from a weights folder, and what binds them together."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from reangle_jax import checkpoints, mesh
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.text import tokenizers
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.nn.attention import PLATFORMS

# Rows and columns of a tile, and the most pixels that "auto" codes whole: the published models' native size.
TILE_SAMPLE = (240, 360)
WHOLE_PIXELS = 480 * 720


class Network(NamedTuple):
    """A network split for jax.jit: ``nnx.merge(graphdef, *states)`` gives the module back inside a traced function."""

    config: Any
    graphdef: nnx.GraphDef
    state: nnx.State


def describe_vae(folder: Path, *, tiles: str = "off", size: tuple[int, int] | None = None) -> Network:
    """:func:`load_vae` without its parameters: shapes stand in their place."""
    config = checkpoints.load_config(folder, VAEConfig)
    if in_tiles(tiles, size):
        config = config.tiled(TILE_SAMPLE)
    return Network(config, *nnx.split(checkpoints.abstract(lambda: VAE(config, rngs=nnx.Rngs(0)))))


def load_vae(folder: Path, *, tiles: str = "off", size: tuple[int, int] | None = None) -> Network:
    """The autoencoder of a weights folder.

    Args:
        folder: the autoencoder's.
        tiles: see :func:`in_tiles`.
        size: height and width of the frames, for ``auto``.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    config, graphdef, state = describe_vae(folder, tiles=tiles, size=size)
    return Network(config, *nnx.split(checkpoints.load_into(nnx.merge(graphdef, state), folder)))


def in_tiles(tiles: str, size: tuple[int, int] | None) -> bool:
    """Whether frames are coded in tiles.

    Args:
        tiles: ``on``, ``off``, or ``auto``: where frames have more pixels than the published models' native 480x720.
        size: height and width of the frames; None counts as small.
    """
    return tiles == "on" or (tiles == "auto" and size is not None and size[0] * size[1] > WHOLE_PIXELS)


def describe_transformer(folder: Path, *, lora_rank: int = 0, lora_alpha: float = 0.0) -> Network:
    """:func:`load_transformer` without its parameters: shapes stand in their place.

    Raises:
        InputError: the folder is missing, or its config.json damaged or another model's.
    """
    config = checkpoints.load_config(folder, TransformerConfig)
    impl = attention_for_device(config)
    config = dataclasses.replace(config, lora_rank=lora_rank, lora_alpha=lora_alpha, attention_impl=impl)
    graphdef, _, base = nnx.split(_abstract(config), nnx.LoRAParam, ...)
    return Network(config, graphdef, base)


def load_transformer(folder: Path, *, lora_rank: int, lora_alpha: float) -> Network:
    """The transformer of a weights folder with room for adapters; its state is the frozen base alone.

    Merge it as ``nnx.merge(graphdef, lora, state)``, where ``lora`` is as :func:`init_lora` makes it.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    config = describe_transformer(folder, lora_rank=lora_rank, lora_alpha=lora_alpha).config
    graphdef, _, base = nnx.split(checkpoints.load_into(_abstract(config), folder), nnx.LoRAParam, ...)
    return Network(config, graphdef, base)


def _abstract(config: TransformerConfig) -> Transformer:
    return checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def encoder_alone(vae: Network) -> Network:
    """An autoencoder that encodes only: its decoder's parameters are dropped."""
    model = nnx.merge(vae.graphdef, vae.state)
    del model.decoder
    return Network(vae.config, *nnx.split(model))


def attention_for_device(config: TransformerConfig) -> str:
    """The attention to use here: the platform's fused kernel where the dtype allows it; on a CPU the config's own."""
    kernels = {platform: impl for impl, platform in PLATFORMS.items()}
    if jax.default_backend() not in kernels:
        return config.attention_impl
    return kernels[jax.default_backend()] if jnp.dtype(config.dtype).itemsize == 2 else "mapped"


def init_lora(config: TransformerConfig, *, key: Array) -> nnx.State:
    """Fresh adapters, which change nothing yet, on the current mesh."""

    @jax.jit
    def init(key: Array) -> nnx.State:
        # The base is built too, but its values are unused: the compiler drops them.
        return mesh.constrain(nnx.state(Transformer(config, rngs=nnx.Rngs(key)), nnx.LoRAParam))

    return init(key)


def embed_prompts(folder: Path, prompts: Sequence[str], length: int) -> Float[np.ndarray, "N L D"]:
    """Text embeddings of prompts, float32 on the host; equal prompts are encoded once.

    The text encoder is loaded, used and dropped here: it is as large as the transformer and needed only once.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    config = checkpoints.load_config(folder, T5Config)
    tokenizer = tokenizers.for_encoder(folder, config.vocab_size)
    tokenizers.warn_of_cuts(tokenizer, prompts, length)
    model = checkpoints.load_into(checkpoints.abstract(lambda: T5Encoder(config, rngs=nnx.Rngs(0))), folder)
    graphdef, state = nnx.split(model)
    encode = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids).astype(jnp.float32))
    known: dict[str, np.ndarray] = {}
    for prompt in prompts:
        if prompt not in known:
            known[prompt] = np.asarray(encode(state, jnp.asarray(tokenizer([prompt], length))))[0]
    return np.stack([known[prompt] for prompt in prompts])


def to_unit(frames: UInt8[Array, "*s"]) -> Float[Array, "*s"]:
    """Bytes to [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(frames: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    """[-1, 1] to bytes, rounded."""
    return jnp.clip(jnp.round((frames.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def image_condition(
    vae: VAE, image: Float[Array, "B H W 3"], latent_frames: int, *, key: Array
) -> Float[Array, "B t h w C"]:
    """The condition that stands beside the noised latents: the image's latents, drawn and scaled, then zeros.

    Training and sampling both come through here: scaled otherwise in one of them, first frames come out too bright.

    Args:
        vae: the autoencoder.
        image: first frames in [-1, 1].
        latent_frames: t.
        key: of the draw from the posterior.
    """
    mean, logvar = vae.encode(image[:, None])
    first = vae.scale_image_latents(vae.sample(mean, logvar, key=key))
    batch, _, height, width, channels = first.shape
    rest = jnp.zeros((batch, latent_frames - 1, height, width, channels), first.dtype)
    return jnp.concatenate([first, rest], axis=1)


def predictor(graphdef: nnx.GraphDef) -> Callable[..., Array]:
    """``predict(latents, t, lora, base, condition, text)``: the transformer as samplers call it.

    ``condition`` is None for a text-to-video transformer.
    """

    def predict(latents: Array, t: Array, lora: Any, base: Any, condition: Array | None, text: Array) -> Array:
        model = nnx.merge(graphdef, lora, base)
        dtype = latents.dtype
        joined = latents if condition is None else jnp.concatenate([latents, condition.astype(dtype)], axis=-1)
        return model(joined, text.astype(dtype), t.astype(jnp.float32))

    return predict
