"""Colours as networks were shown them that learnt from ImageNet."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Of RGB with values 0 to 1.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(images: Float[Array, "*batch H W 3"]) -> Float[Array, "*batch H W 3"]:
    """RGB of values 0 to 1 to ImageNet's mean 0 and deviation 1."""
    mean, std = (
        jnp.asarray(x, images.dtype).reshape((1,) * (images.ndim - 1) + (3,)) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images - mean) / std
