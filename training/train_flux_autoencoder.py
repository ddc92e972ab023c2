"""Trains the small FLUX's autoencoder: 4x4 pixels to a cell of 16 channels.

``python -m training.train_flux_autoencoder --workdir DIR [--scenes DIR] [--steps N | --minutes M]``

Data: crops of photographs and of video frames and, if ``--scenes`` names a folder, of rendered frames; a third of them
recoloured. One in four has holes filled with black, as the ControlNet's condition has. Loss: absolute and squared
error, and a little of the Kullback-Leibler divergence that keeps the latents near a unit normal. At the end the
latents' mean and standard deviation are measured; they become the config's shift and (inverted) scaling factor.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.arrays import to_unit
from reangle_jax.data.video import fit
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from training import training
from training.dataset import HEIGHT, WIDTH, Clip, load_clips
from training.pool import ImagePool, load_pool
from training.train_vae import psnr, recoloured

WEIGHTS = tiny.WEIGHTS / "flux_autoencoder"
SIDE = 48  # pixels of a crop
KL_WEIGHT = 1e-3
SQUARED_WEIGHT = 4.0  # of the squared error beside half of the absolute one
HOLES, RENDERED, RECOLOURED = 0.25, 0.35, 0.33  # shares of the crops


def random_picture(
    rng: np.random.Generator, pool: ImagePool, scenes: Sequence[Clip] | None, height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    """A crop of a photograph, of a video frame or, if there are scenes, of a rendered frame."""
    if scenes is not None and rng.random() < RENDERED:
        frames = scenes[int(rng.integers(len(scenes)))].frames
        frame = frames[rng.integers(len(frames))]
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(frame.shape[:2], (height, width), strict=True))
        picture = frame[top : top + height, left : left + width]
        picture = picture[:, ::-1] if rng.random() < 0.5 else picture
    else:
        picture = pool.random_crop(rng, height, width)
    return recoloured(picture, rng) if rng.random() < RECOLOURED else picture


def with_black(picture: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with a black hole: a strip along an edge or along a stroke."""
    height, width = picture.shape[:2]
    hole = np.zeros((height, width), np.uint8)
    if rng.random() < 0.5:
        side = hole if rng.random() < 0.7 else hole.T
        side = side if rng.random() < 0.5 else side[:, ::-1]
        side[:, : int(rng.integers(2, side.shape[1] // 2))] = 1
    else:
        corners = rng.integers(0, [width, height], (5, 2)).astype(np.int32)
        cv2.polylines(hole, [corners], False, 1, int(rng.integers(3, 16)))
    return np.where(hole[..., None] > 0, np.uint8(0), picture)


def make_batch(
    rng: np.random.Generator, step: int, *, pool: ImagePool, scenes: Sequence[Clip] | None, size: int
) -> UInt8[np.ndarray, "B h w 3"]:
    """A batch of crops."""
    del step
    crops = [random_picture(rng, pool, scenes, SIDE, SIDE) for _ in range(size)]
    return np.stack([with_black(crop, rng) if rng.random() < HOLES else crop for crop in crops])


def loss(
    parameters: nnx.State, batch: UInt8[Array, "B h w 3"], key: Array, *, graphdef: nnx.GraphDef
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Reconstruction error and divergence of one batch."""
    network = nnx.merge(graphdef, parameters)
    pictures = to_unit(batch)
    mean, logvar = network.encode(pictures)
    output = network.decode(network.sample(mean, logvar, key=key))
    error = output - pictures
    divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    value = 0.5 * jnp.mean(jnp.abs(error)) + SQUARED_WEIGHT * jnp.mean(jnp.square(error)) + KL_WEIGHT * divergence
    numbers = {"psnr": psnr(output, pictures), "divergence": divergence, "sigma": jnp.mean(jnp.exp(0.5 * logvar))}
    return value, numbers


@partial(jax.jit, static_argnums=0)
def _reconstruct(graphdef: nnx.GraphDef, parameters: nnx.State, picture: Array):
    network = nnx.merge(graphdef, parameters)
    unit = to_unit(picture)[None]
    mean, _ = network.encode(unit)
    return psnr(jnp.clip(network.decode(mean), -1, 1), unit), jnp.mean(mean), jnp.mean(jnp.square(mean))


def evaluate(graphdef: nnx.GraphDef, parameters: nnx.State, pictures: UInt8[np.ndarray, "N H W 3"]) -> dict[str, float]:
    """Mean PSNR in dB of held-out pictures, and the mean and standard deviation of their latents."""
    rows = np.array([[float(x) for x in _reconstruct(graphdef, parameters, picture)] for picture in pictures])
    peak, mean, square = rows.mean(0)
    return {"heldout_psnr": peak, "latent_mean": mean, "latent_std": float(np.sqrt(square - mean**2))}


def held_out_pictures(pool: ImagePool) -> UInt8[np.ndarray, "N H W 3"]:
    """Photographs that nothing is trained on, at the small family's size."""
    return np.stack([fit(photo, HEIGHT, WIDTH) for photo in pool.photos])


def main() -> None:
    """The command."""
    parser = training.command_line(__doc__, steps=5_000, out=str(WEIGHTS), rate=3e-3)
    parser.add_argument("--scenes", default=None, help="a folder of rendered clips (training.dataset)")
    parser.add_argument("--batch", type=commands.positive, default=8, help="crops a step")
    args = parser.parse_args()
    config = AutoencoderConfig.tiny()
    network = Autoencoder(config, rngs=nnx.Rngs(args.seed))
    graphdef, parameters = nnx.split(network)
    pools = load_pool(args.cache)
    scenes = load_clips(args.scenes, "frames") if args.scenes else None
    pictures = held_out_pictures(pools.heldout)
    mean = training.train(
        partial(loss, graphdef=graphdef),
        parameters,
        partial(make_batch, pool=pools.train, scenes=scenes, size=args.batch),
        training.TrainConfig.of(args),
        args.workdir,
        evaluate=lambda mean: evaluate(graphdef, mean, pictures),
    )
    figures = evaluate(graphdef, mean, pictures)
    shift, scale = round(figures["latent_mean"], 4), round(1.0 / figures["latent_std"], 4)
    config = dataclasses.replace(config, shift_factor=shift, scaling_factor=scale)
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
