"""A manifest of finished runs of this program's."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reangle_jax.cameras.views import folder_name
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.evaluation.manifest import LONGEST, check_name
from reangle_jax.export import clip as clips

OURS = "ours"


def manifest(runs: Sequence[tuple[str, Path]], base: Path) -> dict[str, Any]:
    """The content of a manifest in the folder `base`, of a method's name and a run's folder each.

    Runs of the same input are one clip, called by the first one's folder; their methods must differ. What the untuned
    model made is the method ``NAME-untuned``.

    Raises:
        InputError: a folder is no finished run, a method has no plain name, two clips have one name, or two outputs.
    """
    found: dict[str, Any] = {}
    names: dict[str | None, str] = {}  # by the input's content
    paths: dict[tuple[str, str], str | None] = {}  # of a clip's view, the content of its cameras
    for method, run in runs:
        check_name(f"{method}={run}", method)
        record = clips.read(run).record
        content = files.hash_path(run / "input/frames.npz")
        name = re.sub(r"^[+-]|[^A-Za-z0-9_+-]", "_", run.resolve().name)[:LONGEST]
        if content not in names and name in found:
            raise InputError(f"{run}: another clip is called {name} too: rename the folder")
        name = names.setdefault(content, name)
        own = {"input": run / "input/frames.npz", "cameras": run / "input/cameras.json"}
        entry = {key: _relative(path, base) for key, path in own.items()}
        views = found.setdefault(name, entry | {"views": {}})["views"]
        for folder in (run / "views" / folder_name(view) for view in record["settings"]["views"]):
            view = views.setdefault(folder.name, {"cameras": _relative(folder / "cameras.json", base), "outputs": {}})
            path = files.hash_path(folder / "cameras.json")
            if paths.setdefault((name, folder.name), path) != path:
                raise InputError(
                    f"{run}: its {folder.name} has other cameras than another run's of the same clip: "
                    "give it a manifest of its own"
                )
            for each, file in _outputs(run, record, method, folder).items():
                if each in view["outputs"]:
                    words = f"{each} has {name}/{folder.name} already"
                    raise InputError(f"{run}: {words}: give one of the runs another name, NAME=RUN")
                view["outputs"][each] = _relative(file, base)
    return {"clips": found}


def _outputs(run: Path, record: dict[str, Any], method: str, folder: Path) -> dict[str, Path]:
    """By method."""
    found = {method: folder / "frames.npz"}
    if record["settings"].get("evaluate.untuned"):
        untuned = folder / "untuned.npz"
        if "stages" in record:
            clips.check_done(run, record, untuned.relative_to(run).as_posix())
        found[f"{method}-untuned"] = untuned
    return found


def _relative(path: Path, base: Path) -> str:
    return os.path.relpath(path, base)
