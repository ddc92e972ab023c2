"""From frames to depth: the authors' preprocessing, and a whole video in batches through one compiled program."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, UInt8

from reangle_jax.models.depth_anything.model import DepthAnything
from reangle_jax.nn.colours import IMAGENET_MEAN, IMAGENET_STD
from reangle_jax.nn.resize import resize_bilinear


def input_size(height: int, width: int, *, short_side: int, multiple: int) -> tuple[int, int]:
    """Height and width at which the network sees a frame of that size, pixels, as the authors choose them.

    The shorter side becomes ``short_side``, the other one follows in proportion; each is rounded to a multiple (of the
    patch size), half to even, but never below ``short_side``.
    """
    scale = max(short_side / height, short_side / width)

    def fit(length: float) -> int:
        fitted = int(np.round(length / multiple) * multiple)
        return fitted if fitted >= short_side else int(np.ceil(length / multiple) * multiple)

    return fit(scale * height), fit(scale * width)


def preprocess(
    frames: UInt8[np.ndarray, "T H W 3"], *, short_side: int, multiple: int
) -> Float32[np.ndarray, "T h w 3"]:
    """Resizes RGB frames (cv2's bicubic, no antialiasing) and normalises them by ImageNet's mean and deviation."""
    height, width = input_size(*frames.shape[1:3], short_side=short_side, multiple=multiple)
    images = [
        cv2.resize(frame.astype(np.float32) / 255.0, (width, height), interpolation=cv2.INTER_CUBIC) for frame in frames
    ]
    return ((np.stack(images) - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("graphdef", "size", "mirrored"))
def _estimate(
    graphdef: nnx.GraphDef, state: nnx.State, images: Float[Array, "B h w 3"], size: tuple[int, int], mirrored: bool
) -> Float[Array, "B H W"]:
    model = nnx.merge(graphdef, state)
    depth = model(images)
    if mirrored:
        depth = 0.5 * (depth + model(images[:, :, ::-1])[:, :, ::-1])
    return resize_bilinear(depth[..., None], *size, align_corners=True)[..., 0]


def estimate_video_depth(
    model: DepthAnything,
    frames: UInt8[np.ndarray, "T H W 3"],
    *,
    batch_size: int = 4,
    short_side: int | None = None,
    mirrored: bool = False,
) -> Float32[np.ndarray, "T H W"]:
    """Estimates the depth of every RGB frame at its own size, each by itself, as `DepthAnything` gives it.

    The network sees the frames at this shorter side, pixels, by default the one it is made for; mirrored: each
    frame's mirror image too, and the mean of both counts. The last batch is padded, so that one program serves all.

    Raises:
        ValueError: there are no frames, they are not uint8 [T, H, W, 3], or ``batch_size`` is not positive.
    """
    if frames.ndim != 4 or frames.shape[0] == 0 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with T > 0, not {frames.dtype} {list(frames.shape)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    config = model.config
    short_side = config.short_side if short_side is None else short_side
    batch_size = min(batch_size, len(frames))
    graphdef, state = nnx.split(model)
    size = (frames.shape[1], frames.shape[2])
    depth = np.empty(frames.shape[:3], np.float32)
    for first in range(0, len(frames), batch_size):
        batch = frames[first : first + batch_size]
        count = len(batch)
        images = preprocess(batch, short_side=short_side, multiple=config.patch_size)
        images = np.concatenate([images, np.repeat(images[-1:], batch_size - count, axis=0)])
        depth[first : first + count] = np.asarray(_estimate(graphdef, state, jnp.asarray(images), size, mirrored))[
            :count
        ]
    return depth
