"""The transformer's adapters as a whole: folded into the base, or written for diffusers."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.cogvideox.heads import to_pairs
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig

# Our names of the adapted layers, and diffusers'.
TARGETS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_LAYERS = "blocks.layers.attn"


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
    stacked: Mapping[str, np.ndarray] = {
        path: np.asarray(jax.device_get(value[...]), np.float32)
        for path, value in checkpoints.parameter_paths(lora).items()
    }
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
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(checkpoints.safetensors_bytes(published_lora(lora, config), lora_metadata(config)))
    os.replace(temporary, path)
