"""What moves, and how well a video shows it.

Most pixels of most clips stand still, so that a likeness over all of them says little of who moves, and how. Here the
clip's median over time, warped as the clip is, stands for the same scene frozen: pixels where the warp leaves it move.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

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
