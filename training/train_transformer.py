"""Trains the small family's image-to-video transformer on the latents of rendered and real clips.

``python -m training.train_transformer --workdir DIR --scenes DIR --heldout-scenes DIR [--minutes M]``

The recipe is the published one at small width: v-prediction under the zero-terminal-SNR schedule, the first frame's
latents (of a slightly noised frame) beside the noised ones, now and then no condition and no text. Every clip is
encoded once, with its mirror image (left and right change places in its prompt), and kept in the workdir.

``--inherit FOLDER`` begins with what fits of a transformer made for another autoencoder.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float16, Float32, Int, UInt8

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.arrays import to_unit
from reangle_jax.backbones.cogvideox import networks
from reangle_jax.diffusion.losses import masked_loss
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.errors import about, called
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.nn.choices import IMPLEMENTATIONS, Choice
from reangle_jax.nn.execution import Execution
from training import records, training
from training.dataset import FRAMES, HEIGHT, PART, WIDTH, Clip, load_clips
from training.movers import moving_things
from training.pool import ImagePool, load_pool

WEIGHTS = tiny.WEIGHTS / "transformer"
SCHEDULE = Schedule()
TOKEN = 16  # pixels a side
NOISED_IMAGES = 2  # noised first frames kept for each clip
CONDITION_DROPOUT = 0.05
TEXT_DROPOUT = 0.1
REAL_EVERY = 4  # one real clip after so many rendered ones
MOVERS_EVERY = 2  # and one of small things that move fast, where the camera stands still


def mirrored_prompt(prompt: str) -> str:
    """The prompt of the mirror image: left and right change places."""
    swap = {"LEFT": "RIGHT", "RIGHT": "LEFT", "left": "right", "right": "left"}
    words = prompt.replace("_", "_ ").replace(",", " ,").split(" ")
    return " ".join(swap.get(word, word) for word in words).replace("_ ", "_").replace(" ,", ",")


class Latents(NamedTuple):
    """A clip as a training step needs it: scaled posterior means, and standard deviations after them.

    Attributes:
        video: of all frames.
        image: of some noised first frames.
        prompt: may be empty.
    """

    video: Float16[np.ndarray, "t h w c"]
    image: Float16[np.ndarray, "K h w c"]
    prompt: str


def noised_first_frames(
    frames: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator
) -> Float32[np.ndarray, "K 1 H W 3"]:
    """First frames in [-1, 1] with noise of sigma exp(N(-3, 0.5)), as in fine-tuning."""
    first = np.repeat(np.asarray(to_unit(jnp.asarray(frames[None, :1]))), NOISED_IMAGES, 0)
    sigma = np.exp(rng.normal(-3.0, 0.5, (NOISED_IMAGES, 1, 1, 1, 1))).astype(np.float32)
    return first + sigma * rng.standard_normal(first.shape, np.float32)


class Encoder:
    """The small autoencoder: clips to what a training step needs of them, as float16 on the host."""

    def __init__(self, folder: str):
        with about("--vae"):
            network = networks.load(networks.describe_vae(Path(folder)), Path(folder))
        self.state, self.scale = network.state, network.config.scaling_factor
        self._encode = jax.jit(lambda state, video: nnx.merge(network.graphdef, state).encode(video))

    def __call__(self, videos: np.ndarray) -> np.ndarray:
        """Scaled posterior means, and standard deviations after them: float16 [N, t, h, w, 2C]."""
        rows = []
        for video in videos:
            mean, logvar = self._encode(self.state, jnp.asarray(video[None]))
            both = jnp.concatenate([mean, jnp.exp(0.5 * logvar)], axis=-1) * self.scale
            rows.append(np.asarray(both, np.float16))
        return np.concatenate(rows)

    def both(self, clip: Clip, rng: np.random.Generator) -> Iterator[Latents]:
        """A clip and its mirror image."""
        for frames, prompt in ((clip.frames, clip.prompt), (clip.frames[:, :, ::-1], mirrored_prompt(clip.prompt))):
            (video,) = self(np.asarray(to_unit(jnp.asarray(frames[None]))))
            yield Latents(video, self(noised_first_frames(frames, rng))[:, 0], prompt)

    def all(self, clips: Sequence[Clip], numbers: range, pool: ImagePool) -> Iterator[Latents]:
        """Rendered clips by number, and real ones between them."""
        for number in numbers:
            rng = np.random.default_rng([3, number])
            yield from self.both(clips[number], rng)
            if pool.clips and number % REAL_EVERY == REAL_EVERY - 1:
                yield from self.both(_undescribed(pool.random_clip(rng, FRAMES, HEIGHT, WIDTH)), rng)
            if len(pool.stamps) and number % MOVERS_EVERY == MOVERS_EVERY - 1:
                yield from self.both(_undescribed(moving_things(pool, rng, FRAMES, HEIGHT, WIDTH)), rng)


def _undescribed(frames: UInt8[np.ndarray, "T H W 3"]) -> Clip:
    return Clip(frames, frames[..., 0].astype(np.float16), "")  # its depth is not asked for


def fitting(vae: VAEConfig, **shape: int) -> TransformerConfig:
    """The small transformer for an autoencoder: its tokens are always 16 pixels a side; further fields as given."""
    ratio = vae.spatial_compression_ratio
    return dataclasses.replace(
        TransformerConfig.tiny(),
        **shape,
        in_channels=2 * vae.latent_channels,
        out_channels=vae.latent_channels,
        patch_size=TOKEN // ratio,
        sample_height=HEIGHT // ratio,
        sample_width=WIDTH // ratio,
    )


def inherit(model: Transformer, source: Transformer) -> list[str]:
    """Fills a transformer with what fits of another one.

    Returns:
        The paths of the parameters that were taken.
    """
    theirs = checkpoints.parameter_paths(source)
    taken = []
    for path, variable in checkpoints.parameter_paths(model).items():
        if path in theirs and theirs[path][...].shape == variable[...].shape:
            variable[...] = jnp.array(theirs[path][...])
            taken.append(path)
    return taken


def encode_all(vae: str, scenes: str, pool: ImagePool, folder: Path) -> None:
    """Makes the latents of every rendered clip and of some real ones, where they are missing."""
    encoder, clips = Encoder(vae), load_clips(scenes, "frames", "prompt")
    for first in range(0, len(clips), PART):
        numbers = range(first, min(first + PART, len(clips)))
        if records.write(folder, Latents, first, encoder.all(clips, numbers, pool)):
            print(f"encoded clips {first} to {numbers[-1]}", flush=True)


def load_latents(folder: Path, text_folder: str) -> dict[str, np.ndarray]:
    """Every encoded clip of a folder, with its prompt's embedding: ``video``, ``image``, ``text``, float16."""
    video, image, prompts = zip(*records.read(folder, Latents, "training.train_transformer"), strict=True)
    length = TransformerConfig.tiny().max_text_seq_length
    with about("--text"):
        text = networks.embed_prompts(Path(text_folder), prompts, length).astype(np.float16)
    return {"video": np.stack(video), "image": np.stack(image), "text": text}


def resident(data: dict[str, np.ndarray], empty: np.ndarray) -> dict[str, jax.Array]:
    """Encoded clips on the device, where every step picks its own, and the empty prompt's embedding beside them."""
    return jax.device_put({**data, "empty": empty})


def make_batch(rng: np.random.Generator, step: int, *, data: dict[str, jax.Array], size: int) -> dict[str, Any]:
    """Which clips, noised first frames and prompts a step takes; some of the last two blanked (`gathered`)."""
    del step
    chosen = {"pick": rng.integers(len(data["video"]), size=size), "image": rng.integers(NOISED_IMAGES, size=size)}
    chosen = {name: value.astype(np.int32) for name, value in chosen.items()}
    blank = {"no_image": rng.random(size) < CONDITION_DROPOUT, "no_text": rng.random(size) < TEXT_DROPOUT}
    return {"data": data, **chosen, **blank}


def gathered(batch: dict[str, Any]) -> dict[str, jax.Array]:
    """The latents, image conditions and text embeddings of a batch."""
    data, pick = batch["data"], batch["pick"]
    image, text = data["image"][pick, batch["image"]], data["text"][pick]
    image = jnp.where(batch["no_image"][:, None, None, None], jnp.zeros_like(image), image)
    text = jnp.where(batch["no_text"][:, None, None], data["empty"][None], text)
    return {"video": data["video"][pick], "image": image, "text": text}


def _draw(moments: jax.Array, key: jax.Array) -> jax.Array:
    mean, deviation = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean + deviation * jax.random.normal(key, mean.shape)


def spread_times(size: int, noisiest_of: int = 1, *, key: jax.Array) -> Int[jax.Array, " {size}"]:
    """Times of a batch, distributed as the noisiest of so many uniform ones.

    One from each of B equally likely slices: the loss varies less from step to step than with independent ones.
    """
    count = SCHEDULE.train_steps
    t = (jax.random.randint(key, (), 0, count) + jnp.arange(size) * (count // size)) % count
    # The largest of k uniform numbers has the distribution of the k-th root of one.
    if noisiest_of == 1:
        return t
    t = (count * ((t.astype(jnp.float32) + 0.5) / count) ** (1.0 / noisiest_of)).astype(jnp.int32)
    return jnp.minimum(t, count - 1)  # very high roots round to one


def loss(parameters: nnx.State, batch: dict[str, Any], key: jax.Array, *, graphdef: nnx.GraphDef, noisiest_of: int = 1):
    """The v-loss, at times distributed as the noisiest of so many uniform ones."""
    batch = gathered(batch)
    keys = jax.random.split(key, 4)
    z = _draw(batch["video"], keys[0])
    image = _draw(batch["image"], keys[1])
    t = spread_times(z.shape[0], noisiest_of, key=keys[2])
    eps = jax.random.normal(keys[3], z.shape)
    condition = jnp.zeros_like(z).at[:, 0].set(image)
    noised = jnp.concatenate([SCHEDULE.add_noise(z, eps, t), condition], axis=-1)
    v = nnx.merge(graphdef, parameters)(noised, batch["text"].astype(jnp.float32), t.astype(jnp.float32))
    return masked_loss(v, SCHEDULE.velocity(z, eps, t), None), {}


def command_line() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = training.command_line(__doc__, steps=20_000, out=str(WEIGHTS), rate=1e-3)
    parser.add_argument("--scenes", required=True, help="a folder of rendered clips (training.dataset)")
    parser.add_argument("--heldout-scenes", required=True, help="the same for clips that are never trained on")
    parser.add_argument("--vae", default=str(WEIGHTS.with_name("vae")))
    parser.add_argument("--text", default=str(WEIGHTS.with_name("text_encoder")))
    parser.add_argument("--batch", type=commands.positive, default=8)
    parser.add_argument(
        "--heads", type=commands.positive, default=TransformerConfig.tiny().num_attention_heads, help="of 64 each"
    )
    parser.add_argument("--layers", type=commands.positive, default=TransformerConfig.tiny().num_layers)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="what is computed in")
    parser.add_argument("--attention", choices=("auto", *IMPLEMENTATIONS), default="auto")
    parser.add_argument("--ema", type=commands.share, default=0.998, help="decay of the mean that is kept")
    parser.add_argument("--save-every", type=commands.above_zero, default=120, help="seconds between checkpoints")
    parser.add_argument(
        "--noisiest-of",
        type=commands.positive,
        default=1,
        help="uniform times of which the noisiest is learnt at; 1: one",
    )
    parser.add_argument("--inherit", default=None, help="a weights folder of another shape: what fits is taken")
    parser.add_argument("--encode-only", action="store_true", help="make the latents and stop")
    return parser


def main() -> None:
    """The command."""
    args = command_line().parse_args()
    pools, workdir = load_pool(args.cache), Path(args.workdir)
    encode_all(args.vae, args.scenes, pools.train, workdir / "latents")
    encode_all(args.vae, args.heldout_scenes, pools.heldout, workdir / "latents_heldout")
    if args.encode_only:
        return
    data, unseen = (load_latents(workdir / name, args.text) for name in ("latents", "latents_heldout"))
    fit(args, data, unseen)


def fit(args: argparse.Namespace, data: dict[str, np.ndarray], unseen: dict[str, np.ndarray]) -> None:
    """Trains on encoded clips as the flags say, and writes the weights."""
    length = TransformerConfig.tiny().max_text_seq_length
    with about("--text"):
        empty = networks.embed_prompts(Path(args.text), [""], length)[0].astype(np.float16)
    print(f"{len(data['video'])} clips with their mirror images", flush=True)
    with about("--vae"):
        codes = checkpoints.load_config(args.vae, VAEConfig)
    config = fitting(codes, num_attention_heads=args.heads, num_layers=args.layers)
    with called(execution__attention="--attention", execution__dtype="--dtype"):
        execution = Execution.chosen(config.param_dtype, Choice(attention=args.attention, dtype=args.dtype))
    model = Transformer(config, execution=execution, rngs=nnx.Rngs(args.seed))
    if args.inherit:
        with about("--inherit"):
            source = checkpoints.load(args.inherit, TransformerConfig, Transformer)
        print(f"inherited {len(inherit(model, source))} arrays", flush=True)
    graphdef, parameters = nnx.split(model)
    draw = partial(make_batch, size=args.batch)
    held_out = resident(unseen, empty)
    batches = [jax.device_put(draw(np.random.default_rng([2, k]), k, data=held_out)) for k in range(8)]
    measure = jax.jit(partial(loss, graphdef=graphdef))

    def evaluate(mean: nnx.State) -> dict[str, float]:
        values = [measure(mean, batch, jax.random.key(k))[0] for k, batch in enumerate(batches)]
        return {"heldout_loss": float(np.mean([float(value) for value in values]))}

    mean = training.train(
        partial(loss, graphdef=graphdef, noisiest_of=args.noisiest_of),
        parameters,
        partial(draw, data=resident(data, empty)),
        # A step's choice is nothing that other processes would have to make.
        training.TrainConfig.of(args, ema=args.ema, weight_decay=1e-2, save_every=args.save_every, workers=0),
        args.workdir,
        evaluate=evaluate,
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
