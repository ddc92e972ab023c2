"""Trains the small family's causal 3D autoencoder.

``python -m training.train_vae --workdir DIR [--steps N | --minutes M] [--freeze-encoder] [--init FOLDER]``

Another shape: ``--widths 16 32 48 --latent-channels 12 --inherit FOLDER`` compresses 4x4x4 and takes from a trained
network of other shape whatever fits.

Data: small things that move fast before a still scene, crops of real clips, photographs under a moving window and, if
``--scenes`` names a folder, rendered clips; half of them recoloured.
Loss: absolute and squared error, up to four times where things move, plus a little of the Kullback-Leibler divergence
that keeps the latents near a unit normal. At the end the latents' standard deviation is measured and its inverse
becomes the config's scaling factor.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.arrays import to_unit
from reangle_jax.data.video import fit
from reangle_jax.errors import about
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.nn.execution import Execution
from training import training
from training.dataset import Clip, load_clips
from training.movers import moving_things
from training.pool import ImagePool, load_pool

WEIGHTS = tiny.WEIGHTS / "vae"
KL_WEIGHT = 3e-4
MOVERS = 1 / 3  # share of clips in which small things move fast
MOVING_WEIGHT = 4.0  # of a pixel that is MOVING_LEVELS or more away from its median over time; 1 where it stands still
MOVING_LEVELS = 40.0
SQUARED_WEIGHT = 4.0  # of the squared error beside half of the absolute one
# (clips, frames, height, width) in turn; every further shape is a further program to compile.
SHAPES = ((1, 9, 64, 64), (1, 9, 64, 64), (1, 9, 64, 64), (6, 1, 64, 96))
IMAGES = ((8, 1, 64, 96),)


def moving_photo(pool: ImagePool, rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    """A photograph under a window that drifts, turns and zooms at a steady rate: uint8 [T, H, W, 3]."""
    photo = pool.random_photo(rng)
    largest = min(photo.shape[0] / height, photo.shape[1] / width)
    scale = 0.9 * np.exp(rng.uniform(np.log(min(0.5, largest)), np.log(largest)))
    if scale > 1:  # shrink by area first: the window itself is only interpolated
        photo = cv2.resize(photo, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
        scale = 1.0
    zoom, turn, drift = rng.normal(0, 0.004), rng.normal(0, 0.004), rng.normal(0, 1.2, 2) * scale
    span, size = 0.5 * scale * np.array([width, height]), np.array([photo.shape[1], photo.shape[0]])
    centre = rng.uniform(span, np.maximum(span + 1e-3, size - span))
    result = []
    for t in range(frames):
        factor, angle = scale * np.exp(zoom * t), turn * t
        a, b = factor * np.cos(angle), factor * np.sin(angle)
        cx, cy = centre + drift * t
        matrix = np.array([[a, -b, cx - a * width / 2 + b * height / 2], [b, a, cy - b * width / 2 - a * height / 2]])
        flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        result.append(cv2.warpAffine(photo, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT))
    return np.stack(result)


def recoloured(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clip in other colours: channels permuted, saturation and brightness changed; photographs alone are too grey."""
    clip = clip[..., rng.permutation(3)].astype(np.float32)
    grey = clip.mean(-1, keepdims=True)
    clip = (grey + (clip - grey) * np.exp(rng.normal(0.4, 0.6))) * rng.uniform(0.7, 1.3, 3)
    return np.clip(clip, 0, 255).astype(np.uint8)


def make_batch(
    rng: np.random.Generator, step: int, *, pool: ImagePool, scenes: Sequence[Clip] | None, shapes=SHAPES
) -> np.ndarray:
    """A batch of clips as uint8 [B, T, H, W, 3], of the shape whose turn it is."""
    count, frames, height, width = shapes[step % len(shapes)]
    clips = []
    for _ in range(count):
        if frames > 1 and rng.random() < MOVERS:
            clips.append(moving_things(pool, rng, frames, height, width))
            continue
        kind = rng.random()
        if scenes is not None and kind < 0.4:
            clip = scenes[int(rng.integers(len(scenes)))].frames
            first = rng.integers(clip.shape[0] - frames + 1)
            y, x = (rng.integers(n - m + 1) for n, m in zip(clip.shape[1:3], (height, width), strict=True))
            clip = clip[first : first + frames, y : y + height, x : x + width]
        elif kind < 0.7:
            clip = moving_photo(pool, rng, frames, height, width)
        else:
            clip = pool.random_clip(rng, frames, height, width)
        clips.append(recoloured(clip, rng) if rng.random() < 0.5 else clip)
    return np.stack(clips)


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return 10 * jnp.log10(4.0 / jnp.mean(jnp.square(a - b)))


def moving_weights(video: jax.Array) -> jax.Array:
    """What each pixel [B, T, H, W, 1] of clips in [-1, 1] counts: more where it leaves its median over time; mean 1."""
    away = jnp.max(jnp.abs(video - jnp.median(video, axis=1, keepdims=True)), axis=-1, keepdims=True) * 127.5
    weights = 1.0 + (MOVING_WEIGHT - 1.0) * jnp.clip(away / MOVING_LEVELS, 0.0, 1.0)
    return weights / jnp.mean(weights)


def loss(
    parameters: nnx.State, batch: jax.Array, key: jax.Array, *, graphdef: nnx.GraphDef, decoder_only: bool = False
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Reconstruction error and divergence of one batch; nothing is propagated into the encoder if ``decoder_only``."""
    vae = nnx.merge(graphdef, parameters)
    video = to_unit(batch)
    mean, logvar = (x.astype(jnp.float32) for x in vae.encode(video))
    if decoder_only:
        mean, logvar = jax.lax.stop_gradient((mean, logvar))
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    output = vae.decode(latents).astype(jnp.float32)
    error = output - video
    divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    weights = moving_weights(video)
    reconstruction = 0.5 * jnp.mean(weights * jnp.abs(error)) + SQUARED_WEIGHT * jnp.mean(weights * jnp.square(error))
    value = reconstruction + KL_WEIGHT * divergence
    return value, {"psnr": psnr(output, video), "divergence": divergence, "sigma": jnp.mean(jnp.exp(0.5 * logvar))}


def held_out_clips(pool: ImagePool, count: int = 4) -> np.ndarray:
    """Clips of 17 successive frames at 128x192 that nothing is trained on: uint8 [N, 17, 128, 192, 3]."""
    (clip,) = pool.clips[:1]
    first = np.linspace(0, len(clip) - 17, count).astype(int)
    return np.stack([[fit(frame, 128, 192) for frame in clip[k : k + 17]] for k in first])


@partial(jax.jit, static_argnums=0)
def _reconstruct(graphdef: nnx.GraphDef, parameters: nnx.State, clip: jax.Array):
    vae = nnx.merge(graphdef, parameters)
    video = to_unit(clip)[None]
    mean, logvar = (x.astype(jnp.float32) for x in vae.encode(video))
    output = vae.decode(mean).astype(jnp.float32)
    return psnr(jnp.clip(output, -1, 1), video), jnp.mean(jnp.square(mean) + jnp.exp(logvar))


def evaluate(graphdef: nnx.GraphDef, parameters: nnx.State, clips: np.ndarray) -> dict[str, float]:
    """PSNR in dB of whole held-out clips, and the latents' standard deviation."""
    results = [_reconstruct(graphdef, parameters, clip) for clip in clips]
    return {
        "heldout_psnr": float(np.mean([float(p) for p, _ in results])),
        "latent_std": float(np.sqrt(np.mean([float(s) for _, s in results]))),
    }


def still_freedom(parameters: nnx.State) -> nnx.State:
    """Factors on the updates that keep the taps on the past as they are: 1 for everything else."""

    def factor(value: jax.Array) -> jax.Array:
        present = jnp.arange(3) == 2
        return present.astype(jnp.float32).reshape(3, 1, 1, 1, 1) if value.ndim == 5 else jnp.ones((1,) * value.ndim)

    return jax.tree.map(factor, parameters)


def still_start(parameters: nnx.State) -> tuple[nnx.State, nnx.State]:
    """Parameters whose taps on the past are zero, so that images alone can teach the spatial part, and the factors."""
    freedom = still_freedom(parameters)
    return jax.tree.map(lambda value, f: value * jnp.broadcast_to(f, value.shape), parameters, freedom), freedom


def inherit(vae: VAE, source: VAE) -> list[str]:
    """Fills an autoencoder with what fits of another one; levels correspond counted from the finest.

    Returns:
        The paths of the parameters that were taken.
    """
    theirs = checkpoints.parameter_paths(source)
    coarser = len(source.config.block_out_channels) - len(vae.config.block_out_channels)
    taken = []
    for path, variable in checkpoints.parameter_paths(vae).items():
        part, name, *rest = path.split(".")
        if part == "decoder" and name in ("levels", "ups"):  # the decoder's are stored coarsest first
            rest[0] = str(int(rest[0]) + coarser)
        found = theirs.get(".".join((part, name, *rest)))
        if found is not None and found[...].shape == variable[...].shape:
            variable[...] = jnp.array(found[...])
            taken.append(path)
    return taken


def main() -> None:
    """The command."""
    parser = training.command_line(__doc__, steps=20_000, out=str(WEIGHTS), rate=3e-3)
    parser.add_argument("--scenes", default=None, help="a folder of rendered clips (training.dataset)")
    parser.add_argument("--freeze-encoder", action="store_true", help="train the decoder alone")
    parser.add_argument("--images", action="store_true", help="first part: single images, taps on the past at rest")
    parser.add_argument("--init", default=None, help="a weights folder to start from")
    parser.add_argument(
        "--widths", type=commands.positive, nargs="+", default=None, help="of each resolution, finest first"
    )
    parser.add_argument("--latent-channels", type=commands.positive, default=None)
    parser.add_argument("--inherit", default=None, help="a weights folder of another shape: what fits is taken")
    parser.add_argument(
        "--batch", type=commands.positive, default=1, help="clips a step; of images alone 6 and 8 times as many"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what is computed in")
    parser.add_argument("--save-every", type=commands.above_zero, default=120, help="seconds between checkpoints")
    args = parser.parse_args()

    config = VAEConfig.tiny()
    if args.init:
        with about("--init"):
            config = checkpoints.load_config(args.init, VAEConfig)
    elif args.widths or args.latent_channels:
        widths, channels = args.widths or config.block_out_channels, args.latent_channels or config.latent_channels
        config = dataclasses.replace(config, block_out_channels=tuple(widths), latent_channels=channels)
    vae = VAE(config, execution=Execution(dtype=args.dtype), rngs=nnx.Rngs(args.seed))
    if args.init:
        with about("--init"):
            checkpoints.load_into(vae, args.init)
    elif args.inherit:
        with about("--inherit"):
            source = checkpoints.load(args.inherit, VAEConfig, VAE)
        print(f"inherited {len(inherit(vae, source))} arrays", flush=True)
    graphdef, parameters = nnx.split(vae)
    pools = load_pool(args.cache)
    scenes = load_clips(args.scenes, "frames") if args.scenes else None
    trainable = None
    if args.freeze_encoder:
        trainable = jax.tree.map_with_path(lambda path, _: jnp.float32("encoder" not in str(path[0])), parameters)
    if args.images:
        parameters, trainable = still_start(parameters) if not args.init else (parameters, still_freedom(parameters))
    clips = held_out_clips(pools.heldout)
    shapes = tuple((args.batch * count, *rest) for count, *rest in (IMAGES if args.images else SHAPES))
    mean = training.train(
        partial(loss, graphdef=graphdef, decoder_only=args.freeze_encoder),
        parameters,
        partial(make_batch, pool=pools.train, scenes=scenes, shapes=shapes),
        training.TrainConfig.of(args, save_every=args.save_every),
        args.workdir,
        evaluate=lambda mean: evaluate(graphdef, mean, clips),
        trainable=trainable,
    )
    if not args.freeze_encoder:
        factor = round(1.0 / evaluate(graphdef, mean, clips)["latent_std"], 4)
        config = dataclasses.replace(config, scaling_factor=factor)
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
