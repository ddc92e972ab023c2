"""Colours as networks were shown them that learnt from ImageNet, or as CLIP."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Of RGB with values 0 to 1.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
IMAGENET_COLOURS = (IMAGENET_MEAN, IMAGENET_STD)
CLIP_COLOURS = (
    np.array([0.48145466, 0.4578275, 0.40821073], np.float32),
    np.array([0.26862954, 0.26130258, 0.27577711], np.float32),
)


def normalise(
    images: Float[Array, "*batch H W 3"], colours: tuple[np.ndarray, np.ndarray] = IMAGENET_COLOURS
) -> Float[Array, "*batch H W 3"]:
    """RGB of values 0 to 1 to mean 0 and deviation 1 of what a network learnt from, by their means and deviations."""
    mean, std = (jnp.asarray(x, images.dtype).reshape((1,) * (images.ndim - 1) + (3,)) for x in colours)
    return (images - mean) / std
