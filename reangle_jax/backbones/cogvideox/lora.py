"""The transformer's adapters as a whole: joined, read and written as diffusers has them."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.backbones.cogvideox import lora_layouts
from reangle_jax.backbones.cogvideox.lora_layouts import TARGETS
from reangle_jax.data import files, lora_files, safetensors
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.nn.channel_order import to_halves, to_pairs

_LAYERS = "blocks.layers.attn"
FILE = "lora.safetensors"
STATE = "state"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adapters of every target on the host: ``alpha / rank * (x @ a) @ b`` is added."""

    # Path (``blocks.layers.attn.to_q.lora_a``) to float32, a [layers, in, rank], b [layers, rank, out].
    arrays: dict[str, np.ndarray]
    rank: int  # of all of them
    alpha: float  # their strength


def published_lora(adapters: Adapters, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Adapters under the names and in the layout of diffusers' ``pytorch_lora_weights.safetensors``, float32.

    ``lora_A.weight`` is [rank, in] and ``lora_B.weight`` [out, rank].
    """
    result = {}
    for name, published in TARGETS.items():
        a, b = (adapters.arrays[f"{_LAYERS}.{name}.lora_{half}"] for half in "ab")
        if name in ("to_q", "to_k"):
            b = to_pairs(b, config.attention_head_dim)
        for layer in range(config.num_layers):
            prefix = f"transformer.transformer_blocks.{layer}.attn1.{published}"
            result[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
            result[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
    return result


def export_lora_safetensors(
    path: str | os.PathLike, adapters: Adapters, config: TransformerConfig, *, dtype: DTypeLike = np.float32
) -> None:
    """Writes adapters as a file that ``CogVideoXImageToVideoPipeline.load_lora_weights`` reads, alpha included.

    It appears whole or not at all.
    """
    # Without it diffusers would take alpha to be the rank.
    fields = {
        "transformer.r": adapters.rank,
        "transformer.lora_alpha": adapters.alpha,
        "transformer.target_modules": sorted(TARGETS.values()),
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(fields, indent=2, sort_keys=True)}
    arrays = {name: array.astype(dtype) for name, array in published_lora(adapters, config).items()}
    files.atomic_write_bytes(path, safetensors.to_bytes(arrays, metadata))


def save_folder(folder: Path, lora: nnx.State, config: TransformerConfig) -> None:
    """Writes adapters as a run keeps them: ``state`` (Orbax) and ``lora.safetensors`` in diffusers' layout.

    The folder exists, without either of them. All processes that hold the ``nnx.LoRAParam`` state ask for this; process
    0 writes.
    """
    import orbax.checkpoint as ocp

    lora = meshes.on_host(lora)
    if jax.process_index() > 0:
        return
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix=STATE)
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder.absolute() / STATE, lora)
    export_lora_safetensors(folder / FILE, from_state(lora, config), config)


def from_state(lora: nnx.State, config: TransformerConfig) -> Adapters:
    """A model's adapters on the host.

    Raises:
        ValueError: the config has none.
    """
    if config.lora is None:
        raise ValueError("the transformer has no adapters to export: its lora_rank is 0")
    paths = checkpoints.parameter_paths(lora)
    arrays = {path: meshes.on_host(value[...]).astype(np.float32) for path, value in paths.items()}
    return Adapters(arrays, config.lora_rank, config.lora_alpha)


def to_state(adapters: Adapters, config: TransformerConfig) -> nnx.State:
    """Adapters as a model's ``nnx.LoRAParam`` state, on the current mesh; the config has their rank."""
    assert (adapters.rank, adapters.alpha) == (config.lora_rank, config.lora_alpha)
    state = nnx.state(checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0))), nnx.LoRAParam)
    mesh = meshes.current()
    for path, variable in checkpoints.parameter_paths(state).items():
        place = meshes.sharding_for(variable, mesh) if mesh else None
        variable.set_value(jax.device_put(jnp.asarray(adapters.arrays[path]), place))
    return state


def combine(parts: Sequence[tuple[Adapters, float]]) -> Adapters:
    """Several adapters of one transformer active together, each with a weight, as one of all ranks together.

    It is exact, since ranks are joined and not summed. Its scale is 1: weights and scales are in ``b``.
    """
    rank = sum(adapters.rank for adapters, _ in parts)
    arrays = {}
    for path in parts[0][0].arrays:
        if path.endswith("lora_a"):
            arrays[path] = np.concatenate([adapters.arrays[path] for adapters, _ in parts], axis=-1)
        else:
            scaled = [
                adapters.arrays[path] * np.float32(weight * adapters.alpha / adapters.rank)
                for adapters, weight in parts
            ]
            arrays[path] = np.concatenate(scaled, axis=-2)
    return Adapters(arrays, rank, float(rank))


def read(
    path: str | os.PathLike, config: TransformerConfig, *, alpha: float | None = None, stated: bool = False
) -> Adapters:
    """Reads a LoRA in any of the layouts of :mod:`reangle_jax.backbones.cogvideox.lora_layouts`.

    Args:
        path: as `reangle_jax.data.lora_files.find` takes it.
        config: the transformer's that it is for; its own rank and alpha do not matter.
        alpha: for a file that does not state it. Without either the scale is 1, as in diffusers, with a warning.
        stated: refuse a file that does not state it.

    Returns:
        The adapters, widened to float32, which loses nothing. Targets that the file leaves out are zero. Where layers
        differ in rank or alpha, lower ranks are filled up with zeros, and each layer's scale is in its ``b``.

    Raises:
        InputError: the file is missing or damaged, does not fit (`lora_layouts.read_header` says how), or has values
            that are not finite.
    """
    file = lora_files.find(path)
    tensors, metadata = safetensors.read_header(file)
    adapters = lora_layouts.read_header(file, tensors, metadata, layers=config.num_layers, width=config.inner_dim)
    strengths = {(each.rank, each.alpha) for each in adapters.values()}
    if alpha is not None and {found for _, found in strengths} - {None, alpha}:
        found = next(found for _, found in strengths if found not in (None, alpha))
        raise InputError(f"{file} states alpha {found:g}, and alpha {alpha:g} was given: leave that out")
    rank = max(each.rank for each in adapters.values())
    if alpha is None and any(each.alpha is None for each in adapters.values()):
        if stated:
            raise InputError(f"{file} does not state its alpha: import it with lora-import --alpha, and export that")
        _log.warning("%s does not state its alpha: the rank, %d, is taken, which is scale 1", file, rank)
    uniform = {(r, float(r if alpha is None else alpha) if a is None else a) for r, a in strengths}
    joint = next(iter(uniform))[1] if len(uniform) == 1 and next(iter(uniform))[1] > 0 else None
    arrays = {}
    for target in TARGETS:
        a = np.zeros((config.num_layers, config.inner_dim, rank), np.float32)
        b = np.zeros((config.num_layers, rank, config.inner_dim), np.float32)
        for layer in range(config.num_layers):
            if (layer, target) in adapters:
                each = adapters[layer, target]
                a[layer, :, : each.rank], b[layer, : each.rank] = _finite(each.a).T, _finite(each.b).T
                if joint is None:
                    own = each.alpha if each.alpha is not None else (alpha or each.rank)
                    b[layer] *= np.float32(own / each.rank)
        if target in ("to_q", "to_k"):
            b = to_halves(b, config.attention_head_dim)
        arrays[f"{_LAYERS}.{target}.lora_a"], arrays[f"{_LAYERS}.{target}.lora_b"] = a, b
    return Adapters(arrays, rank, joint or float(rank))


def _finite(tensor: safetensors.Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = safetensors.read(tensor).astype(np.float32)
    if not safetensors.is_finite(values):
        raise InputError(
            f"{tensor.file}: {tensor.name} holds NaN or infinity in float32, which would turn the whole video black: "
            "export the LoRA again from an earlier checkpoint"
        )
    return values
