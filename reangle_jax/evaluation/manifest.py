"""What is compared: clips, their views, whose file is which, and what moment each frame shows. A JSON file."""

import dataclasses
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from reangle_jax.data.paths import user_path
from reangle_jax.errors import InputError

EXAMPLE = """\
{
  "clips": {
    "cup": {
      "input": "cup/input.mp4",
      "cameras": "cup/cameras.json",
      "views": {
        "left": {
          "cameras": "cup/left.json",
          "reference": "cup/left_true.mp4",
          "outputs": {
            "ours": "runs/cup/views/left_10/frames.npz",
            "gcd": {"file": "gcd/cup_pred_s0", "frames": {"start": 0, "step": 2}},
            "frozen": {"file": "frozen/cup.mp4", "frames": [0, 12, 24]}
          }
        }
      }
    }
  }
}
"""
LONGEST = 100  # letters of a name
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.+-]{{0,{LONGEST - 1}}}")
_FRAMES = '"frames" is {"start": 0, "step": 1} or a list of indices'


@dataclasses.dataclass(frozen=True)
class Output:
    """One method's video of one view of one clip."""

    clip: str  # name of what was filmed
    view: str  # name of the camera path, or camera, that it is seen by
    method: str  # name of what made it
    file: Path  # a video, a folder of frames, or an .npz with ``frames``
    input: Path  # the clip itself, likewise
    start: int = 0  # the input's frame that the first frame is of the same moment as
    step: int = 1  # frames of the input from one frame to the next
    listed: tuple[int, ...] | None = None  # in place of both, the input's frame for each frame
    reference: Path | None = None  # what the view truly looks like, frame k at the moment of the input's frame k
    cameras: Path | None = None  # of the view, camera k at the moment of the input's frame k, or one for all
    input_cameras: Path | None = None  # of the input, likewise, in the same world

    @property
    def item(self) -> tuple[str, str]:
        """What other methods may have made too."""
        return self.clip, self.view

    @property
    def where(self) -> str:
        """Its place in the manifest, for the user."""
        return f"clips.{self.clip}.views.{self.view}.outputs.{self.method}"

    def moments(self, count: int) -> list[int]:
        """Which of the input's frames each of so many frames belongs to.

        Raises:
            InputError: as many are not listed.
        """
        if self.listed is None:
            return [self.start + self.step * k for k in range(count)]
        if len(self.listed) != count:
            raise InputError(f"frames lists {len(self.listed)}, and {self.file} has {count}: list one a frame")
        return list(self.listed)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All outputs, and the methods and items (clip, view) that they are of, in the file's order."""

    path: Path
    outputs: tuple[Output, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(output.method for output in self.outputs))

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """Each once."""
        return tuple(dict.fromkeys(output.item for output in self.outputs))

    def lacking(self, method: str) -> list[tuple[str, str]]:
        """The items that a method has no output of."""
        own = {output.item for output in self.outputs if output.method == method}
        return [item for item in self.items if item not in own]


def read(path: Path) -> Manifest:
    """Reads and checks a manifest; its paths are relative to its folder.

    Raises:
        InputError: it is none; the line begins with the file and the place in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --example prints a manifest") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({' '.join(str(error).split())}); --example prints a manifest") from None
    try:
        outputs = tuple(_outputs(path.parent, content))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Manifest(path, outputs)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: JSON would keep the last of equal ones."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"names {key!r} twice in one place; name each once")
        found[key] = value
    return found


def _outputs(base: Path, content: Any) -> list[Output]:
    (clips,) = _fields("the manifest", content, ("clips",))
    found = []
    for clip, of_clip in _named("clips", clips).items():
        where = f"clips.{clip}"
        source, views, input_cameras = _fields(where, of_clip, ("input", "views"), ("cameras",))
        shared = {"input": _path(base, f"{where}.input", source)}
        if input_cameras is not None:
            shared["input_cameras"] = _path(base, f"{where}.cameras", input_cameras)
        for view, of_view in _named(f"{where}.views", views).items():
            at = f"{where}.views.{view}"
            outputs, cameras, reference = _fields(at, of_view, ("outputs",), ("cameras", "reference"))
            own = {"cameras": cameras, "reference": reference}
            given = {key: _path(base, f"{at}.{key}", value) for key, value in own.items() if value is not None}
            for method, output in _named(f"{at}.outputs", outputs).items():
                file, frames = _file(base, f"{at}.outputs.{method}", output)
                found.append(Output(clip, view, method, file, **shared, **given, **frames))
    return found


def _file(base: Path, where: str, output: Any) -> tuple[Path, dict[str, Any]]:
    """An output's file, and what its frames belong to."""
    if isinstance(output, str):
        return _path(base, where, output), {}
    file, frames = _fields(where, output, ("file",), ("frames",))
    path = _path(base, f"{where}.file", file)
    if frames is None:
        return path, {}
    where = f"{where}.frames"
    if isinstance(frames, list):
        if not frames:
            raise InputError(f"{where}: is empty; {_FRAMES}")
        return path, {"listed": tuple(_index(where, index, 0) for index in frames)}
    start, step = _fields(where, frames, (), ("start", "step"))
    start, step = 0 if start is None else start, 1 if step is None else step
    return path, {"start": _index(f"{where}.start", start, 0), "step": _index(f"{where}.step", step, 1)}


def _fields(where: str, value: Any, required: Collection[str], optional: Collection[str] = ()) -> list[Any]:
    """The values of an object's keys in the order in which they are asked for; None for what is left out."""
    known = [*required, *optional]
    if not isinstance(value, dict):
        raise InputError(f"{where}: must be an object with {', '.join(known)}, not {_said(value)}")
    for key in value:
        if key not in known:
            raise InputError(f"{where}: has no key {key!r}; known are {', '.join(known)}")
    for key in required:
        if key not in value:
            raise InputError(f"{where}: {key!r} is missing; --example prints a manifest")
    return [value.get(key) for key in known]


def _named(where: str, value: Any) -> dict[str, Any]:
    """An object by plain names, which files of the results are called by; not empty."""
    if not isinstance(value, dict) or not value:
        raise InputError(f"{where}: must be an object of one or more by name, not {_said(value)}")
    for name in value:
        check_name(where, name)
    return value


def check_name(where: str, name: str) -> None:
    """Refuses what no file of the results can be called by.

    Raises:
        InputError: the line begins with its place.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{where}: {name!r:.60} is no plain name: take up to {LONGEST} letters, digits, _ . + -, none of the last "
            "three first"
        )


def _path(base: Path, where: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: must be a path, not {_said(value)}")
    path = base / user_path(value, where)
    try:
        there = path.exists()
    except OSError as error:
        raise InputError(f"{where}: {path} cannot be read ({error.strerror}): check its folders' permissions") from None
    if not there:
        raise InputError(f"{where}: no such file: {path} (paths are relative to the manifest's folder)")
    return path


def _index(where: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 10**9:
        raise InputError(f"{where}: {_said(value)} must be a whole number of at least {least}; {_FRAMES}")
    return value


def _said(value: Any) -> str:
    return f"{json.dumps(value):.60}"
