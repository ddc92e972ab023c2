"""VBench's figures by networks (Huang et al., 2023, arXiv 2311.17982), of a video's frames at the network's size.

Subject consistency compares frames by the class token of DINO ViT-B/16, background consistency by the vector of CLIP
ViT-B/32, each with the one before it and with the first; aesthetic quality is LAION's mark of CLIP ViT-L/14's vectors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from reangle_jax.models.clip import Aesthetic, AestheticConfig, ClipImage, ClipImageConfig
from reangle_jax.models.dino import DinoConfig, VisionTransformer
from reangle_jax.nn.colours import CLIP_COLOURS, normalise
from reangle_jax.nn.resize import apply_separable, bicubic_matrix, bilinear_matrix
from reangle_jax.scoring import networks

# Folders under the weights, as the converters name them, and the models that they come from.
SUBJECT, BACKGROUND, LARGE, AESTHETIC = "dino_vitb16", "clip_vitb32", "clip_vitl14", "aesthetic"
_MODELS = {
    SUBJECT: "dino-vitb16",
    BACKGROUND: "clip-vit-base-patch32",
    LARGE: "clip-vit-large-patch14",
    AESTHETIC: "aesthetic-vit-l-14",
}
SIDE = 224  # pixels of a frame's shorter side, as the networks see it
BATCH = 8  # frames at a time

Describe = Callable[[UInt8[np.ndarray, "T H W 3"]], Float[np.ndarray, "T C"]]


def consistency(features: Float[np.ndarray, "T C"]) -> float:
    """Mean over the frames behind the first of (s(k - 1, k) + s(0, k)) / 2, where s is the cosine, at least 0.

    Raises:
        ValueError: fewer than two frames.
    """
    if len(features) < 2:
        raise ValueError("consistency needs two frames or more")
    unit = _unit(features)
    before, first = np.sum(unit[1:] * unit[:-1], axis=1), unit[1:] @ unit[0]
    return float(np.mean((np.maximum(before, 0) + np.maximum(first, 0)) / 2))


def aesthetic(features: Float[np.ndarray, "T C"], head: Aesthetic) -> float:
    """Mean mark of the vectors of CLIP ViT-L/14, over 10."""
    return float(np.mean(np.asarray(head(jnp.asarray(_unit(features), jnp.float32))))) / 10.0


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def shown(frames: UInt8[Array, "B H W 3"], *, cubic: bool = False) -> Float[Array, "B h w 3"]:
    """Frames whose shorter side is `SIDE` pixels, as VBench shows them to a network: whole levels, 0 to 255.

    Bilinear or bicubic without antialiasing, rounded, for it resizes bytes; the longer side is cut to whole pixels.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    rows, columns = (
        bicubic_matrix(size, SIDE * size // short)
        if cubic
        else bilinear_matrix(size, SIDE * size // short, align_corners=False)
        for size in (height, width)
    )
    return jnp.clip(jnp.round(apply_separable(frames.astype(jnp.float32), rows, columns)), 0.0, 255.0)


def describe_by(model: VisionTransformer | ClipImage) -> Describe:
    """What a network makes of a video's frames, as a compiled function, one compilation a size.

    Of a DINO the class tokens; of a CLIP the vectors of the frames' middle squares.
    """
    graphdef, state = nnx.split(model)
    patch, square = model.config.patch_size, isinstance(model, ClipImage)

    @jax.jit
    def run(state: Any, frames: Array) -> Array:
        images = shown(frames, cubic=square)
        network = nnx.merge(graphdef, state)
        if square:
            top, left = (round((size - SIDE) / 2) for size in images.shape[1:3])
            return network(normalise(images[:, top : top + SIDE, left : left + SIDE] / 255.0, CLIP_COLOURS))
        # What a convolution of whole patches would leave out at the end.
        height, width = (size // patch * patch for size in images.shape[1:3])
        return network(normalise(images[:, :height, :width] / 255.0))[:, 0]

    def describe(frames: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(frames), BATCH):
            part = frames[start : start + BATCH]
            filled = np.pad(part, [(0, BATCH - len(part)), *[(0, 0)] * 3])
            found.append(np.asarray(run(state, filled))[: len(part)])
        return np.concatenate(found)

    return describe


def load(folder: Path) -> Describe:
    """`describe_by` with converted weights: WEIGHTS/ and one of `SUBJECT`, `BACKGROUND` and `LARGE`.

    Raises:
        InputError: they are missing, damaged or of another kind.
    """
    if folder.name == SUBJECT:
        return describe_by(_loaded(folder, DinoConfig, VisionTransformer))
    return describe_by(_loaded(folder, ClipImageConfig, ClipImage))


def load_aesthetic(folder: Path) -> Aesthetic:
    """LAION's head, WEIGHTS/aesthetic.

    Raises:
        InputError: it is missing, damaged or of another kind.
    """
    return _loaded(folder, AestheticConfig, Aesthetic)


def _loaded(folder: Path, config_class: type, network: Callable[..., Any]) -> Any:
    return networks.load_part(folder, config_class, network, _MODELS.get(folder.name, "--list"))
