"""LoRA files as others publish them, of a very small transformer."""

import json

import numpy as np

from reangle_jax.backbones.cogvideox import lora
from reangle_jax.data import safetensors
from tests.networks import TRANSFORMER_SMALL

CONFIG = TRANSFORMER_SMALL
TARGETS = tuple(lora.TARGETS.values())
WIDTH, RANK, ALPHA = CONFIG.inner_dim, 3, 6.0
PREFIX = "transformer.transformer_blocks."


def published(seed=0, rank=RANK, layers=CONFIG.num_layers, targets=TARGETS, dtype=np.float32):
    rng = np.random.default_rng(seed)
    arrays = {}
    for layer in range(layers):
        for target in targets:
            name = f"transformer.transformer_blocks.{layer}.attn1.{target}"
            arrays[f"{name}.lora_A.weight"] = (0.3 * rng.normal(size=(rank, WIDTH))).astype(dtype)
            arrays[f"{name}.lora_B.weight"] = (0.3 * rng.normal(size=(WIDTH, rank))).astype(dtype)
    return arrays


def write(path, arrays, header=None, **fields):
    metadata = {"format": "pt", **(header or {})}
    if fields:
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{k}": v for k, v in fields.items()})
    path.write_bytes(safetensors.to_bytes(arrays, metadata))
    return path
