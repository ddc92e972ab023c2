"""Rendered clips on disk, for the small family's training: each a procedural scene seen along one camera path.

``python -m training.dataset --out DIR --clips N [--first K]`` renders clips K .. K + N - 1 in parts of 32 (see
`training.records`); those that are there already are kept, so the same command goes on.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, Float32, UInt8

from reangle_jax import commands
from reangle_jax.geometry.trajectories import parse_view, view_cameras
from training import records
from training.pool import ImagePool, load_pool
from training.records import Stored
from training.scenes import Scene, random_scene, render, source_cameras

FRAMES, HEIGHT, WIDTH = 17, 128, 192
PART = 32
PIVOT = (3.2, 5.0)  # the subject's depth in scene units
# Name and largest amount, as a user would ask for them.
MOTIONS = {"left": 16.0, "right": 16.0, "up": 12.0, "down": 8.0, "in": 0.3, "out": 0.25}
STILL = 0.15  # share of clips whose camera stands still
HELD_OUT_FROM = 1_000_000  # clips from this index on are never trained on


class Clip(NamedTuple):
    """Frames, their depth in scene units, and the prompt with its motion's prefix."""

    frames: UInt8[np.ndarray, "T H W 3"]
    depth: Float16[np.ndarray, "T H W"]
    prompt: str


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


class Shot(NamedTuple):
    """What a clip is rendered from: all but the prompt are arguments of `render`."""

    scene: Scene
    K: Float32[np.ndarray, "T 3 3"]
    camera_to_world: Float32[np.ndarray, "T 4 4"]
    times: Float32[np.ndarray, " T"]
    prompt: str


def random_shot(index: int, pool: ImagePool | None) -> Shot:
    """What there is to see in clip ``index`` of the dataset, when, and from where."""
    rng = np.random.default_rng([7, index])
    scene, caption = random_scene(rng, pool)
    spelling = random_view(rng)
    path = source_cameras(rng, FRAMES, HEIGHT, WIDTH)
    prompt, poses = caption, path.camera_to_world
    if spelling:
        view = parse_view(spelling)
        prompt = view.prompt_prefix + caption
        poses = np.asarray(view_cameras(view, path.K[0], float(rng.uniform(*PIVOT)), FRAMES).camera_to_world)
    # Some clips are slow, some fast, and a few stand still: only the camera moves.
    start, speed = rng.uniform(0, 0.5), rng.choice([0.0, 0.25, 0.5], p=[0.15, 0.35, 0.5])
    return Shot(scene, path.K, poses, np.linspace(start, start + speed, FRAMES).astype(np.float32), prompt)


def render_clip(index: int, pool: ImagePool | None) -> Clip:
    """Clip ``index`` of the dataset: the same for the same pool, wherever it is rendered."""
    *shot, prompt = random_shot(index, pool)
    rgb, depth = render(shot[0], *map(jnp.asarray, shot[1:]), HEIGHT, WIDTH)
    frames = np.asarray(jnp.clip(jnp.round(rgb * 255), 0, 255).astype(jnp.uint8))
    return Clip(frames, np.asarray(depth, np.float16), prompt)


def load_clips(folder: str | os.PathLike, *fields: str) -> Stored[Clip]:
    """The clips of a folder, read when they are asked for; with ``fields`` those alone, which saves the others' time.

    Raises:
        InputError: there are none.
    """
    return records.read(folder, Clip, f"python -m training.dataset --out {folder} --clips COUNT", fields)


def render_command(parser: argparse.ArgumentParser, what: str, kind: type, size: int, make: Callable[..., Any]) -> None:
    """A command that renders things by number; parts that are there are kept as they are.

    Args:
        parser: gets the flags ``--out``, ``--<what>``, ``--first`` and ``--cache``, and reads the command line.
        what: what is rendered, in the plural.
        kind: of an example.
        size: examples a part.
        make: (number, pool) -> an example; the flags that the parser had before are keywords.
    """
    parser.add_argument("--out", required=True)
    parser.add_argument(f"--{what}", dest="count", type=commands.positive, required=True)
    parser.add_argument("--first", type=commands.count, default=0, help=f"from {HELD_OUT_FROM} on, {what} are held out")
    parser.add_argument("--cache", default=".cache/pool")
    args = parser.parse_args()
    more = {name: value for name, value in vars(args).items() if name not in ("out", "count", "first", "cache")}
    pools = load_pool(args.cache)
    pool = pools.heldout if args.first >= HELD_OUT_FROM else pools.train
    end = args.first + args.count
    for first in range(args.first, end, size):
        numbers = range(first, min(first + size, end))
        if records.write(args.out, kind, first, (make(k, pool, **more) for k in numbers)):
            print(f"{what} {first} to {numbers[-1]}", flush=True)


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    render_command(parser, "clips", Clip, PART, render_clip)


if __name__ == "__main__":
    commands.run(main)
