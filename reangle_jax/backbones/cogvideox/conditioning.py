"""What the transformer is given beside noised latents, in training and in sampling: the first frame's own."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.cogvideox.vae import VAE


def image_condition(
    vae: VAE, image: Float[Array, "B H W 3"], latent_frames: int, *, key: Array
) -> Float[Array, "B t h w C"]:
    """The condition that stands beside the noised latents: the image's latents, drawn and scaled, then zeros.

    Training and sampling both come through here: scaled otherwise in one of them, first frames come out too bright.
    Images are in [-1, 1].
    """
    mean, logvar = vae.encode(image[:, None])
    first = vae.scale_image_latents(vae.sample(mean, logvar, key=key))
    batch, _, height, width, channels = first.shape
    rest = jnp.zeros((batch, latent_frames - 1, height, width, channels), first.dtype)
    return jnp.concatenate([first, rest], axis=1)


def predictor(graphdef: nnx.GraphDef) -> Callable[..., Array]:
    """``predict(latents, t, lora, base, condition, text)``: the transformer as samplers call it.

    ``condition`` is None for a text-to-video transformer.
    """

    def predict(latents: Array, t: Array, lora: Any, base: Any, condition: Array | None, text: Array) -> Array:
        model = nnx.merge(graphdef, lora, base)
        dtype = latents.dtype
        joined = latents if condition is None else jnp.concatenate([latents, condition.astype(dtype)], axis=-1)
        return model(joined, text.astype(dtype), t.astype(jnp.float32))

    return predict
