"""What FLUX is told of a picture with holes: tokens that a ControlNet is given, or Fill beside the noised latents.

Latents are [h, w, C], cells of several pixels a side; 2x2 cells make a token (`reangle_jax.models.flux.tokens`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.tokens import pack


def _by_cell(pixels: Array, ratio: int) -> Array:
    """[B, H, W] to [B, h, w, ratio^2]: the pixels of each cell, row by row."""
    batch, height, width = pixels.shape
    cells = pixels.reshape(batch, height // ratio, ratio, width // ratio, ratio)
    return cells.transpose(0, 1, 3, 2, 4).reshape(batch, height // ratio, width // ratio, ratio**2)


def known_cells(visible: Bool[Array, "B H W"], ratio: int) -> Bool[Array, "B H//{ratio} W//{ratio}"]:
    """The latent cells of which every pixel is known.

    The published pipelines look at one pixel of each cell: holes narrower than a cell, which warps have many of, would
    be told as known, and as black.
    """
    return _by_cell(visible, ratio).all(axis=-1)


def control_condition(
    vae: Autoencoder,
    picture: Float[Array, "B H W 3"],
    visible: Bool[Array, "B H W"],
    *,
    key: Array | None,
    filled: bool = False,
) -> Float[Array, "B N D"]:
    """The inpainting ControlNet's condition: latents of the picture with black holes, and which cells are known.

    The picture is in [-1, 1], anything in its holes, which are left as they are if it is said to be ``filled``. The key
    is of the draw from the posterior, as published; None takes its mean.

    Returns:
        Tokens of 4 (C + 1) features, 68 of FLUX.1's.
    """
    latents = _encoded(vae, holed(picture, visible, -1.0, filled), key)
    known = known_cells(visible, vae.config.spatial_compression_ratio)[..., None]
    return pack(jnp.concatenate([latents, known.astype(latents.dtype)], axis=-1))


def fill_condition(
    vae: Autoencoder,
    picture: Float[Array, "B H W 3"],
    visible: Bool[Array, "B H W"],
    *,
    key: Array | None,
    filled: bool = False,
) -> Float[Array, "B N D"]:
    """What Fill is given beside the noised latents: those of the picture with grey holes, and every pixel's mask.

    The arguments are `control_condition`'s.

    Returns:
        Tokens of 4 C + 4 ratio^2 features, 64 + 256 of FLUX.1's; 1 of the mask is a hole.
    """
    latents = _encoded(vae, holed(picture, visible, 0.0, filled), key)
    holes = _by_cell(~visible, vae.config.spatial_compression_ratio)
    return jnp.concatenate([pack(latents), pack(holes.astype(latents.dtype))], axis=-1)


def holed(
    picture: Float[Array, "*b H W 3"], visible: Bool[Array, "*b H W"], colour: float, filled: bool
) -> Float[Array, "*b H W 3"]:
    """A picture whose holes have a colour, or, if they are ``filled``, what the picture has there."""
    return picture if filled else jnp.where(visible[..., None], picture, colour)


def _encoded(vae: Autoencoder, picture: Array, key: Array | None) -> Array:
    """Latents at the diffusion model's scale, float32."""
    mean, logvar = (x.astype(jnp.float32) for x in vae.encode(picture))
    return vae.scale_latents(mean if key is None else vae.sample(mean, logvar, key=key))


def picture_latents(vae: Autoencoder, picture: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
    """The mode of a picture's latents, at the diffusion model's scale, float32."""
    return _encoded(vae, picture, None)
