"""Trains the small family's image-to-video transformer on the latents of rendered and real clips.

``python -m training.train_transformer --workdir DIR --scenes DIR --heldout-scenes DIR [--minutes M]``

The recipe is the published one at small width: v-prediction under the zero-terminal-SNR schedule, the first frame's
latents (of a slightly noised frame) beside the noised ones, now and then no condition and no text. Every clip is
encoded once, with its mirror image (left and right change places in its prompt), and kept in the workdir.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints, tiny
from reangle_jax.backbones.cogvideox import image_to_video
from reangle_jax.data.files import atomic_savez
from reangle_jax.diffusion.losses import masked_v_loss
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from training import training
from training.dataset import FRAMES, HEIGHT, WIDTH, load_clips, shards
from training.pool import ImagePool, load_pool

WEIGHTS = tiny.WEIGHTS / "transformer"
SCHEDULE = Schedule.cogvideox_5b()
NOISED_IMAGES = 2  # noised first frames kept for each clip
CONDITION_DROPOUT = 0.05
TEXT_DROPOUT = 0.1
REAL_EVERY = 8  # one real clip after so many rendered ones


def mirrored_prompt(prompt: str) -> str:
    """The prompt of the mirror image: left and right change places."""
    swap = {"LEFT": "RIGHT", "RIGHT": "LEFT", "left": "right", "right": "left"}
    words = prompt.replace("_", "_ ").replace(",", " ,").split(" ")
    return " ".join(swap.get(word, word) for word in words).replace("_ ", "_").replace(" ,", ",")


def noised_first_frames(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """First frames in [-1, 1] with noise of sigma exp(N(-3, 0.5)), as in fine-tuning: [N, K, 1, H, W, 3]."""
    first = np.repeat(frames[:, None, :1].astype(np.float32) / 127.5 - 1, NOISED_IMAGES, 1)
    sigma = np.exp(rng.normal(-3.0, 0.5, (*first.shape[:2], 1, 1, 1, 1))).astype(np.float32)
    return first + sigma * rng.standard_normal(first.shape, np.float32)


class Encoder:
    """The small autoencoder: clips to what a training step needs of them, as float16 on the host."""

    def __init__(self, folder: str):
        network = image_to_video.load_vae(Path(folder))
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

    def shard(self, path: Path, frames: np.ndarray, prompts: list[str], seed: int) -> None:
        """Encodes clips and their mirror images into one file."""
        frames = np.concatenate([frames, frames[:, :, :, ::-1]])
        prompts = prompts + [mirrored_prompt(prompt) for prompt in prompts]
        images = noised_first_frames(frames, np.random.default_rng(seed))
        condition = self(images.reshape(-1, 1, HEIGHT, WIDTH, 3))[:, 0]
        video = np.concatenate([self(clip[None].astype(np.float32) / 127.5 - 1) for clip in frames])
        image = condition.reshape(len(frames), NOISED_IMAGES, *condition.shape[1:])
        atomic_savez(path, video=video, image=image, prompts=np.array(json.dumps(prompts)))


def encode_all(vae: str, scenes: str, pool: ImagePool, folder: Path) -> None:
    """Makes the latents of every rendered shard and of some real clips, where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(vae)
    for k, shard in enumerate(shards(scenes)):
        path = folder / f"latents_{shard.stem}.npz"
        if path.exists():
            continue
        frames, prompts = load_clips(shard)
        rng = np.random.default_rng([3, k])
        real = len(frames) // REAL_EVERY
        if real and pool.clips:
            clips = np.stack([pool.random_clip(rng, FRAMES, HEIGHT, WIDTH) for _ in range(real)])
            frames, prompts = np.concatenate([frames, clips]), prompts + [""] * real
        encoder.shard(path, frames, prompts, k)
        print(f"encoded {shard.name}", flush=True)


def load_latents(folder: Path, text_folder: str) -> dict[str, np.ndarray]:
    """Every encoded clip of a folder, with its prompt's embedding: ``video``, ``image``, ``text``, float16."""
    files = [np.load(path) for path in sorted(folder.glob("latents_*.npz"))]
    data = {name: np.concatenate([file[name] for file in files]) for name in ("video", "image")}
    prompts = [prompt for file in files for prompt in json.loads(str(file["prompts"]))]
    length = TransformerConfig.tiny().max_text_seq_length
    data["text"] = image_to_video.embed_prompts(Path(text_folder), prompts, length).astype(np.float16)
    return data


def make_batch(
    rng: np.random.Generator, step: int, *, data: dict[str, np.ndarray], empty: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    """A batch of latents, image conditions and text embeddings, some of the last two blanked."""
    del step
    pick = rng.integers(len(data["video"]), size=size)
    image = data["image"][pick, rng.integers(NOISED_IMAGES, size=size)]
    image[rng.random(size) < CONDITION_DROPOUT] = 0
    text = data["text"][pick]
    text[rng.random(size) < TEXT_DROPOUT] = empty
    return {"video": data["video"][pick], "image": image, "text": text}


def _draw(moments: jax.Array, key: jax.Array) -> jax.Array:
    mean, deviation = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean + deviation * jax.random.normal(key, mean.shape)


def loss(parameters: nnx.State, batch: dict[str, jax.Array], key: jax.Array, *, graphdef: nnx.GraphDef):
    """The v-loss, and its values in the quarters of the schedule."""
    keys = jax.random.split(key, 4)
    z = _draw(batch["video"], keys[0])
    image = _draw(batch["image"], keys[1])
    # One time from each of B equal slices: the loss varies less from step to step than with independent ones.
    size = z.shape[0]
    offset = jax.random.randint(keys[2], (), 0, SCHEDULE.train_steps)
    t = (offset + jnp.arange(size) * (SCHEDULE.train_steps // size)) % SCHEDULE.train_steps
    eps = jax.random.normal(keys[3], z.shape)
    condition = jnp.zeros_like(z).at[:, 0].set(image)
    noised = jnp.concatenate([SCHEDULE.add_noise(z, eps, t), condition], axis=-1)
    v = nnx.merge(graphdef, parameters)(noised, batch["text"].astype(jnp.float32), t.astype(jnp.float32))
    return masked_v_loss(v, SCHEDULE.velocity(z, eps, t), None), {}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training.add_arguments(parser, steps=20_000, out=str(WEIGHTS))
    parser.add_argument("--scenes", required=True, help="a folder of rendered clips (training.dataset)")
    parser.add_argument("--heldout-scenes", required=True, help="the same for clips that are never trained on")
    parser.add_argument("--vae", default=str(WEIGHTS.with_name("vae")))
    parser.add_argument("--text", default=str(WEIGHTS.with_name("text_encoder")))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--encode-only", action="store_true", help="make the latents and stop")
    args = parser.parse_args()
    pools, workdir = load_pool(args.cache), Path(args.workdir)
    encode_all(args.vae, args.scenes, pools.train, workdir / "latents")
    encode_all(args.vae, args.heldout_scenes, pools.heldout, workdir / "latents_heldout")
    if args.encode_only:
        return
    data, unseen = (load_latents(workdir / name, args.text) for name in ("latents", "latents_heldout"))
    length = TransformerConfig.tiny().max_text_seq_length
    empty = image_to_video.embed_prompts(Path(args.text), [""], length)[0].astype(np.float16)
    print(f"{len(data['video'])} clips with their mirror images", flush=True)

    config = TransformerConfig.tiny()
    model = Transformer(config, rngs=nnx.Rngs(args.seed))
    graphdef, parameters = nnx.split(model)
    draw = partial(make_batch, empty=empty, size=args.batch)
    batches = [draw(np.random.default_rng([2, k]), k, data=unseen) for k in range(8)]
    measure = jax.jit(partial(loss, graphdef=graphdef))

    def evaluate(mean: nnx.State) -> dict[str, float]:
        values = [measure(mean, batch, jax.random.key(k))[0] for k, batch in enumerate(batches)]
        return {"heldout_loss": float(np.mean([float(value) for value in values]))}

    mean = training.train(
        partial(loss, graphdef=graphdef),
        parameters,
        partial(draw, data=data),
        training.TrainConfig(
            steps=args.steps, minutes=args.minutes, learning_rate=1e-3, ema=0.998, seed=args.seed, weight_decay=1e-2
        ),
        args.workdir,
        evaluate=evaluate,
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    main()
