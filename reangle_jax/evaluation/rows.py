"""What was measured, on the disk: files for each output, each written whole; nothing is measured twice."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reangle_jax.cameras import registry
from reangle_jax.data import files
from reangle_jax.data.identity import Identities
from reangle_jax.errors import InputError
from reangle_jax.evaluation.item import Item
from reangle_jax.evaluation.manifest import Output
from reangle_jax.evaluation.parts import PARTS, SETS, Features, Figures, Options
from reangle_jax.scoring.inputs import Note

_CAMERAS = ("cameras", "input_cameras")
_DEPENDS = "depends"


class Rows:
    """The rows of a folder: DIR/rows/CLIP/VIEW/METHOD.json, and METHOD.PART.npz for features.

    A part is measured anew where the content of a file that it reads, the mapping of frames, the weights or a setting
    changed. The json is written after each part.
    """

    def __init__(self, folder: Path, options: Options, note: Note):
        self._folder, self._options, self._note = folder, options, note
        self._identities = Identities(folder / ".hashes.json")

    def measure(self, output: Output, parts: Sequence[str]) -> tuple[Figures, dict[str, Features]]:
        """An output's figures of so many parts, and its features of those that are of sets, by part.

        What an output lacks for a part is left out.
        """
        folder = self._folder / "rows" / output.clip / output.view
        files.remove_leftovers(folder)
        path = folder / f"{output.method}.json"
        done, item = _read(path), Item(output, _Heard(self._note))
        figures, features = {}, {}
        for name in parts:
            part = (PARTS | SETS)[name]
            if part.lacks(output, self._options) is not None:
                continue
            depends, arrays = self._depends(output, name), folder / f"{output.method}.{name}.npz"
            entry = done.get(name, {})
            kept = _read_features(arrays, depends) if name in SETS else None
            if entry.get(_DEPENDS) == depends and (name in PARTS or kept is not None):
                for line in entry["notes"]:
                    self._note(line)
            else:
                item.note.lines = []
                found = part.measure(item, self._options)
                if name in SETS:
                    kept, found = found, {}
                    files.atomic_savez(arrays, **{_DEPENDS: depends}, **kept)
                done[name] = entry = {_DEPENDS: depends, "figures": found, "notes": item.note.lines}
                head = {"clip": output.clip, "view": output.view, "method": output.method}
                files.atomic_write_json(path, head | {"parts": done})
                self._identities.save()
            figures |= entry["figures"]
            if kept is not None:
                features[name] = kept
        return figures, features

    def _depends(self, output: Output, name: str) -> str:
        part = (PARTS | SETS)[name]
        try:
            read = {key: self._content(key, getattr(output, key)) for key in ("file", *part.reads)}
        except OSError as error:
            raise InputError(f"{output.where}: {error.filename} cannot be read ({error.strerror})") from None
        mapping = (output.start, output.step, output.listed) if part.reads else None
        folder = self._options.weights
        weights = {key: self._identities.weights(folder / key) for key in part.weights(self._options) if folder}
        settings = {key: getattr(self._options, key) for key in part.settings}
        return files.hash_json([name, part.version, read, mapping, weights, settings])

    def _content(self, key: str, path: Path) -> Any:
        paths = registry.sources(path) if key in _CAMERAS else (path,)
        return [self._identities.content(each) for each in paths]


class _Heard:
    """Says notes at once, and keeps them for the row."""

    def __init__(self, note: Note):
        self._note = note
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._note(line)


def _read(path: Path) -> dict[str, Any]:
    """The parts of a row; those that are damaged count as not there."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        return {name: entry for name, entry in parts.items() if _is_entry(name, entry)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(name: str, entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("figures"), dict):
        return False
    values = entry["figures"].values()
    numbers = all(value is None or (isinstance(value, int | float) and abs(value) < 1e9) for value in values)
    wanted = PARTS[name].figures.keys() if name in PARTS else set()
    known = name in PARTS or name in SETS
    return known and numbers and entry["figures"].keys() == wanted and isinstance(entry.get("notes"), list)


def _read_features(path: Path, depends: str) -> Features | None:
    """Those that were made of what there is now."""
    try:
        arrays = files.load_npz(path)
    except (OSError, ValueError):
        return None
    if str(arrays.pop(_DEPENDS, "")) != depends or arrays.keys() != {"outputs", "inputs"}:
        return None
    return arrays
