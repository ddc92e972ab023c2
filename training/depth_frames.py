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
INPUT = (126, 196)  # what the network sees of a 128 x 192 frame: 9 x 14 patches
SIZES = ((84, 126), (84, 126), INPUT)  # the sizes that it is trained at, in turn: small ones cost less than half
VIEWS = 3  # frames a scene
PART = 64  # scenes
EVERY = 3  # frames of a rendered clip
STANDING = 0.5  # share of the pictures before which cut-outs are stood


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


def render_scene(seed: int, number: int, pool: ImagePool) -> Frames:
    """`VIEWS` frames of a random scene, at the size `STORED`."""
    rng = np.random.default_rng([seed, number])
    scene, _ = random_scene(rng, pool)
    intrinsics, times = source_cameras(rng, VIEWS, *STORED).K, jnp.linspace(0.0, 1.0, VIEWS)
    rgb, depth = render(scene, jnp.asarray(intrinsics), jnp.asarray(_random_poses(rng, VIEWS)), times, *STORED)
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


def stand(
    rng: np.random.Generator, image: Float32[np.ndarray, "H W 3"], inverse: Float32[np.ndarray, "H W"], pool: ImagePool
) -> None:
    """Stands a cut-out upright before what a frame shows, in place: a person's shape on the ground, as a rule.

    Its inverse depth is all over what the ground has where its foot is, and what is nearer hides it. That holds in any
    unit of inverse depth, and after any shift.
    """
    height, width = inverse.shape
    stamp = pool.stamps[rng.integers(len(pool.stamps))]
    rows, columns = (np.flatnonzero(stamp[..., 3].max(axis) > 127) for axis in (1, 0))
    stamp = stamp[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    stamp = stamp[:, ::-1] if rng.random() < 0.5 else stamp
    tall = max(6, round(height * np.exp(rng.uniform(np.log(0.15), np.log(0.9)))))
    wide = max(4, round(tall * stamp.shape[1] / stamp.shape[0] * rng.uniform(0.4, 1.1)))
    stamp = cv2.resize(stamp, (wide, tall), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.4:  # any colours will do: the outline and the foot tell
        stamp[..., :3] = pool.random_crop(rng, tall, wide)
    stamp[..., :3] *= rng.uniform(0.4, 1.2)
    foot, middle = round(height * rng.uniform(0.45, 1.1)), int(rng.integers(width))
    near = inverse[min(foot, height) - 1, middle] * (1.0 + max(0, foot - height) / height)
    top, left = foot - tall, middle - wide // 2
    window = (slice(max(0, top), min(foot, height)), slice(max(0, left), min(left + wide, width)))
    part = stamp[window[0].start - top : window[0].stop - top, window[1].start - left : window[1].stop - left]
    seen = np.where(near >= 0.97 * inverse[window], part[..., 3] / 255.0, 0.0)
    image[window] += seen[..., None] * (part[..., :3] - image[window])
    inverse[window][seen > 0.5] = near


def _augment(
    rng: np.random.Generator, image: np.ndarray, inverse: np.ndarray, size: tuple[int, int], pool: ImagePool | None
) -> tuple[np.ndarray, np.ndarray]:
    """A random crop at the size asked for, mirrored half of the time, with colours, blur and noise changed.

    With a pool, cut-outs stand in some.
    """
    height, width = image.shape[:2]
    scale = rng.uniform(0.6, 1.0)
    rows, columns = round(height * scale), round(width * scale * rng.uniform(0.9, 1.0))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    window = (slice(top, top + rows), slice(left, left + columns))
    how = cv2.INTER_AREA if rows > size[0] else cv2.INTER_LINEAR
    image = cv2.resize(image[window], size[::-1], interpolation=how).astype(np.float32)
    inverse = cv2.resize(inverse[window].astype(np.float32), size[::-1], interpolation=how)
    if rng.random() < 0.5:
        image, inverse = image[:, ::-1], inverse[:, ::-1]
    if pool is not None and len(pool.stamps) and rng.random() < STANDING:
        image, inverse = np.ascontiguousarray(image), np.ascontiguousarray(inverse)
        for _ in range(rng.integers(1, 4)):
            stand(rng, image, inverse, pool)
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
    grey = image.mean(-1, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.3, 1.3)  # saturation
    image = (image - grey.mean()) * rng.uniform(0.7, 1.3) + grey.mean()  # contrast
    image = image * rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)  # brightness, colour of the light
    image = image + rng.normal(0, rng.uniform(0, 6), image.shape)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), inverse


def make_batch(
    rng: np.random.Generator,
    step: int,
    *,
    scenes: Frames,
    real: Frames | None,
    count: int,
    pool: ImagePool | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> dict[str, np.ndarray]:
    """A batch: uint8 ``images``, float32 ``inverse_depth``, and ``exact``, whether that is the truth."""
    chosen = [(scenes, True)] * (count if real is None else count - count // 3)
    chosen += [] if real is None else [(real, False)] * (count // 3)
    pairs = []
    for frames, _ in chosen:
        k = rng.integers(len(frames.images))
        pairs.append(_augment(rng, frames.images[k], frames.inverse_depth[k], sizes[step % len(sizes)], pool))
    return {
        "images": np.stack([image for image, _ in pairs]),
        "inverse_depth": np.stack([inverse for _, inverse in pairs]),
        "exact": np.array([exact for _, exact in chosen]),
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
