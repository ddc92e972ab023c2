"""How the small FLUX's paintings look in their holes, as its training sees it: pixels, features, what repeats."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from reangle_jax import checkpoints
from reangle_jax.arrays import to_unit
from reangle_jax.errors import about
from reangle_jax.models.dino import FeatUp, FeatUpConfig, normalise
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig

PIXELS = ("truth", "shown", "visible")  # of a batch that is looked at
NARROW_WEIGHT = 0.25  # how much a hole counts that no square of 9 pixels fits into, beside wider ones
NEIGHBOURS = 4  # tokens a side among which an error must not repeat
FLOOR = 1e-4  # added to the squared error of pixels of -1 to 1, whose logarithm is learnt from
BEYOND = 1.05  # pixels of -1 to 1 are held to this: a little room, so that white and black are still learnt


class Look(NamedTuple):
    """What paintings are looked at by: each network's structure and parameters.

    Attributes:
        coder: the autoencoder, whose decoder makes pictures of latents.
        describer: the small DINO (and FeatUp, which is not used).
    """

    coder: tuple[nnx.GraphDef, nnx.State]
    describer: tuple[nnx.GraphDef, nnx.State]

    @property
    def patch_size(self) -> int:
        """Of what features are taken of, pixels."""
        return nnx.merge(*self.describer).config.patch_size

    @classmethod
    def load(cls, autoencoder: str | Path, featup: str | Path) -> "Look":
        """From their folders."""
        with about("--autoencoder"):
            coder = checkpoints.load(autoencoder, AutoencoderConfig, Autoencoder)
        with about("--features"):
            describer = checkpoints.load(featup, FeatUpConfig, FeatUp)
        return cls(nnx.split(coder), nnx.split(describer))


def opened(hole: Float[Array, "B H W"], width: int = 9) -> Float[Array, "B H W"]:
    """The parts of holes that a square of ``width`` pixels fits into; what is beyond the picture is known."""
    window, ones, side = (1, width, width), (1, 1, 1), width // 2
    beyond = jnp.pad(hole, ((0, 0), (side, side), (side, side)))
    inside = jax.lax.reduce_window(beyond, jnp.inf, jax.lax.min, window, ones, "VALID")
    return jax.lax.reduce_window(inside, -jnp.inf, jax.lax.max, window, ones, "SAME")


def repeated(
    error: Float[Array, "B H W 3"], weight: Float[Array, "B H W"], token: int, side: int = NEIGHBOURS
) -> Float[Array, " B"]:
    """How much of an error is the same in each of neighbouring tokens: a pattern that no picture has.

    Of what is finer than a token the products of two tokens at one place within them are averaged, over all pairs of a
    neighbourhood: what differs from token to token comes to nothing.

    Args:
        error: pixels.
        weight: how much each counts.
        token: pixels a side.
        side: tokens of a neighbourhood, at most.

    Returns:
        The mean product; for a pattern its mean square. May be a little below 0.
    """
    batch, height, width = weight.shape
    window = (1, token, token, 1)
    coarse = jax.lax.reduce_window(error, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME") / token**2
    rows, columns = (max(k for k in range(1, side + 1) if n % (k * token) == 0) for n in (height, width))
    shape = batch, height // (rows * token), rows, token, width // (columns * token), columns, token
    fine, weight = (error - coarse).reshape(*shape, 3), weight.reshape(*shape, 1)

    def pairs(x: Array) -> Array:
        return jnp.square(jnp.sum(x, (2, 5))) - jnp.sum(jnp.square(x), (2, 5))

    return jnp.sum(pairs(weight * fine), range(1, 6)) / (3 * jnp.sum(pairs(weight), range(1, 6)) + 1e-6)


def looked_at(
    look: Look, estimates: Sequence[Array], batch: dict[str, Array], shift: Int[Array, "2"] | tuple[int, int] = (0, 0)
) -> list[dict[str, Array]]:
    """How clean latents look in the holes, what is known pasted back: pixels' error, 1 less features' cosine.

    And what of the error repeats from token to token (`repeated`), which features alone teach to be there. Pixels'
    error is the logarithm of the root of a picture's mean square (PSNR in nepers): where a hole is nearly right
    already, a little counts as much as a lot does where it is not.

    Args:
        look: what they are looked at by.
        estimates: each of the first pictures of the batch, or of all.
        batch: has their `PIXELS`.
        shift: rows and columns by which pictures are rolled before they are described.
    """
    coder, describer = nnx.merge(*look.coder), nnx.merge(*look.describer)
    patch, token = describer.config.patch_size, 2 * coder.config.spatial_compression_ratio

    def rolled(x: Array) -> Array:
        return jnp.roll(x, shift, (1, 2))

    def described(pictures: Array) -> Array:
        found = describer.features(normalise(0.5 * rolled(pictures) + 0.5))
        return found / (jnp.linalg.norm(found, axis=-1, keepdims=True) + 1e-6)

    hole = 1 - batch["visible"].astype(jnp.float32)
    weight = NARROW_WEIGHT * hole + (1 - NARROW_WEIGHT) * opened(hole)
    cells = rolled(weight).reshape(len(hole), hole.shape[1] // patch, patch, hole.shape[2] // patch, patch)
    share = cells.mean((2, 4))
    hole, weight = hole[..., None], weight[..., None]
    truth, shown = to_unit(batch["truth"]), to_unit(batch["shown"])
    there = described(truth)
    result = []
    for latents in estimates:
        n = len(latents)
        painted = jnp.clip(coder.decode(coder.unscale_latents(latents)), -BEYOND, BEYOND)
        pasted = jnp.where(hole[:n] > 0, painted, shown[:n])
        wrong = pasted - truth[:n]
        squared = jnp.sum(weight[:n] * jnp.square(wrong), (1, 2, 3))
        error = 0.5 * jnp.mean(jnp.log(squared / (3 * jnp.sum(weight[:n], (1, 2, 3)) + 1e-6) + FLOOR))
        apart = jnp.sum(share[:n] * (1 - jnp.sum(described(pasted) * there[:n], -1))) / jnp.sum(share[:n])
        again = jax.nn.relu(repeated(wrong, weight[:n, ..., 0], token))
        result.append({"pixels": error, "features": apart, "repeats": jnp.mean(jnp.sqrt(again + 1e-6))})
    return result
