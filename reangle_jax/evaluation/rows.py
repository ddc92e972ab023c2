"""What was measured, on the disk: a file for each output, written whole after each part; nothing is measured twice."""

import json
from pathlib import Path
from typing import Any

from reangle_jax.cameras import registry
from reangle_jax.data import files
from reangle_jax.evaluation.item import Item
from reangle_jax.evaluation.manifest import Output
from reangle_jax.evaluation.parts import PARTS, Options, Part
from reangle_jax.run.identity import Identities
from reangle_jax.scoring.inputs import Notes

_CAMERAS = ("cameras", "input_cameras")


class Rows:
    """The rows of a folder: DIR/rows/CLIP/VIEW/METHOD.json.

    A part is measured anew where the content of a file that it reads, the mapping of frames, the weights or a setting
    changed.
    """

    def __init__(self, folder: Path, options: Options, note: Notes):
        self._folder, self._options, self._note = folder, options, note
        self._identities = Identities(folder / ".hashes.json")

    def measure(self, output: Output, parts: list[str]) -> dict[str, float | None]:
        """An output's figures of so many parts, those that it has the files for."""
        path = self._folder / "rows" / output.clip / output.view / f"{output.method}.json"
        files.remove_leftovers(path.parent)
        done, found = _read(path), {}
        item = Item(output, _Heard(self._note))
        for name in parts:
            part = PARTS[name]
            if part.lacks(output, self._options) is not None:
                continue
            depends = self._depends(output, name, part)
            entry = done.get(name, {})
            if entry.get("depends") != depends:
                item.note.lines = []
                figures = part.measure(item, self._options)
                done[name] = entry = {"depends": depends, "figures": figures, "notes": item.note.lines}
                head = {"clip": output.clip, "view": output.view, "method": output.method}
                files.atomic_write_json(path, head | {"parts": done})
                self._identities.save()
            else:
                for line in entry["notes"]:
                    self._note(line)
            found |= entry["figures"]
        return found

    def _depends(self, output: Output, name: str, part: Part) -> str:
        read = {key: self._content(key, getattr(output, key)) for key in ("file", *part.reads)}
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

    def __init__(self, note: Notes):
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
    if name not in PARTS or not isinstance(entry, dict) or not isinstance(entry.get("figures"), dict):
        return False
    values = entry["figures"].values()
    numbers = all(value is None or (isinstance(value, int | float) and abs(value) < 1e9) for value in values)
    return numbers and entry["figures"].keys() == PARTS[name].figures.keys() and isinstance(entry.get("notes"), list)
