"""What moves, and how well a video shows it.

Most pixels of most clips stand still, so that a likeness over all of them says little of who moves, and how. Here the
clip's median over time, warped as the clip is, stands for the same scene frozen: pixels where the warp leaves it move.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from reangle_jax.geometry import cameras, splat
from reangle_jax.scoring import image

THRESHOLD = 40  # grey levels, of the channel that changes most


class Motion(NamedTuple):
    """How well a video shows what moves, dB against the warp over the moving pixels; NaN if nothing moves.

    ``gain`` is how much that is above what the frozen scene has there.
    """

    psnr: float
    gain: float


def median_frame(frames: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The clip's median over time: of a camera that stands still, the scene without what moves through it."""
    return np.round(np.median(frames, axis=0)).astype(np.uint8)


def frozen_warp(
    frames: UInt8[np.ndarray, "T H W 3"],
    z: Float[np.ndarray, "T H W"],
    source: cameras.Cameras,
    target: cameras.Cameras,
) -> tuple[UInt8[np.ndarray, "T H W 3"], Bool[np.ndarray, "T H W"]]:
    """The clip's median over time along a camera path, as the clip itself is warped, and where it is visible.

    Where the source moves, the median is of what its first camera would have seen.

    Args:
        frames: the clip.
        z: its depth.
        source: the cameras that filmed it.
        target: the path's.
    """
    if bool((source.camera_to_world != source.camera_to_world[:1]).any()):
        frames, z, source = _held(frames, z, source)
    still = np.broadcast_to(median_frame(frames), frames.shape)
    frozen, seen = splat.warp_video(jnp.asarray(still), jnp.asarray(z), source, target)
    return np.asarray(frozen), np.asarray(seen)


def _held(frames: np.ndarray, z: np.ndarray, source: cameras.Cameras) -> tuple[np.ndarray, np.ndarray, cameras.Cameras]:
    """The clip as its first camera would have seen it, that camera's depth, and that camera, for all frames."""
    first = cameras.identity_cameras(source.K[0], len(frames))
    warped, visible = map(np.asarray, splat.warp_video(jnp.asarray(frames), jnp.asarray(z), source, first))
    return np.where(visible[..., None], warped, frames[:1]), np.broadcast_to(z[:1], z.shape), first


def moving(
    warp: UInt8[np.ndarray, "T H W 3"],
    frozen: UInt8[np.ndarray, "T H W 3"],
    visible: Bool[np.ndarray, "T H W"],
) -> Bool[np.ndarray, "T H W"]:
    """Visible pixels where a channel of the warp is more than `THRESHOLD` away from the frozen scene."""
    away = (np.maximum(warp, frozen) - np.minimum(warp, frozen)).max(axis=-1)  # uint8 throughout: clips may be large
    return visible & (away > THRESHOLD)


def likeness(
    frames: UInt8[np.ndarray, "T H W 3"],
    warp: UInt8[np.ndarray, "T H W 3"],
    frozen: UInt8[np.ndarray, "T H W 3"],
    mask: Bool[np.ndarray, "T H W"],
) -> Motion:
    """How well a video shows what moves in a warp of the clip along the same camera path; ``frozen`` is its median's.

    The mask is `moving`'s; the frozen scene differs from the warp at each of its pixels.
    """
    shown, still, truth = (video[mask][None] for video in (frames, frozen, warp))  # as one row of pixels
    psnr = image.psnr(shown, truth)
    return Motion(psnr, psnr - image.psnr(still, truth))
