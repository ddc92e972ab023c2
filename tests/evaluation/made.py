"""Small videos whose figures are known, and manifests of them."""

import json

import numpy as np

from reangle_jax.data import files

H, W, T = 32, 48, 5


def moving(seed=0, count=T, height=H, width=W):
    """Frames of random patches, each another: uint8."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(30, 220, (count, height // 8, width // 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)


def save(path, frames):
    files.atomic_savez(path, frames=frames)
    return path


def write(folder, clips):
    """A manifest file of the content of ``clips``."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({"clips": clips}))
    return path
