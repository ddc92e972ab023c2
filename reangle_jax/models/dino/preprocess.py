"""Colours as DINO was shown them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Float[Array, "*batch H W 3"]) -> Float[Array, "*batch H W 3"]:
    """RGB of values 0 to 1 to ImageNet's mean 0 and deviation 1."""
    mean, std = (
        jnp.asarray(x, images.dtype).reshape((1,) * (images.ndim - 1) + (3,)) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images - mean) / std
