"""What the small depth network learns from: frames with inverse depth, rendered or labelled, in batches."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, Float32, UInt8

from reangle_jax.errors import InputError
from training import records
from training.dataset import load_clips
from training.pool import ImagePool
from training.scenes import random_scene, render, source_cameras

STORED = (144, 224)  # size of the frames that are kept, pixels
INPUT = (126, 196)  # what a network sees of a 128 x 192 frame, if nothing else is said
VIEWS = 3  # frames a scene
PART = 64  # scenes
EVERY = 3  # frames of a rendered clip
FOCALS = (0.6, 1.7)  # shortest and longest focal length of varied frames, in widths of the picture


class Frames(NamedTuple):
    """Frames and what is known of their depth; inverse depth in any unit."""

    images: UInt8[np.ndarray, "N H W 3"]
    inverse_depth: Float16[np.ndarray, "N H W"]


def _random_poses(rng: np.random.Generator, count: int) -> Float32[np.ndarray, "N 4 4"]:
    """Cameras about the scene's own: turned by up to some 15 degrees, tilted, moved by some tenths of a unit."""
    poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    for pose in poses:
        angles = rng.normal(size=3) * (0.08, 0.15, 0.03)
        pose[:3, :3] = cv2.Rodrigues(angles)[0]
        pose[:3, 3] = rng.normal(size=3) * (0.35, 0.15, 0.35)
    return poses


def render_scene(
    seed: int, number: int, pool: ImagePool, *, varied: bool = False, size: tuple[int, int] = STORED
) -> Frames:
    """`VIEWS` frames of a random scene; varied: half of them close, and any lens."""
    rng = np.random.default_rng([seed, number])
    scene, _ = random_scene(rng, pool, close=varied and rng.random() < 0.5)
    intrinsics, times = source_cameras(rng, VIEWS, *size).K, jnp.linspace(0.0, 1.0, VIEWS)
    if varied:
        intrinsics[:, [0, 1], [0, 1]] = size[1] * np.exp(rng.uniform(*np.log(FOCALS)))
    rgb, depth = render(scene, jnp.asarray(intrinsics), jnp.asarray(_random_poses(rng, VIEWS)), times, *size)
    images = (np.clip(np.asarray(rgb), 0, 1) * 255 + 0.5).astype(np.uint8)
    return Frames(images, (1 / np.asarray(depth)).astype(np.float16))


def rendered_frames(folder: Path, name: str, seed: int, count: int, pool: ImagePool) -> Frames:
    """Frames from ``folder``; what is missing there is rendered first, part by part (see `training.records`)."""
    home, scenes = folder / f"{name}_{seed}_{count}", -(-count // VIEWS)
    for first in range(0, scenes, PART):
        numbers = range(first, min(first + PART, scenes))
        records.write(home, Frames, first, (render_scene(seed, k, pool) for k in numbers))
    found = zip(*records.read(home, Frames, "training.train_depth"), strict=True)
    return Frames(*(np.concatenate(field)[:count] for field in found))


def load_frames(path: str | os.PathLike) -> Frames:
    """Reads frames as the teacher's script writes them: an .npz of ``images`` and ``inverse_depth``.

    Raises:
        InputError: the file is missing or is no such archive.
    """
    try:
        with np.load(path) as file:
            return Frames(file["images"], file["inverse_depth"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"labels: {path} cannot be used ({error}); give a folder of labelled frames") from None


def clip_frames(folder: str | os.PathLike, count: int) -> Frames:
    """Some ``count`` frames of rendered clips (`training.dataset`) with their exact depth: every third of a clip."""
    stored = load_clips(folder, "frames", "depth")[: -(-count // 6)]
    clips = [(clip.frames[::EVERY], clip.depth[::EVERY]) for clip in stored]
    images, depth = (np.concatenate(field) for field in zip(*clips, strict=True))
    return Frames(images, (1 / depth.astype(np.float32)).astype(np.float16))


def make_batch(
    rng: np.random.Generator,
    step: int,
    *,
    scenes: Frames,
    real: Frames | None,
    count: int,
    share: float = 1 / 3,
    sizes: Sequence[tuple[int, int]] = (INPUT,),
) -> dict[str, np.ndarray]:
    """Frames as they are (`device_batches.altered` does the rest): ``images``, ``inverse_depth`` and ``exact``.

    A ``share`` are ``real`` ones, if there are any, of the same size; ``exact`` says whose depth is the truth. The
    shape of ``seen``, which holds nothing, is the size that the network is to see them at, one of ``sizes``.
    """
    del step
    labelled = 0 if real is None else int(count * share)
    chosen = [(scenes, count - labelled)] + ([(real, labelled)] if real is not None else [])
    picked = [(frames, rng.integers(len(frames.images), size=n)) for frames, n in chosen]
    return {
        "images": np.concatenate([frames.images[k] for frames, k in picked]),
        "inverse_depth": np.concatenate([frames.inverse_depth[k] for frames, k in picked]),
        "exact": np.arange(count) < count - labelled,
        "seen": np.empty((*sizes[int(rng.integers(len(sizes)))], 0), np.uint8),
    }


def load_motorcycle(folder: str | os.PathLike) -> Frames:
    """Middlebury's Motorcycle as scikit-image packs it: the left image and its disparity (motorcycle_disp.npz)."""
    image = cv2.imread(str(Path(folder) / "motorcycle_left.png"), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"motorcycle: {folder} has no motorcycle_left.png; give scikit-image's data folder")
    with np.load(Path(folder) / "motorcycle_disp.npz") as file:
        disparity = file["arr_0"]
    # Depth is f B / (d + doffs): inverse depth is proportional to d + 31.086.
    inverse = np.where(np.isfinite(disparity), disparity + 31.086, np.nan)
    return Frames(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)[None], inverse[None].astype(np.float16))
