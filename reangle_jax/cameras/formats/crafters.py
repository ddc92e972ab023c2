"""TrajectoryCrafter's and ViewCrafter's paths: three lines of numbers, each line as long as the others.

The lines hold theta (upwards, degrees), phi (to the right, degrees) and r (forwards, as a share of the distance to what
stands in the picture's middle): TrajectoryCrafter in this order, ViewCrafter with phi before theta. Nothing in the file
tells which: a comment or the file's name must. The values are spread over the clip and joined by a cubic spline through
them where there are more than three, by lines otherwise; the tools' own spline may pass beside the values.
"""

from pathlib import Path

import numpy as np

from reangle_jax.cameras import interpolation
from reangle_jax.cameras.file import CameraFile, number
from reangle_jax.errors import InputError
from reangle_jax.geometry import trajectories

ORDERS = {"trajectorycrafter": ("theta", "phi", "r"), "viewcrafter": ("phi", "theta", "r")}
_LIMITS = {"theta": 90.0, "phi": 180.0, "r": 1.0}  # theirs end where the camera passes the pivot or the pole


def accepts(text: str) -> bool:
    """Whether a text may be of this format."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return len(lines) == 3 and all(_is_number(word) for line in lines for word in line.split())


def read(path: Path, text: str, tool: str | None = None) -> CameraFile:
    """Reads it in a tool's order; None: a comment in the file or its name says whose.

    Raises:
        InputError: it does not say which tool's it is, or the lines do not fit.
    """
    comments = " ".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    tools = [tool] if tool else [name for name in ORDERS if name in f"{comments} {path.name}".lower()]
    if len(tools) != 1:
        raise InputError(
            f"{path}: TrajectoryCrafter's lines are theta, phi, r and ViewCrafter's phi, theta, r: put the tool's name "
            "in a first line, # TrajectoryCrafter or # ViewCrafter"
        )
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    rows = dict(
        zip(ORDERS[tools[0]], ([number(str(path), word) for word in line.split()] for line in lines), strict=True)
    )
    if len({len(row) for row in rows.values()}) != 1:
        counts = ", ".join(f"{name} {len(row)}" for name, row in rows.items())
        raise InputError(f"{path}: its lines are of different lengths ({counts}); give as many values in each")
    for name, row in rows.items():
        if max(map(abs, row)) >= _LIMITS[name]:
            raise InputError(f"{path}: {name} reaches {max(row, key=abs):g}; it must stay within {_LIMITS[name]:g}")
    values = np.stack([-np.array(rows["phi"]), np.array(rows["theta"]), -np.array(rows["r"])], axis=1)

    def poses(num_frames: int, pivot: float) -> np.ndarray:
        curve = interpolation.curve(values, num_frames)
        return np.stack([trajectories.orbit(yaw, pitch, pivot * (1 + out), pivot) for yaw, pitch, out in curve])

    order = ", ".join(ORDERS[tools[0]])
    words = f"{order} about the pivot: theta up and phi to the right, degrees; r a share of its distance"
    return CameraFile(path, tools[0], words, None, poses, about_source=True, in_pivots=True)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
