"""The array types that many signatures share, once; pictures between bytes and [-1, 1]; jaxtyping spells the shapes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

AnyArray = jax.Array | np.ndarray
"""An array of JAX or NumPy: what pure functions take where both come."""

Picture = UInt8[np.ndarray, "_ _ 3"]
"""An image in RGB, of any size."""

Pictures = Sequence[Picture] | UInt8[np.ndarray, "_ _ _ 3"]
"""Images, each of its own size, or a video's frames."""


def to_unit(frames: Num[Array, "*s"]) -> Float[Array, "*s"]:
    """Levels of a byte, 0 to 255, to [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(frames: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    """[-1, 1] to bytes, rounded."""
    return jnp.clip(jnp.round((frames.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
