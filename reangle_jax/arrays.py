"""The array types that many signatures share, once; jaxtyping spells the shapes."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt8

AnyArray = jax.Array | np.ndarray
"""An array of JAX or NumPy: what pure functions take where both come."""

Picture = UInt8[np.ndarray, "_ _ 3"]
"""An image in RGB, of any size."""

Pictures = Sequence[Picture] | UInt8[np.ndarray, "_ _ _ 3"]
"""Images, each of its own size, or a video's frames."""
