"""FLUX's networks, each from its folder of weights: transformer, ControlNet, autoencoder, text encoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax import checkpoints, prompts
from reangle_jax.arrays import AnyArray
from reangle_jax.errors import InputError
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.nn.choices import AUTO, Choice
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.network import Network

KEY = "config.first_frames.weights"
TINY, DEV, FILL = "tiny", "flux.1-dev", "flux.1-fill-dev"
T5_LENGTH = {TINY: 48}
"""Tokens of a text, padding included; 512 of the published models."""
# Folders of the parts by their roles, where they are not called so.
_SMALL = {"transformer": "flux_transformer", "controlnet": "flux_controlnet", "vae": "flux_autoencoder"}
_KINDS = {
    "transformer": (FluxConfig, FluxTransformer),
    "controlnet": (ControlNetConfig, FluxControlNet),
    "vae": (AutoencoderConfig, Autoencoder),
}


class Text(NamedTuple):
    """Embeddings of N prompts: of their tokens, and of each as a whole."""

    tokens: Float[AnyArray, "N L D"]
    pooled: Float[AnyArray, "N P"]


class Parameters(NamedTuple):
    """Of the networks that paint; Fill has no ControlNet, and an edit uses none."""

    transformer: Any
    controlnet: Any
    vae: Any


def roles(name: str) -> dict[str, str]:
    """The networks that paint, by role, and the folder of each."""
    names = _SMALL if name == TINY else {role: role for role in _KINDS}
    return {role: folder for role, folder in names.items() if role != "controlnet" or name != FILL}


def text_encoders(name: str) -> tuple[str | None, str]:
    """Folders of CLIP, which the small family lacks, and of T5."""
    return (None, "text_encoder") if name == TINY else ("text_encoder", "text_encoder_2")


def describe(
    name: str, folders: Mapping[str, Path], choice: Choice = AUTO, base_dtype: str = "auto"
) -> dict[str, Network]:
    """Each network that paints, by role, with shapes in place of its parameters.

    Raises:
        InputError: a folder is missing or its config.json damaged, or a choice is impossible here.
    """
    found = {}
    for role, part in roles(name).items():
        config_class, _ = _KINDS[role]
        found[role] = build(role, checkpoints.load_config(folders[part], config_class), choice, base_dtype)
    return found


def build(role: str, config: Any, choice: Choice = AUTO, base_dtype: str = "auto") -> Network:
    """A network of some sizes, with shapes in place of its parameters; ``base_dtype`` is not for the autoencoder."""
    config = config if role == "vae" else checkpoints.as_kept(config, base_dtype)
    model, chosen = _KINDS[role][1], Execution.in_type if role == "vae" else Execution.chosen
    execution = chosen(config.param_dtype, choice)
    module = checkpoints.abstract(lambda: model(config, execution=execution, rngs=nnx.Rngs(0)))
    return Network(config, execution, *nnx.split(module))


def load(
    networks: Mapping[str, Network], name: str, folders: Mapping[str, Path], *, without: Sequence[str] = ()
) -> Parameters:
    """Their parameters, but for those of the roles ``without``.

    Raises:
        InputError: a folder is damaged or holds another model.
    """
    states: dict[str, Any] = dict.fromkeys(Parameters._fields)
    for role, part in roles(name).items():
        if role in without:
            continue
        states[role] = checkpoints.load_state(networks[role].state, folders[part])
    return Parameters(**states)


def check(name: str, folders: Mapping[str, Path], part: str, fields: Mapping[str, Any]) -> None:
    """Refuses a transformer, by its config.json, that is Fill's where FLUX.1-dev's is meant, or the other way round.

    Raises:
        InputError: it is.
    """
    if part != roles(name)["transformer"]:
        return
    channels = FluxConfig.fill_dev().in_channels if name == FILL else fields.get("out_channels")
    if fields.get("in_channels") != channels:
        raise InputError(
            f"{KEY}: {folders[part]} holds another model than {name} (in_channels is "
            f"{fields.get('in_channels')}, not {channels}): give its weights, or change config.first_frames.model"
        )


def embed(name: str, folders: Mapping[str, Path], texts: Sequence[str], choice: Choice = AUTO) -> Text:
    """Embeddings of prompts, on the host; each text encoder is loaded, used and dropped again.

    The small family has no CLIP: a prompt as a whole is the mean of its tokens, padding included.
    """
    clip, t5 = text_encoders(name)
    tokens = prompts.embed_prompts(folders[t5], texts, T5_LENGTH.get(name, 512), choice=choice)
    if clip is None:
        return Text(tokens, tokens.mean(axis=1))
    return Text(tokens, prompts.pool_prompts(folders[clip], texts, choice=choice, others="T5"))


def predict(
    networks: Mapping[str, Network],
    parameters: Parameters,
    tokens: Float[Array, "B S C"],
    grid: tuple[int, int],
    time: Float[Array, ""],
    text: Text,
    guidance: Float[Array, " N"],
    condition: Float[Array, "1 S K"] | None,
    control_scale: Float[Array, ""],
) -> Float[Array, "B S C"]:
    """The velocity of packed latents of one time, computed in the transformer's dtype; to be traced.

    Text and guidance are of one prompt, or of one for each of the batch; the condition is the ControlNet's, or Fill's,
    of the one picture, and None predicts without. What the ControlNet adds is scaled by ``control_scale``.
    """
    dtype, batch = networks["transformer"].execution.dtype, len(tokens)

    def each(x: Array) -> Array:
        return jnp.broadcast_to(x, (batch, *x.shape[1:]))

    x, times = tokens.astype(dtype), jnp.full((batch,), time)
    shared = (each(jnp.asarray(text.tokens).astype(dtype)), each(jnp.asarray(text.pooled).astype(dtype)))
    shared = (*shared, times, each(guidance), grid)
    residuals = None
    if condition is not None:
        told = each(condition.astype(dtype))
        if parameters.controlnet is None:
            x = jnp.concatenate([x, told], axis=-1)
        else:
            control = nnx.merge(networks["controlnet"].graphdef, parameters.controlnet)
            residuals = control(x, told, *shared, control_scale)
    model = nnx.merge(networks["transformer"].graphdef, parameters.transformer)
    return model(x, *shared, residuals)
