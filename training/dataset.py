"""Rendered clips on disk, for the small family's training: each a procedural scene seen along one camera path.

``python -m training.dataset --out DIR --clips N [--first K]`` renders clips K .. K + N - 1 into shards of 32,
``clips_00000.npz`` and so on, each written whole; those that exist are kept, so the same command goes on.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from reangle_jax.data.files import atomic_savez
from reangle_jax.errors import InputError
from reangle_jax.geometry.trajectories import parse_view, view_cameras
from training.pool import ImagePool, load_pool
from training.scenes import random_scene, render, source_cameras

FRAMES, HEIGHT, WIDTH = 17, 128, 192
SHARD = 32
PIVOT = (3.2, 5.0)  # the subject's depth in scene units
# Name and largest amount, as a user would ask for them.
MOTIONS = {"left": 16.0, "right": 16.0, "up": 12.0, "down": 8.0, "in": 0.3, "out": 0.25}
STILL = 0.15  # share of clips whose camera stands still
HELD_OUT_FROM = 1_000_000  # clips from this index on are never trained on


def random_view(rng: np.random.Generator) -> str:
    """A view's spelling: mostly one motion, sometimes two that compose; empty for a camera that stands still."""
    if rng.random() < STILL:
        return ""
    name = str(rng.choice(list(MOTIONS)))
    names = [name]
    if rng.random() < 0.15:
        groups = [("left", "right"), ("up", "down"), ("in", "out")]
        others = [m for group in groups if name not in group for m in group]
        names.append(str(rng.choice(others)))
    share = 1.0 if len(names) == 1 else 0.7
    return "+".join(f"{n}:{share * MOTIONS[n] * rng.uniform(0.4, 1.0):.3f}" for n in names)


def render_clip(index: int, pool: ImagePool | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Clip ``index`` of the dataset: the same for the same pool, wherever it is rendered.

    Returns:
        Frames uint8 [T, H, W, 3], depth float16 [T, H, W] in scene units, and the prompt with its motion's prefix.
    """
    rng = np.random.default_rng([7, index])
    scene, caption = random_scene(rng, pool)
    spelling = random_view(rng)
    path = source_cameras(rng, FRAMES, HEIGHT, WIDTH)
    prompt, poses = caption, jnp.asarray(path.camera_to_world)
    if spelling:
        view = parse_view(spelling)
        prompt = view.prompt_prefix + caption
        poses = view_cameras(view, path.K[0], float(rng.uniform(*PIVOT)), FRAMES).camera_to_world
    # Some clips are slow, some fast, and a few stand still: only the camera moves.
    start, speed = rng.uniform(0, 0.5), rng.choice([0.0, 0.25, 0.5], p=[0.15, 0.35, 0.5])
    times = jnp.asarray(np.linspace(start, start + speed, FRAMES), jnp.float32)
    rgb, depth = render(scene, jnp.asarray(path.K), poses, times, HEIGHT, WIDTH)
    frames = np.asarray(jnp.clip(jnp.round(rgb * 255), 0, 255).astype(jnp.uint8))
    return frames, np.asarray(depth, np.float16), prompt


def shards(folder: str | os.PathLike) -> list[Path]:
    """The shards of a folder in order.

    Raises:
        InputError: there are none.
    """
    found = sorted(Path(folder).glob("clips_*.npz"))
    if not found:
        raise InputError(f"{folder} has no rendered clips: run python -m training.dataset --out {folder}")
    return found


def load_clips(shard: Path) -> tuple[np.ndarray, list[str]]:
    """Frames uint8 [N, T, H, W, 3] and prompts of one shard."""
    with np.load(shard) as file:
        return file["frames"], json.loads(str(file["prompts"]))


def load_prompts(folder: str | os.PathLike) -> list[str]:
    """The prompts of every clip in a folder."""
    prompts = []
    for shard in shards(folder):
        with np.load(shard) as file:
            prompts += json.loads(str(file["prompts"]))
    return prompts


def render_clips(first: int, count: int, pool: ImagePool | None) -> dict[str, np.ndarray]:
    """Clips ``first`` and following, as a shard holds them."""
    frames, depth, prompts = zip(*(render_clip(k, pool) for k in range(first, first + count)), strict=True)
    return {"frames": np.stack(frames), "depth": np.stack(depth), "prompts": np.array(json.dumps(prompts))}


def write_shards(
    parser: argparse.ArgumentParser,
    what: str,
    stem: str,
    size: int,
    make: Callable[[int, int, ImagePool | None], dict[str, np.ndarray]],
) -> None:
    """A command that renders things by number into shards; those that exist are kept as they are.

    Args:
        parser: gets the flags ``--out``, ``--<what>``, ``--first`` and ``--cache``, and reads the command line.
        what: what is rendered, in the plural.
        stem: of the shards' names; the first thing's number follows.
        size: things a shard.
        make: (first, count, pool) -> the arrays of a shard.
    """
    parser.add_argument("--out", required=True)
    parser.add_argument(f"--{what}", dest="count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help=f"from {HELD_OUT_FROM} on, {what} are held out")
    parser.add_argument("--cache", default=".cache/pool")
    args = parser.parse_args()
    pools = load_pool(args.cache)
    pool = pools.heldout if args.first >= HELD_OUT_FROM else pools.train
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for first in range(args.first, args.first + args.count, size):
        path = out / f"{stem}_{first:07d}.npz"
        if path.exists():
            continue
        count = min(size, args.first + args.count - first)
        atomic_savez(path, **make(first, count, pool))
        print(f"{path.name}: {count} {what}", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    write_shards(parser, "clips", "clips", SHARD, render_clips)


if __name__ == "__main__":
    main()
