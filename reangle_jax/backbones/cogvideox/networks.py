"""CogVideoX's three networks, each loaded from its folder of weights: text encoder, autoencoder, transformer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import Array

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
    folder: Path,
    *,
    tiles: str = "off",
    size: tuple[int, int] | None = None,
    choice: Choice = AUTO,
) -> Network:
    """:func:`load_vae` without its parameters: shapes stand in their place."""
    config = checkpoints.load_config(folder, VAEConfig)
    if in_tiles(tiles, size):
        config = config.tiled(TILE_SAMPLE)
    execution = Execution.in_type(config.param_dtype, choice)
    model = checkpoints.abstract(lambda: VAE(config, execution=execution, rngs=nnx.Rngs(0)))
    return Network(config, execution, *nnx.split(model))


def load_vae(
    folder: Path,
    *,
    tiles: str = "off",
    size: tuple[int, int] | None = None,
    choice: Choice = AUTO,
) -> Network:
    """The autoencoder of a weights folder.

    Args:
        folder: the autoencoder's.
        tiles: see :func:`in_tiles`.
        size: height and width of the frames, for ``auto``.
        choice: how it is computed.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    vae = describe_vae(folder, tiles=tiles, size=size, choice=choice)
    model = checkpoints.load_into(nnx.merge(vae.graphdef, vae.state), folder)
    return Network(vae.config, vae.execution, *nnx.split(model))


def in_tiles(tiles: str, size: tuple[int, int] | None) -> bool:
    """Whether frames are coded in tiles.

    Args:
        tiles: ``on``, ``off``, or ``auto``: where frames have more pixels than the published models' native 480x720.
        size: height and width of the frames; None counts as small.
    """
    return tiles == "on" or (tiles == "auto" and size is not None and size[0] * size[1] > WHOLE_PIXELS)


def describe_transformer(
    folder: Path, *, lora_rank: int = 0, lora_alpha: float = 0.0, choice: Choice = AUTO, base_dtype: str = "auto"
) -> Network:
    """:func:`load_transformer` without its parameters: shapes stand in their place.

    Raises:
        InputError: the folder is missing, its config.json damaged or another model's, or a choice impossible here.
    """
    config = checkpoints.as_kept(checkpoints.load_config(folder, TransformerConfig), base_dtype, folder)
    config = dataclasses.replace(config, lora_rank=lora_rank, lora_alpha=lora_alpha)
    execution = Execution.chosen(config.param_dtype, choice)
    graphdef, _, base = nnx.split(_abstract(config, execution), nnx.LoRAParam, ...)
    return Network(config, execution, graphdef, base)


def load_transformer(
    folder: Path, *, lora_rank: int, lora_alpha: float, choice: Choice = AUTO, base_dtype: str = "auto"
) -> Network:
    """The transformer of a weights folder with room for adapters; its state is the frozen base alone.

    Merge it as ``nnx.merge(graphdef, lora, state)``, where ``lora`` is as :func:`init_lora` makes it.

    Args:
        folder: the transformer's.
        lora_rank: of the adapters; 0 for none.
        lora_alpha: their strength.
        choice: how it is computed.
        base_dtype: how the base is kept, see :func:`reangle_jax.checkpoints.as_kept`.

    Raises:
        InputError: the folder is missing or damaged, or holds another model; a choice is impossible here.
    """
    found = describe_transformer(
        folder, lora_rank=lora_rank, lora_alpha=lora_alpha, choice=choice, base_dtype=base_dtype
    )
    model = checkpoints.load_into(_abstract(found.config, found.execution), folder)
    graphdef, _, base = nnx.split(model, nnx.LoRAParam, ...)
    return Network(found.config, found.execution, graphdef, base)


def _abstract(config: TransformerConfig, execution: Execution) -> Transformer:
    return checkpoints.abstract(lambda: Transformer(config, execution=execution, rngs=nnx.Rngs(0)))


def encoder_alone(vae: Network) -> Network:
    """An autoencoder that encodes only: its decoder's parameters are dropped."""
    model = nnx.merge(vae.graphdef, vae.state)
    del model.decoder
    return Network(vae.config, vae.execution, *nnx.split(model))


def encoding(vae: Network) -> Callable[[nnx.State], VAE]:
    """Of an autoencoder's parameters, with or without its decoder's, makes the module that encodes; to be traced."""
    graphdef = encoder_alone(vae).graphdef
    return lambda state: nnx.merge(graphdef, nnx.State({"encoder": state["encoder"]}))


def init_lora(config: TransformerConfig, *, key: Array) -> nnx.State:
    """Fresh adapters, which change nothing yet, on the current mesh."""

    @jax.jit
    def init(key: Array) -> nnx.State:
        # The base is built too, but its values are unused: the compiler drops them.
        return mesh.constrain(nnx.state(Transformer(config, rngs=nnx.Rngs(key)), nnx.LoRAParam))

    return init(key)
