"""The command: says what a camera file holds, checks it, and writes it as cameras.json."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax import commands, faults
from reangle_jax.cameras import inspection, placing, registry
from reangle_jax.cameras.formats.crafters import ORDERS
from reangle_jax.data import files
from reangle_jax.data.paths import expand
from reangle_jax.errors import InputError, called
from reangle_jax.geometry import cameras, depth

DESCRIPTION = """\
What is in a camera file: its format and convention, how far the cameras go and turn, their largest step and, with a
run, what share of its first frame each of them sees. Refuses what is no rotation, jumps, or looks away from everything.
"""
EPILOG = f"""\
Known are {registry.KNOWN}; what is in a file decides which it is (docs/cameras.md).
"""
_SIZE, _FRAMES = (480, 720), 49


@dataclasses.dataclass(frozen=True)
class _Like:
    """What cameras are placed about: a run's input, or a usual one."""

    source: cameras.Cameras
    pivot: float
    size: tuple[int, int]
    first_depth: np.ndarray | None
    settings: dict[str, Any]


def _parser() -> commands.Parser:
    parser = commands.Parser(prog="python -m reangle_jax.cameras", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("file", metavar="FILE", help="a camera file, or a folder with COLMAP's text model")
    parser.add_argument(
        "--like", metavar="RUN", help="the folder of a run (--preview is enough): its size, scene, settings"
    )
    parser.add_argument("--frame", choices=placing.FRAMES, help="as config.camera_frame; default: the run's, or first")
    parser.add_argument("--scale", metavar="UNIT", help="as config.camera_scale; default: the run's, or scene")
    parser.add_argument("--resample", metavar="N", type=commands.whole(2, 9999), help="bring them to N cameras")
    parser.add_argument(
        "--format", choices=tuple(ORDERS), help="whose three lines these are, where the file does not say"
    )
    parser.add_argument("--out", metavar="FILE", help="write them as cameras.json, in scene units")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a command line and gives the exit code, as `commands.answer` has them."""
    return commands.answer(
        lambda stop: _run(_parser().parse_args(argv)), stopped="nothing was written", explain=faults.explained()
    )


def _run(arguments: argparse.Namespace) -> None:
    expand(arguments, "file", "like", "out")
    path = Path(arguments.file)
    like = _read_run(Path(arguments.like)) if arguments.like else None
    file = registry.read(path, arguments.format)
    with called(camera_scale="--scale", camera_frame="--frame"):
        wishes, found, like = _placed(arguments, file, like)
    lines = [f"{path}: {file.format}, {file.convention}", *_said(file, wishes, found, like)]
    inspection.check_steps(str(path), found, like.pivot)
    if like.first_depth is not None:
        shares = inspection.seen_share(like.source, like.first_depth, found)
        with called(camera_scale="--scale", camera_frame="--frame"):
            inspection.check_seen(str(path), shares)
        at = np.unique(np.linspace(0, len(shares) - 1, min(len(shares), 9)).round().astype(int))
        each = ", ".join(f"{k}: {100 * shares[k]:.0f} %" for k in at)
        lines.append(f"sees of the first frame: {each} (least {100 * shares.min():.0f} % at {shares.argmin()})")
    print("\n".join(lines))
    if arguments.out:
        _write(Path(arguments.out), found, like)
    else:
        print("nothing is written: --out cameras.json writes these cameras")


def _placed(
    arguments: argparse.Namespace, file: Any, like: _Like | None
) -> tuple[placing.Wishes, cameras.Cameras, _Like]:
    settings = like.settings if like else {}
    try:
        scale = _unit(arguments.scale or settings.get("camera_scale", "scene"))
    except ValueError as error:
        raise InputError(f"--scale {arguments.scale}: {error}") from None
    frame = arguments.frame or settings.get("camera_frame", "first")
    wishes = placing.Wishes(frame, scale, arguments.resample is not None)
    count = arguments.resample or file.count or (like.source.num_frames if like else _FRAMES)
    if like is None:
        size = _SIZE if file.sizes is None else (round(file.sizes[0, 1]), round(file.sizes[0, 0]))
        K = cameras.default_intrinsics(*size)
        if file.K is not None and file.sizes is not None:
            K = placing.fitted(file.K[:1], file.sizes[:1], *size)[0]
        like = _Like(cameras.identity_cameras(K.astype(np.float32), count), 1.0, size, None, {})
    source = cameras.identity_cameras(np.asarray(like.source.K[0]), count)
    return wishes, placing.place(file, wishes, source, like.pivot, like.size, "static"), like


def _unit(value: Any) -> str | float:
    """What one unit of a file is: one of `placing.UNITS`, or a number of scene units, perhaps in digits."""
    if value in placing.UNITS:
        return value
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 < found < float("inf"):
        raise ValueError(f"it must be {', '.join(placing.UNITS)} or a number above 0")
    return found


def _said(file: Any, wishes: placing.Wishes, found: cameras.Cameras, like: _Like) -> list[str]:
    path = inspection.describe(found, like.pivot)
    frame = "the source's first camera" if file.about_source or wishes.frame == "first" else "the file's own world"
    unit = (
        "the pivot's distance" if not like.settings and (file.in_pivots or wishes.scale == "pivot") else "scene units"
    )
    K = np.asarray(found.K[0])
    count = file.count if file.count == found.num_frames else f"{found.num_frames} (of {file.count or 'any number'})"
    lines = [
        f"cameras: {count}, relative to {frame}, in {unit}; the pivot is taken to be {like.pivot:.4g} away",
        f"lens: {'the file' if file.K is not None else 'not in the file'}; focal length {K[0, 0]:.5g} px at "
        f"{like.size[1]}x{like.size[0]}",
        f"extent: {path.extent[0]:.4g} x {path.extent[1]:.4g} x {path.extent[2]:.4g}, at most {path.farthest:.4g} from "
        f"the first camera; most like: {path.motion or 'no motion of the six'}",
        f"largest turn: {path.largest_turn:.4g} degrees from the first camera",
    ]
    if len(path.steps):
        k = int(path.steps.argmax())
        lines.append(
            f"largest step: {path.steps[k]:.4g} (from {k} to {k + 1}; mean {path.steps.mean():.4g}), "
            f"{path.turns.max():.4g} degrees"
        )
    return lines


def _read_run(run: Path) -> _Like:
    """What a run knows of its input.

    Raises:
        InputError: it is no run, or its depth is not there yet.
    """
    mend = "give the --workdir of a run that has its depth (--preview is enough)"
    try:
        settings = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]
        z = files.load_npz(run / "input/depth.npz")["depth"]
        source, width, height = cameras.load_cameras(run / "input/cameras.json")
        if z.shape != (source.num_frames, height, width) or not (np.isfinite(z).all() and (z > 0).all()):
            raise ValueError("its depth is not above 0, or not of its cameras")
        given = settings["pivot_depth"]
        pivot = depth.pivot_depth(z) if isinstance(given, str) else float(given)
        for value in (pivot, settings.get("camera_scale", "scene")):
            _unit(value)
        if settings.get("camera_frame", "first") not in placing.FRAMES:
            raise ValueError(f"camera_frame is {settings['camera_frame']!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"--like {run}: is no run with depth ({' '.join(str(error).split())}): {mend}") from None
    return _Like(source, pivot, (height, width), z[0], settings)


def _write(path: Path, found: cameras.Cameras, like: _Like) -> None:
    if path.is_dir():
        raise InputError(f"--out: {path} is a folder; give the name of a file")
    height, width = like.size
    with files.atomic_path(path) as temporary:
        cameras.save_cameras(temporary, found, width, height, like.pivot)
    print(f"wrote {path}")
