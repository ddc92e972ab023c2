"""CogVideoX's three networks, each loaded from its folder of weights, and how the transformer is called by them.

They are text encoder, autoencoder and transformer.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax import checkpoints, mesh
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.nn.choices import AUTO, Choice
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.network import Network as Network
from reangle_jax.prompts import embed_prompts as embed_prompts

# Rows and columns of a tile, and the most pixels that "auto" codes whole: the published models' native size.
TILE_SAMPLE = (240, 360)
WHOLE_PIXELS = 480 * 720


def describe_vae(
    folder: Path, *, tiles: str = "off", size: tuple[int, int] | None = None, choice: Choice = AUTO
) -> Network:
    """The autoencoder of a weights folder, shapes in place of its parameters (:func:`load`).

    Whether frames of that size are coded in tiles, :func:`in_tiles` says.

    Raises:
        InputError: the folder is missing, or its config.json damaged or another model's.
    """
    config = checkpoints.load_config(folder, VAEConfig)
    if in_tiles(tiles, size):
        config = config.tiled(TILE_SAMPLE)
    execution = Execution.in_type(config.param_dtype, choice)
    model = checkpoints.abstract(lambda: VAE(config, execution=execution, rngs=nnx.Rngs(0)))
    return Network(config, execution, *nnx.split(model))


def load(described: Network, folder: Path) -> Network:
    """A network that was described of a weights folder, with its parameters.

    Raises:
        InputError: the folder is damaged, or holds another model.
    """
    return described._replace(state=checkpoints.load_state(described.state, folder))


def in_tiles(tiles: str, size: tuple[int, int] | None) -> bool:
    """Whether frames of a height and width are coded in tiles: ``on``, ``off``, or ``auto``.

    ``auto`` does so where they have more pixels than the published models' native 480x720; no size counts as small.
    """
    return tiles == "on" or (tiles == "auto" and size is not None and size[0] * size[1] > WHOLE_PIXELS)


def describe_transformer(
    folder: Path, *, lora_rank: int = 0, lora_alpha: float = 0.0, choice: Choice = AUTO, base_dtype: str = "auto"
) -> Network:
    """The transformer of a weights folder with room for adapters; its state, of shapes, is the frozen base alone.

    Merge it as ``nnx.merge(graphdef, lora, state)``, where ``lora`` is as :func:`init_lora` makes it. How the base is
    kept, :func:`reangle_jax.checkpoints.as_kept` says.

    Raises:
        InputError: the folder is missing, its config.json damaged or another model's, or a choice impossible here.
    """
    config = checkpoints.as_kept(checkpoints.load_config(folder, TransformerConfig), base_dtype, folder)
    config = dataclasses.replace(config, lora_rank=lora_rank, lora_alpha=lora_alpha)
    execution = Execution.chosen(config.param_dtype, choice)
    model = checkpoints.abstract(lambda: Transformer(config, execution=execution, rngs=nnx.Rngs(0)))
    graphdef, _, base = nnx.split(model, nnx.LoRAParam, ...)
    return Network(config, execution, graphdef, base)


def encoders(state: nnx.State) -> nnx.State:
    """An autoencoder's parameters without its decoder's."""
    return nnx.State({"encoder": state["encoder"]})


def encoding(vae: Network) -> Callable[[nnx.State], VAE]:
    """Of an autoencoder's parameters, with or without its decoder's, makes the module that encodes; to be traced."""
    model = nnx.merge(vae.graphdef, vae.state)
    del model.decoder
    graphdef, _ = nnx.split(model)
    return lambda state: nnx.merge(graphdef, encoders(state))


def init_lora(config: TransformerConfig, *, key: Array) -> nnx.State:
    """Fresh adapters, which change nothing yet, on the current mesh."""

    @jax.jit
    def init(key: Array) -> nnx.State:
        # The base is built too, but its values are unused: the compiler drops them.
        return mesh.constrain(nnx.state(Transformer(config, rngs=nnx.Rngs(key)), nnx.LoRAParam))

    return init(key)


def image_condition(
    vae: VAE, image: Float[Array, "B H W 3"], latent_frames: int, *, key: Array
) -> Float[Array, "B t h w C"]:
    """The condition that stands beside the noised latents: the image's latents, drawn and scaled, then zeros.

    Training and sampling both come through here: scaled otherwise in one of them, first frames come out too bright.
    Images are in [-1, 1].
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
