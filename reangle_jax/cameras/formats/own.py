"""Our own cameras.json."""

from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.cameras.file import CameraFile, has_frames, listed
from reangle_jax.geometry.cameras import load_cameras

NAME = "cameras.json"


def accepts(content: Any) -> bool:
    """Whether JSON is of this format."""
    return has_frames(content, "camera_to_world", "K")


def read(path: Path, content: Any) -> CameraFile:
    """Reads it; see `geometry.cameras.load_cameras`."""
    del content
    cameras, width, height = load_cameras(path)
    poses, K = (np.asarray(x, np.float64) for x in (cameras.camera_to_world, cameras.K))
    sizes = np.tile(np.array([width, height], np.float64), (len(poses), 1))
    return listed(path, NAME, "x right, y down, z forward; camera to world", poses, K, sizes)
