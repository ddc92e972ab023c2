"""FVD (Unterthiner et al., 2018, arXiv 1812.01717): the Frechet distance of I3D's averaged logits of short clips.

As in the authors' code, frames are resized to 224x224 whatever their shape, and their values go from -1 to 1; the
resizing is bilinear with half-pixel centres, without antialiasing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from reangle_jax.arrays import to_unit
from reangle_jax.models.i3d import I3D, I3DConfig
from reangle_jax.models.i3d.model import SIDE
from reangle_jax.nn.resize import resize_bilinear
from reangle_jax.scoring import networks

FOLDER = "i3d"  # under the weights, as the converter names it
FRAMES = 16  # of a clip
PUBLISHED = 2048  # clips on each side, of most published figures

Describe = Callable[[UInt8[np.ndarray, "T H W 3"]], Float[np.ndarray, " C"]]


def clips(frames: UInt8[np.ndarray, "T H W 3"], count: int = FRAMES) -> list[UInt8[np.ndarray, "{count} H W 3"]]:
    """A video cut into clips of so many frames, one behind the other; what is left over at its end is left out."""
    return [frames[start : start + count] for start in range(0, len(frames) - count + 1, count)]


def describe_by(model: I3D) -> Describe:
    """An I3D's averaged logits of a clip, as a compiled function, one compilation a size."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any, frames: Array) -> Array:
        images = resize_bilinear(frames.astype(jnp.float32), SIDE, SIDE, align_corners=False)
        return nnx.merge(graphdef, state)(to_unit(images[None]))[0]

    return lambda frames: np.asarray(run(state, frames))


def load(folder: Path) -> Describe:
    """`describe_by` with converted weights: those of the part, WEIGHTS/i3d, in either form of `checkpoints`.

    Raises:
        InputError: it is missing, damaged or of another kind.
    """
    return describe_by(networks.load_part(folder, I3DConfig, I3D, "i3d-kinetics-400"))
