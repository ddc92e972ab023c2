"""What cameras do: how far they go and turn, where they jump, and what of the first frame they see."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from reangle_jax.errors import InputError
from reangle_jax.geometry import trajectories
from reangle_jax.geometry.cameras import Cameras

# A step that is a jump is this many times the mean one, and no small one: a share of the pivot's distance, degrees.
_TIMES, _FAR, _WIDE = 5.0, 0.1, 10.0
_POINTS = 20_000


class Path(NamedTuple):
    """What cameras do."""

    extent: Float[np.ndarray, "3"]  # from end to end along x, y and z, scene units
    farthest: float  # the largest distance from the first camera
    largest_turn: float  # the largest angle between the first camera and another, degrees
    steps: Float[np.ndarray, " n"]  # distance between each camera and the next
    turns: Float[np.ndarray, " n"]  # angle between each and the next, degrees
    motion: str  # which of the six motions the path is most like; empty: of none


def describe(cameras: Cameras, pivot: float) -> Path:
    """What a path does, in the frame of the source's first camera; `pivot` is the distance of what views turn about."""
    poses = np.asarray(cameras.camera_to_world, np.float64)
    places, rotations = poses[:, :3, 3], poses[:, :3, :3]
    return Path(
        places.max(0) - places.min(0),
        float(np.linalg.norm(places - places[0], axis=1).max()),
        float(_angles(rotations[:1], rotations).max()),
        np.linalg.norm(np.diff(places, axis=0), axis=1),
        _angles(rotations[:-1], rotations[1:]),
        main_motion(poses, pivot),
    )


def main_motion(poses: Float[np.ndarray, "T 4 4"], pivot: float) -> str:
    """Which of the six motions a path is most like: by the camera farthest from the origin; see `nearest_motion`."""
    last = poses[np.argmax(np.linalg.norm(poses[:, :3, 3], axis=1))]
    yaw, pitch, distance = trajectories.coordinates(last, pivot)
    return trajectories.nearest_motion(yaw, pitch, distance / pivot - 1)


def check_steps(name: str, cameras: Cameras, pivot: float) -> None:
    """Refuses a path that jumps.

    A jump is a step of more than 5 times the mean one, and of more than a tenth of the pivot's distance or 10 degrees.

    Raises:
        InputError: it does; the line begins with `name`.
    """
    path = describe(cameras, pivot)
    for sizes, least, words in (
        (path.steps, _FAR * pivot, "{:.3g} scene units"),
        (path.turns, _WIDE, "{:.3g} degrees"),
    ):
        if len(sizes) and sizes.max() > max(least, _TIMES * sizes.mean()):
            k = int(sizes.argmax())
            raise InputError(
                f"{name}: jumps by {words.format(sizes[k])} from camera {k} to {k + 1}, "
                f"{sizes[k] / sizes.mean():.0f} times its mean step: check the order of its cameras, or smooth it"
            )


def seen_share(source: Cameras, depth: Float[np.ndarray, "H W"], cameras: Cameras) -> Float[np.ndarray, " T"]:
    """Of each camera the share of the first frame's points that lie in its picture, whatever may hide them.

    The depth is the first frame's, scene units; all cameras are in one frame, for pictures of one size.
    """
    height, width = depth.shape
    stride = max(1, int(np.sqrt(depth.size / _POINTS)))
    y, x = np.mgrid[0:height:stride, 0:width:stride] + 0.5
    z = depth[::stride, ::stride].astype(np.float64)
    K, poses = np.asarray(cameras.K, np.float64), np.asarray(cameras.camera_to_world, np.float64)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(np.asarray(source.K[0], np.float64)).T
    first = np.asarray(source.camera_to_world[0], np.float64)
    points = (rays * z[..., None]).reshape(-1, 3) @ first[:3, :3].T + first[:3, 3]
    shares = []
    for k, pose in zip(K, poses, strict=True):
        seen = (points - pose[:3, 3]) @ pose[:3, :3] @ k.T
        front = seen[:, 2] > 1e-6
        u, v = seen[front, 0] / seen[front, 2], seen[front, 1] / seen[front, 2]
        shares.append(np.count_nonzero((u > 0) & (u < width) & (v > 0) & (v < height)) / len(points))
    return np.array(shares)


def check_seen(name: str, shares: Float[np.ndarray, " T"]) -> None:
    """Refuses cameras that look away from everything.

    Raises:
        InputError: some see nothing; the line begins with `name`.
    """
    blind = np.flatnonzero(shares == 0)
    if blind.size:
        raise InputError(
            f"{name}: sees nothing of the scene from {blind.size} of its {len(shares)} cameras, the first of them "
            f"{blind[0]}: check its axes and config.camera_frame, config.camera_scale"
        )


def _angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Between rotations, degrees; by the difference's size, which is exact for small ones too."""
    chord = np.linalg.norm(first - second, axis=(1, 2)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))
