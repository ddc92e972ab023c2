"""Rendered views of one moment, for the training of the score's networks: each scene seen by four cameras at once.

``python -m training.views --out DIR --scenes N [--first K]`` renders scenes K .. K + N - 1 into shards of 64,
``views_0000000.npz`` and so on, each written whole; those that exist are kept, so the same command goes on.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, Float32, UInt8

from reangle_jax.errors import InputError
from training.dataset import HEIGHT, PIVOT, WIDTH, write_shards
from training.pool import ImagePool
from training.scenes import random_scene, render, source_cameras

VIEWS = 4
SHARD = 64


class Views(NamedTuple):
    """Scenes, each seen by V cameras at one moment; lengths in scene units.

    Attributes:
        images: RGB.
        depth: along each camera's z axis, exact.
        K: one camera matrix a scene, pixels.
        camera_to_world: OpenCV axes; the first camera is the world.
    """

    images: UInt8[np.ndarray, "N V H W 3"]
    depth: Float16[np.ndarray, "N V H W"]
    K: Float32[np.ndarray, "N 3 3"]
    camera_to_world: Float32[np.ndarray, "N V 4 4"]


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


def render_views(first: int, count: int, pool: ImagePool | None) -> Views:
    """Scenes ``first`` and following: the same for the same pool, wherever they are rendered."""
    parts = []
    for index in range(first, first + count):
        rng = np.random.default_rng([11, index])
        scene, _ = random_scene(rng, pool)
        K = source_cameras(rng, VIEWS, HEIGHT, WIDTH).K
        poses = random_cameras(rng, float(rng.uniform(*PIVOT)))
        times = jnp.full(VIEWS, rng.uniform(), jnp.float32)
        rgb, depth = render(scene, jnp.asarray(K), jnp.asarray(poses), times, HEIGHT, WIDTH)
        images = np.asarray(jnp.clip(jnp.round(rgb * 255), 0, 255).astype(jnp.uint8))
        parts.append(Views(images, np.asarray(depth, np.float16), K[0], poses))
    return Views(*(np.stack(field) for field in zip(*parts, strict=True)))


def load_views(folder: str | os.PathLike) -> Views:
    """Reads all shards of a folder.

    Raises:
        InputError: there are none.
    """
    parts = []
    for path in sorted(Path(folder).glob("views_*.npz")):
        with np.load(path) as file:
            parts.append(Views(*(file[name] for name in Views._fields)))
    if not parts:
        raise InputError(f"{folder} has no rendered views: run python -m training.views --out {folder}")
    return Views(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    write_shards(parser, "scenes", "views", SHARD, lambda *what: render_views(*what)._asdict())


if __name__ == "__main__":
    main()
