"""What the small DUSt3R learns from: pairs of views of one moment (`training.views`), in batches."""

from collections.abc import Sequence

import numpy as np

from reangle_jax.arrays import Picture
from training.views import Views

SAME = 0.2  # share of pairs that are an image and itself


def make_batch(
    rng: np.random.Generator, step: int, *, views: Sequence[Views], count: int, same: float = SAME
) -> dict[str, np.ndarray]:
    """Pairs: ``images`` uint8 [2, B, H, W, 3], ``depth`` [2, B, H, W], ``K`` [B, 3, 3], ``poses`` [2, B, 4, 4].

    Every other batch holds squares.
    """
    height, width = views[0].images.shape[1:3]
    left = (width - height) // 2 if step % 2 else 0
    window = slice(left, width - left)
    images, depth, K, poses = [], [], [], []
    for _ in range(count):
        scene = views[int(rng.integers(len(views)))]
        pair = rng.permutation(len(scene.images))[:2]
        if rng.random() < same:
            pair[1] = pair[0]
        x, z = scene.images[pair][:, :, window], scene.depth[pair][:, :, window]
        pose, k = scene.camera_to_world[pair], scene.K.copy()
        k[0, 2] -= left
        if rng.random() < 0.5:  # mirrored
            x, z = x[:, :, ::-1], z[:, :, ::-1]
            flip = np.diag([-1, 1, 1, 1]).astype(np.float32)
            pose = flip @ pose @ flip
        colours = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
        images.append(np.stack([_lit(rng, a[..., colours]) for a in x]))
        depth.append(z.astype(np.float16))
        K.append(k)
        poses.append(pose)
    batch = {"images": np.stack(images, 1), "depth": np.stack(depth, 1)}
    return batch | {"K": np.stack(K).astype(np.float32), "poses": np.stack(poses, 1).astype(np.float32)}


def halved(views: Views) -> Views:
    """The same views at half their size: pixels' means, and every other pixel's depth."""
    x = views.images
    means = x.reshape(len(x), x.shape[1] // 2, 2, -1, 2, 3).mean((2, 4))
    K = views.K * np.array([[0.5], [0.5], [1]], np.float32)
    return Views((means + 0.5).astype(np.uint8), views.depth[:, ::2, ::2], K, views.camera_to_world)


def _lit(rng: np.random.Generator, image: Picture) -> Picture:
    """The image a little brighter or darker and of a slightly other tint."""
    return np.clip(image * (rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3)), 0, 255).astype(np.uint8)
