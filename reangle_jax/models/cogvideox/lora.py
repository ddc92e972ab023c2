"""The transformer's adapters as a whole: folded into the base, joined, read and written as diffusers has them."""

import collections
import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.config import LORA_NAMES
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.heads import to_halves, to_pairs
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig

# Our names of the adapted layers, and diffusers'.
TARGETS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_LAYERS = "blocks.layers.attn"
_NAME = re.compile(r"(?:transformer\.)?transformer_blocks\.(\d+)\.attn1\.([a-z_.0-9]+)\.lora_([AB])\.weight")
FILE = "lora.safetensors"
STATE = "state"
_SHOWN = 20  # faults in one message

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adapters of every target on the host: ``alpha / rank * (x @ a) @ b`` is added.

    Attributes:
        arrays: path (``blocks.layers.attn.to_q.lora_a``) to float32, a [layers, in, rank], b [layers, rank, out].
        rank: of all of them.
        alpha: their strength.
    """

    arrays: dict[str, np.ndarray]
    rank: int
    alpha: float


def merge_lora(model: Transformer) -> Transformer:
    """A model without adapters that computes the same, but for rounding.

    Args:
        model: with adapters; it is left as it is.

    Returns:
        The model; every array but the adapted kernels is shared with the first.

    Raises:
        ValueError: the model has no adapters.
    """
    lora = model.config.lora
    if lora is None:
        raise ValueError("the transformer has no adapters to merge: its lora_rank is 0")
    arrays = {path: value[...] for path, value in checkpoints.parameter_paths(model).items()}
    for name in TARGETS:
        path = f"{_LAYERS}.{name}"
        change = jnp.einsum("lir,lro->lio", arrays.pop(f"{path}.lora_a"), arrays.pop(f"{path}.lora_b")) * lora.scale
        kernel = arrays[f"{path}.kernel"]
        # Added in float32, rounded once.
        arrays[f"{path}.kernel"] = (kernel.astype(jnp.float32) + change.astype(jnp.float32)).astype(kernel.dtype)
    config = dataclasses.replace(model.config, lora_rank=0, lora_alpha=0.0)
    merged = checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    checkpoints.fill(merged, arrays)
    return merged


def published_lora(lora: nnx.State, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Adapters under the names and in the layout of diffusers' ``pytorch_lora_weights.safetensors``.

    Args:
        lora: the model's ``nnx.LoRAParam`` state.
        config: the transformer's.

    Returns:
        ``lora_A.weight`` [rank, in] and ``lora_B.weight`` [out, rank] of every adapted layer, float32.
    """
    stacked: Mapping[str, np.ndarray] = _host(lora)
    result = {}
    for name, published in TARGETS.items():
        a, b = (stacked[f"{_LAYERS}.{name}.lora_{half}"] for half in "ab")
        if name in ("to_q", "to_k"):
            b = to_pairs(b, config.attention_head_dim)
        for layer in range(config.num_layers):
            prefix = f"transformer.transformer_blocks.{layer}.attn1.{published}"
            result[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
            result[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
    return result


def lora_metadata(config: TransformerConfig) -> dict[str, str]:
    """The file's metadata: without it diffusers would take alpha to be the rank."""
    fields = {
        "transformer.r": config.lora_rank,
        "transformer.lora_alpha": config.lora_alpha,
        "transformer.target_modules": sorted(TARGETS.values()),
    }
    return {"format": "pt", "lora_adapter_metadata": json.dumps(fields, indent=2, sort_keys=True)}


def export_lora_safetensors(path: str | os.PathLike, lora: nnx.State, config: TransformerConfig) -> None:
    """Writes adapters as a file that ``CogVideoXImageToVideoPipeline.load_lora_weights`` reads, alpha included.

    Args:
        path: the file; it appears whole or not at all.
        lora: the model's ``nnx.LoRAParam`` state.
        config: the transformer's.

    Raises:
        ValueError: the config has no adapters.
    """
    if config.lora is None:
        raise ValueError("the transformer has no adapters to export: its lora_rank is 0")
    content = checkpoints.safetensors_bytes(published_lora(lora, config), lora_metadata(config))
    files.atomic_write_bytes(path, content)


def save_folder(folder: Path, lora: nnx.State, config: TransformerConfig) -> None:
    """Writes adapters as a run keeps them: ``state`` (Orbax) and ``lora.safetensors`` in diffusers' layout.

    Args:
        folder: exists, without either of them.
        lora: the model's ``nnx.LoRAParam`` state.
        config: the transformer's.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / STATE, lora)
    export_lora_safetensors(folder / FILE, lora, config)


def _host(lora: nnx.State) -> dict[str, np.ndarray]:
    paths = checkpoints.parameter_paths(lora)
    return {path: np.asarray(jax.device_get(value[...]), np.float32) for path, value in paths.items()}


def from_state(lora: nnx.State, config: TransformerConfig) -> Adapters:
    """A model's adapters on the host."""
    return Adapters(_host(lora), config.lora_rank, config.lora_alpha)


def to_state(adapters: Adapters, config: TransformerConfig) -> nnx.State:
    """Adapters as a model's ``nnx.LoRAParam`` state, on the current mesh.

    Args:
        adapters: of the rank that the config has.
        config: the transformer's.
    """
    assert (adapters.rank, adapters.alpha) == (config.lora_rank, config.lora_alpha)
    state = nnx.state(checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0))), nnx.LoRAParam)
    mesh = meshes.current()
    for path, variable in checkpoints.parameter_paths(state).items():
        place = meshes.sharding_for(variable, mesh) if mesh else None
        variable.set_value(jax.device_put(jnp.asarray(adapters.arrays[path]), place))
    return state


def combine(parts: Sequence[tuple[Adapters, float]]) -> Adapters:
    """Several adapters active together, each with a weight, as one: exact, since ranks are joined and not summed.

    Args:
        parts: adapters of one transformer, and their weights; one of weight 0 adds nothing.

    Returns:
        Adapters of all ranks together, with scale 1: weights and scales are in ``b``.
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


def find(path: str | os.PathLike) -> Path:
    """The safetensors file of a LoRA given as a file, as a run's ``lora/`` or its run, or as diffusers' folder.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    found = [path] if path.is_file() else [path / name for name in LORA_NAMES if (path / name).is_file()]
    if not found:
        what = f"has no {' or '.join(LORA_NAMES)}" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: give a LoRA's .safetensors file, or its folder")
    return found[0]


def check(path: str | os.PathLike, config: TransformerConfig, *, alpha: float | None = None) -> int:
    """Reads a LoRA's header alone and gives its rank.

    Raises:
        InputError: as :func:`read`.
    """
    with _opened(find(path)) as file:
        return _facts(Path(path), file, config, alpha)[0]


def read(path: str | os.PathLike, config: TransformerConfig, *, alpha: float | None = None) -> Adapters:
    """Reads a LoRA in diffusers' layout.

    Args:
        path: as :func:`find` takes it.
        config: the transformer's that it is for; its own rank and alpha do not matter.
        alpha: for a file that does not state it. Without either the scale is 1, as in diffusers, with a warning.

    Returns:
        The adapters, widened to float32, which loses nothing. Targets that the file leaves out are zero.

    Raises:
        InputError: the file is missing or damaged, or does not fit: a layer that cannot be adapted, half of a pair, a
            wrong width or rank, a layer left out, a kind of adapter other than LoRA. All faults are in the message.
    """
    with _opened(find(path)) as file:
        rank, strength, names = _facts(Path(path), file, config, alpha)
        width = config.inner_dim
        arrays = {}
        for target in TARGETS:
            a = np.zeros((config.num_layers, width, rank), np.float32)
            b = np.zeros((config.num_layers, rank, width), np.float32)
            for (layer, found, half), name in names.items():
                if found == target:
                    (a if half == "A" else b)[layer] = file.get_tensor(name).astype(np.float32).T
            if target in ("to_q", "to_k"):
                b = to_halves(b, config.attention_head_dim)
            arrays[f"{_LAYERS}.{target}.lora_a"], arrays[f"{_LAYERS}.{target}.lora_b"] = a, b
    return Adapters(arrays, rank, strength)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}): copy or download it again") from None


_Key = tuple[int, str, str]  # layer, target, half


def _facts(path: Path, file: Any, config: TransformerConfig, alpha: float | None) -> tuple[int, float, dict[_Key, str]]:
    """Rank, alpha and the tensors' names of an open file.

    Raises:
        InputError: what does not fit, all of it.
    """
    stated = _stated(path, file.metadata() or {})
    targets = {published: ours for ours, published in TARGETS.items()}
    names: dict[_Key, str] = {}
    shapes: dict[_Key, tuple[int, ...]] = {}
    faults = []
    for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in targets:
            faults.append(f"{name}: not LoRA of {', '.join(TARGETS.values())}")
        elif int(match[1]) >= config.num_layers:
            faults.append(f"{name}: the transformer has {config.num_layers} layers")
        else:
            key = (int(match[1]), targets[match[2]], match[3])
            names[key], shapes[key] = name, tuple(file.get_slice(name).get_shape())
    ranks = collections.Counter(shape[0] for (_, _, half), shape in shapes.items() if half == "A" and len(shape) == 2)
    rank = stated.get("r") or (ranks.most_common(1)[0][0] if ranks else 0)
    for key, shape in shapes.items():
        expected = (rank, config.inner_dim) if key[2] == "A" else (config.inner_dim, rank)
        if shape != expected:
            faults.append(f"{names[key]}: shape {shape}, expected {expected}")
    for layer, target in np.ndindex(config.num_layers, len(TARGETS)):
        target = list(TARGETS)[target]
        missing = [half for half in "AB" if (layer, target, half) not in names]
        wanted = any(found == target for _, found, _ in names)
        if wanted and missing:
            where = f"transformer_blocks.{layer}.attn1.{TARGETS[target]}"
            faults.append(f"{where}: {' and '.join(f'lora_{half}' for half in missing)} missing")
    if not names and not faults:
        faults.append("it holds no tensors")
    faults += stated.get("faults", [])
    if faults:
        shown = "; ".join(faults[:_SHOWN]) + (f"; and {len(faults) - _SHOWN} more" if faults[_SHOWN:] else "")
        raise InputError(f"{path} is not a LoRA of this transformer: {shown}: give one that was trained on this model")
    return rank, _alpha(path, stated, rank, alpha), names


def _stated(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Rank, alpha and faults from the adapter's own description (PEFT's LoraConfig), as far as it is there."""
    if "lora_adapter_metadata" not in metadata:
        return {}
    try:
        fields = json.loads(metadata["lora_adapter_metadata"])
        fields = {key.removeprefix("transformer."): value for key, value in fields.items()}
        rank, alpha = fields.get("r"), fields.get("lora_alpha")
        faults = [
            f"{key} is set: only plain LoRA of one rank and alpha can be used"
            for key in ("alpha_pattern", "rank_pattern", "use_dora", "lora_bias")
            if fields.get(key)
        ]
        rank = None if rank is None else int(rank)
        if alpha is not None and fields.get("use_rslora") and rank:
            alpha = float(alpha) * math.sqrt(rank)  # its scale is alpha / sqrt(rank)
        return {"r": rank, "alpha": None if alpha is None else float(alpha), "faults": faults}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its lora_adapter_metadata cannot be read ({error}): export the LoRA again") from None


def _alpha(path: Path, stated: Mapping[str, Any], rank: int, given: float | None) -> float:
    found = stated.get("alpha")
    if found is not None:
        if given is not None and given != found:
            raise InputError(f"{path} states alpha {found:g}, and alpha {given:g} was given: leave that out")
        return found
    if given is None:
        _log.warning("%s does not state its alpha: the rank, %d, is taken, which is scale 1", path, rank)
    return float(rank) if given is None else float(given)
