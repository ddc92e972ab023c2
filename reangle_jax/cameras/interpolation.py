"""Poses between poses, on the host in float64: in a line, on the sphere about the pivot, and along a spline."""

import cv2
import numpy as np
from jaxtyping import Float

from reangle_jax.errors import InputError
from reangle_jax.geometry import trajectories


def linear(
    at: Float[np.ndarray, " n"], poses: Float[np.ndarray, "n 4 4"], new: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "m 4 4"]:
    """Positions in a line, rotations by slerp, of poses at ascending times, at new times within these."""
    before, share = _between(at, new)
    after = np.minimum(before + 1, len(at) - 1)
    result = np.tile(np.eye(4), (len(new), 1, 1))
    for k, (i, j, s) in enumerate(zip(before, after, share, strict=True)):
        result[k, :3, :3] = slerp(poses[i, :3, :3], poses[j, :3, :3], s)
        result[k, :3, 3] = (1 - s) * poses[i, :3, 3] + s * poses[j, :3, 3]
    return result


def on_sphere(
    at: Float[np.ndarray, " n"], poses: Float[np.ndarray, "n 4 4"], new: Float[np.ndarray, " m"], pivot: float
) -> Float[np.ndarray, "m 4 4"]:
    """Yaw, pitch and distance about the pivot in a line, by slerp what a camera turns away from it (see `linear`).

    Between two cameras that look at the pivot, (0, 0, pivot), every camera does.

    Raises:
        InputError: a camera is at the pivot, and so at no place about it.
    """
    places = np.array([trajectories.coordinates(pose, pivot) for pose in poses])
    if (places[:, 2] < 1e-6 * pivot).any():
        raise InputError("a camera stands at the pivot itself: interpolate by linear")
    places[:, 0] = np.degrees(np.unwrap(np.radians(places[:, 0])))
    looks = np.stack([trajectories.orbit(yaw, pitch, out, pivot) for yaw, pitch, out in places])
    turns = np.tile(np.eye(4), (len(poses), 1, 1))
    turns[:, :3, :3] = looks[:, :3, :3].transpose(0, 2, 1) @ poses[:, :3, :3]
    between = np.stack([np.interp(new, at, places[:, axis]) for axis in range(3)], axis=1)
    looks = np.stack([trajectories.orbit(yaw, pitch, out, pivot) for yaw, pitch, out in between])
    return looks @ linear(at, turns, new)


def resample(poses: Float[np.ndarray, "n 4 4"], count: int) -> Float[np.ndarray, "{count} 4 4"]:
    """Another number of poses along the same path, its ends kept."""
    return linear(np.arange(len(poses), dtype=np.float64), poses, np.linspace(0, len(poses) - 1, count))


def slerp(first: Float[np.ndarray, "3 3"], second: Float[np.ndarray, "3 3"], share: float) -> Float[np.ndarray, "3 3"]:
    """The rotation a share of the way from one to the other, about one axis at one pace."""
    turn, _ = cv2.Rodrigues(first.T @ second)
    return first @ cv2.Rodrigues(share * turn)[0]


def curve(values: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "{count} d"]:
    """Values spread evenly over `count` steps: a cubic spline through more than three (not-a-knot), else lines."""
    n = len(values)
    at, new = np.arange(n, dtype=np.float64), np.linspace(0, n - 1, count)
    if n < 4:
        return np.stack([np.interp(new, at, column) for column in values.T], axis=1)
    # Second derivatives at the values: one cubic runs through the first three and one through the last three.
    system, right = np.zeros((n, n)), np.zeros_like(values)
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = 1, 4, 1
        right[i] = 6 * (values[i - 1] - 2 * values[i] + values[i + 1])
    system[0, :3] = system[-1, -3:] = 1, -2, 1
    bends = np.linalg.solve(system, right)
    before, share = _between(at, new)
    i, s = np.minimum(before, n - 2), share[:, None]
    s = np.where(before[:, None] > n - 2, 1.0, s)
    line = (1 - s) * values[i] + s * values[i + 1]
    return line + (((1 - s) ** 3 - (1 - s)) * bends[i] + (s**3 - s) * bends[i + 1]) / 6


def _between(at: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each new time the one before it, and the share of the way to the next."""
    before = np.clip(np.searchsorted(at, new, side="right") - 1, 0, len(at) - 1)
    gap = np.append(np.diff(at), 1.0)[before]
    return before, (new - at[before]) / gap
