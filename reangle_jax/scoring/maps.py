"""Pictures of what MEt3R compared: the score at each pixel, the overlap, and both images' features as colours."""

import cv2
import numpy as np
from jaxtyping import Bool, Float

from reangle_jax.arrays import Picture
from reangle_jax.scoring.met3r import OneWay

PARTS = ("score", "overlap", "first", "second")


def pictures(way: OneWay) -> dict[str, Picture]:
    """RGB pictures of one way of a pair, unbatched.

    Returns:
        ``score``: 1 - cosine from dark blue (0) to yellow (1 and above), black outside the overlap; ``overlap``: white
        where both images are seen; ``first`` and ``second``: their rendered features, three principal components of
        both together, so that equal colours mean equal features; black where nothing is seen.
    """
    overlap = np.asarray(way.overlap)
    difference = np.clip(1.0 - np.asarray(way.similarity, np.float64), 0.0, 1.0)
    colours = cv2.applyColorMap(np.round(255 * difference).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    first, second = colour_by_components(np.asarray(way.rendered1), np.asarray(way.rendered2))
    white = np.repeat(np.where(overlap, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
    return {"score": np.where(overlap[..., None], colours, 0), "overlap": white, "first": first, "second": second}


def colour_by_components(*features: Float[np.ndarray, "_ _ C"]) -> list[Picture]:
    """Features as RGB: the first three principal components of all of them together, each stretched to 0..255.

    The stretch is from the 1st to the 99th percentile. Pixels of zero features are black and do not count.
    """
    seen: list[Bool[np.ndarray, "H W"]] = [np.any(f != 0, axis=-1) for f in features]
    data = np.concatenate([f[s] for f, s in zip(features, seen, strict=True)]).astype(np.float64)
    pictures = [np.zeros((*f.shape[:2], 3), np.uint8) for f in features]
    if not len(data):
        return pictures
    mean = data.mean(axis=0)
    _, axes = np.linalg.eigh((data - mean).T @ (data - mean))  # ascending
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.where(np.abs(axes).max(axis=0) == axes.max(axis=0), 1.0, -1.0)  # eigh leaves the sign open
    low, high = np.percentile((data - mean) @ axes, (1, 99), axis=0)
    for picture, feature, mask in zip(pictures, features, seen, strict=True):
        values = ((feature[mask] - mean) @ axes - low) / np.maximum(high - low, 1e-12)
        filled = np.zeros((len(values), 3), np.uint8)
        filled[:, : axes.shape[1]] = np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
        picture[mask] = filled
    return pictures
