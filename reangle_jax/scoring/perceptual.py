"""LPIPS of pictures with converted weights; the network is `reangle_jax.models.lpips`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from reangle_jax.models.lpips import Lpips, LpipsConfig
from reangle_jax.scoring import networks

FOLDER = "lpips"  # under the weights, as the converter names it

Measure = Callable[[UInt8[np.ndarray, "B H W 3"], UInt8[np.ndarray, "B H W 3"]], Float[np.ndarray, " B"]]


def measure(model: Lpips) -> Measure:
    """The distance as a compiled function of uint8 images, one compilation a shape."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any, images: Array, references: Array) -> Array:
        first, second = (x.astype(jnp.float32) / 255.0 for x in (images, references))
        return nnx.merge(graphdef, state)(first, second)

    return lambda images, references: np.asarray(run(state, images, references))


def load(folder: str | Path) -> Measure:
    """The distance with converted weights: those of the part, WEIGHTS/lpips, in either form of `checkpoints`.

    Raises:
        InputError: it is missing, damaged or of another kind.
    """
    return measure(networks.load_part(Path(folder), LpipsConfig, Lpips))
