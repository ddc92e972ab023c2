"""The six camera motions about a pivot, their spellings, and their composition.

The source camera is the identity and looks along +z at the pivot ``(0, 0, D)``. A view is a point in spherical
coordinates about the pivot: yaw (left, right), pitch (up, down) and distance (in, out), with the camera always looking
at the pivot and never rolling. Composed motions add up in these coordinates, so the order of the parts does not matter.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from reangle_jax.arrays import AnyArray
from reangle_jax.errors import InputError
from reangle_jax.geometry.cameras import Cameras

MODES = ("dynamic", "static")


@dataclasses.dataclass(frozen=True)
class _Kind:
    axis: str  # a view moves along each axis at most once
    sign: int
    limit: float
    unit: str
    token: str
    phrase: str


# An orbit past the limit shows little of what the source saw; `in` doubles sizes at 0.5: gaps open between the points.
_KINDS = {
    "left": _Kind("yaw", +1, 60.0, "degrees", "CAMERA_ORBIT_LEFT", "orbit left"),
    "right": _Kind("yaw", -1, 60.0, "degrees", "CAMERA_ORBIT_RIGHT", "orbit right"),
    "up": _Kind("pitch", +1, 60.0, "degrees", "CAMERA_ORBIT_UP", "orbit up"),
    "down": _Kind("pitch", -1, 60.0, "degrees", "CAMERA_ORBIT_DOWN", "orbit down"),
    "in": _Kind("distance", -1, 0.6, "of the pivot's distance", "CAMERA_DOLLY_IN", "dolly in"),
    "out": _Kind("distance", +1, 2.0, "of the pivot's distance", "CAMERA_DOLLY_OUT", "dolly out"),
}
_PART = re.compile(r"([A-Za-z_]+):([0-9]*\.?[0-9]+|[0-9]+\.)")


@dataclasses.dataclass(frozen=True)
class Motion:
    """One part of a view: a motion's name and its amount (degrees, or a fraction of the pivot's distance)."""

    name: str
    amount: float


@dataclasses.dataclass(frozen=True)
class View:
    """A camera path relative to the source camera."""

    spelling: str  # as the user wrote it, such as ``left:10+up:5``
    parts: tuple[Motion, ...]  # its motions, at most one along each of yaw, pitch and distance

    @property
    def prompt_prefix(self) -> str:
        """What goes before the caption in dynamic mode (method.md, stage 2).

        One motion: ``CAMERA_ORBIT_LEFT Camera movement orbit left, ``. Several keep each motion's own token, which the
        model has met in training: ``CAMERA_ORBIT_LEFT CAMERA_ORBIT_UP Camera movement orbit left and orbit up, ``.
        """
        return prompt_prefix(*(part.name for part in self.parts))

    def along(self, axis: str) -> float:
        """The signed amount along ``yaw`` or ``pitch`` (degrees, left and up positive) or ``distance`` (a fraction)."""
        return sum(_KINDS[p.name].sign * p.amount for p in self.parts if _KINDS[p.name].axis == axis)


def prompt_prefix(*motions: str) -> str:
    """What goes before the caption of a video whose camera makes these motions; empty for none; see `View`."""
    kinds = [_KINDS[name] for name in motions]
    words = f"{' '.join(k.token for k in kinds)} Camera movement {' and '.join(k.phrase for k in kinds)}, "
    return words if kinds else ""


def allowed_views() -> str:
    """The motions' names with their ranges, for error messages and help."""
    return ", ".join(f"{name}:A with 0 < A <= {kind.limit:g} {kind.unit}" for name, kind in _KINDS.items())


def parse_view(spelling: str) -> View:
    """Reads a view such as ``left:10``, ``in:0.15`` or ``left:10+up:5``.

    Raises:
        InputError: an unknown name, an amount that is missing, garbled or out of range, or two parts along one axis.
    """
    if not isinstance(spelling, str) or not spelling.strip():
        raise InputError(f"{spelling!r} is no view; write NAME:AMOUNT, such as left:10 ({allowed_views()})")
    spelling = spelling.strip()
    parts, axes = [], {}
    for text in spelling.split("+"):
        part = _parse_part(spelling, text)
        axis = _KINDS[part.name].axis
        if axis in axes:
            raise InputError(
                f"{spelling!r} moves twice along one axis ({axes[axis]} and {part.name}); "
                "keep one of left/right, one of up/down and one of in/out"
            )
        axes[axis] = part.name
        parts.append(part)
    return View(spelling=spelling, parts=tuple(parts))


def _parse_part(spelling: str, text: str) -> Motion:
    inside = "" if text == spelling else f" in {spelling!r}"
    name = text.partition(":")[0]
    if name not in _KINDS:
        raise InputError(f"unknown motion {name!r}{inside}; the motions are {allowed_views()}")
    kind = _KINDS[name]
    span = f"above 0 up to {kind.limit:g} ({kind.unit})"
    match = _PART.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r}{inside} has no readable amount; write {name}:AMOUNT with a number {span}")
    amount = float(match[2])
    if not (0 < amount <= kind.limit):
        raise InputError(f"{text!r}{inside} is out of range; {name} takes a number {span}")
    return Motion(name, amount)


def view_cameras(
    view: View, K: Float[AnyArray, "3 3"], pivot_depth: float, num_frames: int, mode: str = "dynamic"
) -> Cameras:
    """The cameras of a view, relative to a source camera at the identity, all with its intrinsics.

    ``left`` moves the camera itself to its left (towards -x), ``up`` towards -y, both on a sphere about the pivot
    ``(0, 0, pivot_depth)`` that it keeps looking at; ``in`` and ``out`` change its distance from it by a fraction. In
    mode ``dynamic`` the amounts grow linearly from 0 at the first frame to their full value at the last; in ``static``
    every frame has the full value.

    Raises:
        InputError: the pivot's depth is not a positive number, or the mode is unknown.
    """
    if not (np.isfinite(pivot_depth) and pivot_depth > 0):
        raise InputError(f"pivot_depth: {pivot_depth} is not a distance; give a number above 0, or auto")
    if mode not in MODES:
        raise InputError(f"mode: {mode!r} is unknown; use {' or '.join(MODES)}")
    progress = np.linspace(0.0, 1.0, num_frames) if mode == "dynamic" else np.ones(num_frames)
    yaw, pitch, distance = (view.along(axis) for axis in ("yaw", "pitch", "distance"))
    pivot = float(pivot_depth)
    poses = np.stack([orbit(k * yaw, k * pitch, pivot * (1.0 + k * distance), pivot) for k in progress.tolist()])
    K = jnp.asarray(K, jnp.float32)
    return Cameras(K=jnp.broadcast_to(K[None], (num_frames, 3, 3)), camera_to_world=jnp.asarray(poses, jnp.float32))


def orbit(yaw: float, pitch: float, distance: float, pivot_depth: float) -> Float[np.ndarray, "4 4"]:
    """The pose, camera to world in float64, of a camera that looks at the pivot and does not roll.

    Yaw is in degrees about the pivot, to the camera's left, pitch upwards; the distance is from the pivot, which lies
    ``pivot_depth`` from the source camera.
    """
    yaw, pitch = math.radians(yaw), math.radians(pitch)
    turn_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    turn_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    pose = np.eye(4)
    pose[:3, :3] = turn_y @ turn_x  # its third column looks from the camera to the pivot
    pose[:3, 3] = np.array([0, 0, pivot_depth]) - distance * pose[:3, 2]
    return pose


def coordinates(pose: Float[np.ndarray, "4 4"], pivot_depth: float) -> tuple[float, float, float]:
    """Yaw and pitch in degrees, and distance: where about the pivot a camera is, wherever it looks.

    The inverse of `orbit`, for cameras in front of the pivot and behind it.
    """
    away = np.array([0, 0, pivot_depth]) - pose[:3, 3]
    distance = float(np.linalg.norm(away))
    if distance == 0:
        return 0.0, 0.0, 0.0
    pitch = math.degrees(math.asin(max(-1.0, min(1.0, away[1] / distance))))
    return math.degrees(math.atan2(away[0], away[2])), pitch, distance


def nearest_motion(yaw: float, pitch: float, stretch: float) -> str:
    """Which of the six motions a change of place about the pivot is most like; empty: of none.

    Each amount is compared with what the paper's six reach: 10 degrees to the left, 8 upwards, 0.15 of the pivot's
    distance outwards (`stretch`). Less than a tenth of that along all three is no motion.
    """
    amounts = {"yaw": yaw / 10, "pitch": pitch / 8, "distance": stretch / 0.15}
    axis = max(amounts, key=lambda name: abs(amounts[name]))
    if abs(amounts[axis]) < 0.1:
        return ""
    return next(name for name, kind in _KINDS.items() if kind.axis == axis and kind.sign * amounts[axis] > 0)
