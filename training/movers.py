"""Clips in which small things move fast before a scene that stands still: what a causal autoencoder blurs first.

A photograph or a frame of a real clip is the scene; one to three cut-outs drift, swing, turn, lean and breathe over it.
"""

import cv2
import numpy as np

from training.pool import ImagePool

SPEED = 2.5  # standard deviation of the drift, pixels a frame in a picture of 64 rows
SIZE = (0.2, 0.75)  # a mover's longest side, of the picture's height
PANNING = 0.25  # share of clips whose scene drifts too


def moving_things(pool: ImagePool, rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    """A clip of cut-outs over a scene: uint8 [T, H, W, 3].

    Args:
        pool: photographs, clips and cut-outs.
        rng: decides everything.
        frames: T.
        height: H.
        width: W.
    """
    pan = rng.normal(0, 0.7, 2) if rng.random() < PANNING else np.zeros(2)
    margin = np.ceil(np.abs(pan) * frames).astype(int)
    scene = pool.random_crop(rng, height + int(margin[1]), width + int(margin[0]))
    start = np.where(pan < 0, margin, 0)
    movers = [_Mover(pool, rng, frames, height, width) for _ in range(rng.integers(1, 4))]
    clip = []
    for t in range(frames):
        x, y = np.round(start + pan * t).astype(int)
        image = scene[y : y + height, x : x + width].astype(np.float32)
        for mover in movers:
            image = mover.over(image, t)
        clip.append(image)
    return np.clip(np.stack(clip) + 0.5, 0, 255).astype(np.uint8)


class _Mover:
    """One cut-out and its path."""

    def __init__(self, pool: ImagePool, rng: np.random.Generator, frames: int, height: int, width: int):
        stamp = pool.stamps[rng.integers(len(pool.stamps))].astype(np.float32)
        stamp = stamp[:, ::-1] if rng.random() < 0.5 else stamp
        stamp[..., :3] *= rng.uniform(0.6, 1.25, 3 if rng.random() < 0.3 else 1)
        size = height * np.exp(rng.uniform(*np.log(SIZE)))
        # Shrunk by area first: the window itself is only interpolated.
        side = max(8, int(np.ceil(size)))
        self.stamp = np.clip(cv2.resize(stamp, (side, side), interpolation=cv2.INTER_AREA), 0, 255)
        unit = height / 64
        time = np.arange(frames) - rng.uniform(0, frames - 1)  # when it passes its place
        drift = rng.normal(0, SPEED * unit, 2) * np.array([1.0, 0.4])
        sway = rng.normal(0, 3 * unit, 2)
        phase, rate = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.3, 1.2, 4)
        waves = np.sin(phase[:, None] + rate[:, None] * time)
        place = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.2, 0.8) * height])
        self.centre = place + drift * time[:, None] + sway * waves[:2].T
        self.angle = rng.normal(0, 0.25) + rng.normal(0, 0.12) * waves[2] + rng.normal(0, 0.03) * time
        self.lean = rng.normal(0, 0.25) * waves[3]
        self.scale = np.exp(rng.normal(0, 0.01) * time + rng.normal(0, 0.04) * waves[3])

    def over(self, image: np.ndarray, t: int) -> np.ndarray:
        """The image with the cut-out of frame ``t`` on it."""
        cosine, sine, scale = np.cos(self.angle[t]), np.sin(self.angle[t]), self.scale[t]
        turn = scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1.0, self.lean[t]], [0.0, 1.0]])
        shift = self.centre[t] - turn @ np.full(2, (len(self.stamp) - 1) / 2)
        matrix = np.concatenate([turn, shift[:, None]], axis=1)
        premultiplied = np.concatenate([self.stamp[..., :3] * self.stamp[..., 3:] / 255, self.stamp[..., 3:]], -1)
        placed = cv2.warpAffine(premultiplied, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)
        return image * (1 - placed[..., 3:] / 255) + placed[..., :3]
