"""VBench's subject consistency (Huang et al., 2023, arXiv 2311.17982): do frames show the same thing throughout?

Frames are compared by the class token of DINO ViT-B/16, each with the one before it and with the first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from reangle_jax import checkpoints
from reangle_jax.data.weights_folder import check_whole
from reangle_jax.errors import InputError
from reangle_jax.models.dino import DinoConfig, VisionTransformer, normalise
from reangle_jax.nn.resize import apply_separable, bilinear_matrix

FOLDER = "dino_vitb16"  # under the weights, as the converter names it
SIDE = 224  # pixels of a frame's shorter side, as the network sees it
BATCH = 8  # frames at a time

Describe = Callable[[UInt8[np.ndarray, "T H W 3"]], Float[np.ndarray, "T C"]]


def consistency(features: Float[np.ndarray, "T C"]) -> float:
    """Mean over the frames behind the first of (s(k - 1, k) + s(0, k)) / 2, where s is the cosine, at least 0.

    Raises:
        ValueError: fewer than two frames.
    """
    if len(features) < 2:
        raise ValueError("consistency needs two frames or more")
    unit = np.asarray(features, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-8)
    before, first = np.sum(unit[1:] * unit[:-1], axis=1), unit[1:] @ unit[0]
    return float(np.mean((np.maximum(before, 0) + np.maximum(first, 0)) / 2))


def shown(frames: UInt8[Array, "B H W 3"], side: int = SIDE) -> Float[Array, "B h w 3"]:
    """Frames whose shorter side is ``side`` pixels, as VBench shows them to a network: whole levels, 0 to 255.

    Bilinear without antialiasing, rounded, for it resizes bytes; the longer side is cut to whole pixels.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    rows, columns = (bilinear_matrix(size, side * size // short, align_corners=False) for size in (height, width))
    return jnp.round(apply_separable(frames.astype(jnp.float32), rows, columns))


def describe_by(model: VisionTransformer) -> Describe:
    """A DINO's class tokens of a video's frames, as a compiled function, one compilation a size."""
    graphdef, state = nnx.split(model)
    patch = model.config.patch_size

    @jax.jit
    def run(state: Any, frames: Array) -> Array:
        images = shown(frames)
        # What a convolution of whole patches would leave out at the end.
        height, width = (size // patch * patch for size in images.shape[1:3])
        return nnx.merge(graphdef, state)(normalise(images[:, :height, :width] / 255.0))[:, 0]

    def describe(frames: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(frames), BATCH):
            part = frames[start : start + BATCH]
            filled = np.pad(part, [(0, BATCH - len(part)), *[(0, 0)] * 3])
            found.append(np.asarray(run(state, filled))[: len(part)])
        return np.concatenate(found)

    return describe


def load(folder: Path) -> Describe:
    """`describe_by` with converted weights: those of the part, WEIGHTS/dino_vitb16, in either form of `checkpoints`.

    Raises:
        InputError: it is missing, damaged or of another kind.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: convert it with --out of its parent (python -m converters dino-vitb16)")
    check_whole(folder)
    return describe_by(checkpoints.load(folder, DinoConfig, VisionTransformer))
