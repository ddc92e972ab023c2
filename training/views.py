"""Rendered views of one moment, for the training of the score's networks: each scene seen by four cameras at once.

``python -m training.views --out DIR --scenes N [--first K]`` renders scenes K .. K + N - 1 in parts of 64
(see `training.records`); those that are there already are kept, so the same command goes on.
"""

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, Float32, UInt8

from reangle_jax import commands
from training import records, training
from training.dataset import HEIGHT, PIVOT, WIDTH, render_command
from training.depth_frames import FOCALS
from training.pool import ImagePool
from training.records import Stored
from training.scenes import random_scene, render, source_cameras

VIEWS = 4
PART = 64


class Views(NamedTuple):
    """One scene seen by V cameras at one moment; lengths in scene units.

    Attributes:
        images: RGB.
        depth: along each camera's z axis, exact.
        K: all cameras' matrix, pixels.
        camera_to_world: OpenCV axes; the first camera is the world.
    """

    images: UInt8[np.ndarray, "V H W 3"]
    depth: Float16[np.ndarray, "V H W"]
    K: Float32[np.ndarray, "3 3"]
    camera_to_world: Float32[np.ndarray, "V 4 4"]


def random_cameras(rng: np.random.Generator, pivot: float) -> Float32[np.ndarray, "V 4 4"]:
    """Camera-to-world matrices: the identity, and cameras about it.

    They orbit a point ``pivot`` before the first one, by some 10 degrees sideways (25 at most) and less up or down, go
    nearer or farther by a few hundredths, and look past that point by a few degrees.
    """
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    for pose in poses[1:]:
        yaw = np.clip(rng.normal() * 10, -25, 25)
        pitch = np.clip(rng.normal() * 4 - 2, -12, 6)  # below 0: upwards; the ground is not far below
        rotation = cv2.Rodrigues(np.radians([0.0, yaw, 0.0]))[0] @ cv2.Rodrigues(np.radians([pitch, 0.0, 0.0]))[0]
        distance = pivot * np.exp(rng.normal() * 0.08)
        pose[:3, 3] = np.array([0.0, 0.0, pivot]) - distance * rotation[:, 2]
        pose[:3, :3] = rotation @ cv2.Rodrigues(np.radians(rng.normal(size=3) * (1.5, 2.5, 1.0)))[0]
    return poses.astype(np.float32)


def render_views(index: int, pool: ImagePool | None, *, varied: bool = False) -> Views:
    """Scene ``index``: the same for the same pool, wherever it is rendered.

    Args:
        index: its number.
        pool: for its textures.
        varied: half the scenes are close ones (`random_scene`), and lenses are of all lengths.
    """
    rng = np.random.default_rng([12 if varied else 11, index])
    close = varied and rng.random() < 0.5
    scene, _ = random_scene(rng, pool, close=close)
    K = source_cameras(rng, VIEWS, HEIGHT, WIDTH).K
    if varied:
        K[:, [0, 1], [0, 1]] = WIDTH * np.exp(rng.uniform(*np.log(FOCALS)))
    poses = random_cameras(rng, float(rng.uniform(2.3, 3.5) if close else rng.uniform(*PIVOT)))
    times = jnp.full(VIEWS, rng.uniform(), jnp.float32)
    rgb, depth = render(scene, jnp.asarray(K), jnp.asarray(poses), times, HEIGHT, WIDTH)
    images = np.asarray(jnp.clip(jnp.round(rgb * 255), 0, 255).astype(jnp.uint8))
    return Views(images, np.asarray(depth, np.float16), K[0], poses)


def load_views(folder: str | os.PathLike) -> Stored[Views]:
    """The scenes of a folder, read when they are asked for.

    Raises:
        InputError: there are none.
    """
    return records.read(folder, Views, f"python -m training.views --out {folder} --scenes COUNT")


def first_images(views: Sequence[Views], count: int = 512) -> UInt8[np.ndarray, "N H W 3"]:
    """One picture a scene, of so many scenes at most."""
    return np.stack([views[k].images[0] for k in range(min(count, len(views)))])


def command_line(doc: str | None, *, steps: int, out: str, batch: int) -> argparse.ArgumentParser:
    """The flags that the trainings on views share."""
    parser = training.command_line(doc, steps=steps, out=out, rate=2e-3)
    parser.add_argument("--views", required=True, help="rendered views to train on (training.views)")
    parser.add_argument("--held-out", required=True, help="rendered views for the figures")
    parser.add_argument("--batch", type=commands.positive, default=batch, help="pairs or pictures a step")
    return parser


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument(
        "--varied", action="store_true", help="half of the scenes close ones, and lenses of all lengths"
    )
    render_command(parser, "scenes", Views, PART, render_views)


if __name__ == "__main__":
    commands.run(main)
