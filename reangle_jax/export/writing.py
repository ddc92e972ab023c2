"""What several layouts share: their options, pictures, JSON, axes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from reangle_jax.errors import InputError
from reangle_jax.export.clip import Clip, Track


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user wants of a layout."""

    masks: bool  # what the input saw, where the layout has masks
    frames: tuple[int, ...]  # the time steps, where each has a folder of its own, or a cloud
    test: Track | None  # the track held out for evaluation; None: none is, and the first stands in
    fused: bool  # one cloud of all frames, in place of one a time step
    shards: int  # files that records are spread over
    square: bool  # the middle square of the pictures alone


_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 97, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def picture(path: Path, pixels: np.ndarray) -> None:
    """Writes RGB, RGBA, one channel or 16 bits, as the path's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, order[pixels.shape[2]])
    good, encoded = cv2.imencode(path.suffix, pixels, _JPEG if path.suffix == ".jpg" else [])
    assert good
    path.write_bytes(encoded.tobytes())


def mask(path: Path, seen: np.ndarray) -> None:
    """Writes a mask: white where the input saw the scene, black to be ignored."""
    picture(path, np.where(seen, 255, 0).astype(np.uint8))


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def opengl(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Camera to world with OpenGL's axes: x right, y up, z backward."""
    return pose @ np.diag([1.0, -1.0, -1.0, 1.0])


def quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Real part first."""
    turn = cv2.Rodrigues(rotation)[0].reshape(3)
    angle = float(np.linalg.norm(turn))
    axis = turn / angle if angle else turn
    return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis)])


def still(clip: Clip, layout: str) -> None:
    """Refuses cameras that move, for layouts with one pose a camera.

    Raises:
        InputError: one does.
    """
    moving = [track.name for track in clip.tracks if track.moves]
    if moving:
        raise InputError(
            f"--format {layout}: the cameras of {', '.join(moving)} move, and it has one pose a camera: export a run "
            "of mode=static, choose others by --views, or use dnerf or dycheck"
        )


def one_lens(clip: Clip, layout: str) -> tuple[float, float, float]:
    """Focal length and principal point, for layouts with one lens of square pixels.

    Raises:
        InputError: there are several.
    """
    K = np.concatenate([track.K for track in clip.tracks])
    if np.abs(K - K[0]).max() > 1e-3 or abs(K[0, 0, 0] - K[0, 1, 1]) > 1e-3:
        raise InputError(f"--format {layout}: it has one lens for all, with square pixels: choose views that share one")
    return float(K[0, 0, 0]), float(K[0, 0, 2]), float(K[0, 1, 2])


def poses_bounds(clip: Clip, tracks: tuple[Track, ...]) -> Float[np.ndarray, "n 17"]:
    """LLFF's rows: 3x5 of [down, right, backwards | place | height, width, focal], nearest and farthest depth."""
    _, height, width = clip.size
    rows = []
    for track in tracks:
        pose, focal = track.poses[0], track.K[0, 0, 0]
        block = np.stack([pose[:3, 1], pose[:3, 0], -pose[:3, 2], pose[:3, 3], [height, width, focal]], axis=1)
        rows.append([*block.reshape(-1), *clip.bounds])
    return np.array(rows, np.float64)
