"""The run's folder: artefacts that are whole or absent, resume by content, measured time and memory.

``stages/__init__.py`` describes how a stage uses it.
"""

import contextlib
import dataclasses
import datetime
import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax import config, measure, weights
from reangle_jax.config import Settings
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.run.identity import Identities
from reangle_jax.stopping import Stop

RECORD = "run.json"
_FORMAT = 1

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Unit:
    """The smallest part of a stage that is kept or redone as a whole.

    Attributes:
        name: unique in its stage; empty for a stage with one unit.
        settings: dotted keys, or groups of keys, that the result depends on.
        inputs: paths in the run's folder whose content it depends on.
        outputs: paths in the run's folder that it writes, files or folders.
        external: settings that name a file or folder outside of the run's folder, whose content it depends on.
        weights: parts of the weights that it reads.
        view: the view it makes, if it makes one.
    """

    name: str = ""
    settings: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    view: str = ""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: its name, the version of its code's results, its units for given settings, and its function."""

    name: str
    version: int
    units: Callable[[Settings], tuple[Unit, ...]]
    run: Callable[[Settings, "Run"], None]


class Run:
    """A run's folder, opened by one process at a time.

    Attributes:
        root: the folder.
        settings: the run's settings.
        stop: asks whether the process shall stop.
        todo: the units that the running stage must do.
    """

    def __init__(self, root: str | os.PathLike[str], settings: Settings, *, stop: Stop | None = None):
        self.root = Path(root).absolute()
        self.settings = settings
        self.stop = stop or Stop()
        self.todo: tuple[Unit, ...] = ()
        self.record = _read_record(self.root / RECORD)
        self._stage: Stage | None = None
        self._identities = Identities()
        self._meter: measure.Meter | None = None
        self._judged: dict[str, dict[str, Any]] = {}  # what units depended on just before the running stage read it

    @classmethod
    @contextlib.contextmanager
    def opened(cls, root: str | os.PathLike[str], settings: Settings, *, stop: Stop | None = None) -> Iterator["Run"]:
        """Makes and locks the folder, and clears what a killed process left half-written.

        Raises:
            InputError: the folder cannot be written, or another process works in it.
        """
        root = Path(root).absolute()
        with _locked(root):
            for folder in (root, root / "input", *root.glob("views/*")):
                for path in files.remove_leftovers(folder):
                    _log.info("removed the unfinished %s", path)
            run = cls(root, settings, stop=stop)
            run.record["settings"] = config.flatten(settings)
            run.record["versions"] = measure.versions()
            run._save_record()
            yield run

    # Paths.

    def path(self, relative: str) -> Path:
        """Absolute path of something in the run's folder."""
        return self.root / relative

    def view_path(self, view: str, name: str) -> Path:
        """Absolute path of a view's file."""
        return self.root / view_file(view, name)

    def weights(self, part: str) -> Path:
        """Folder of a part's converted weights."""
        return weights.folder(self.settings, part)

    def scratch(self, unit: Unit) -> Path:
        """A folder for work in progress on a unit of the running stage: kept while the same work is resumed."""
        assert self._stage is not None
        folder = self._scratch(self._stage, unit) / self._fingerprint(_name(self._stage, unit))
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return folder

    # Artefacts.

    def load_npz(self, relative: str) -> dict[str, np.ndarray]:
        """Arrays of an .npz in the run's folder."""
        return files.load_npz(self.path(relative))

    def save_npz(self, relative: str, **arrays: Any) -> None:
        """Writes an .npz."""
        files.atomic_savez(self.path(relative), **arrays)

    def save_json(self, relative: str, value: Any) -> None:
        """Writes JSON."""
        files.atomic_write_json(self.path(relative), value)

    def save_bytes(self, relative: str, content: bytes) -> None:
        """Writes a file."""
        files.atomic_write_bytes(self.path(relative), content)

    def save_png(self, relative: str, image: np.ndarray) -> None:
        """Writes an image, uint8 [H, W, 3] RGB."""
        import cv2

        good, encoded = cv2.imencode(".png", image[..., ::-1])
        assert good
        files.atomic_write_bytes(self.path(relative), encoded.tobytes())

    def save_video(self, relative: str, frames: np.ndarray, fps: float) -> None:
        """Writes an mp4 from uint8 [T, H, W, 3] RGB."""
        from reangle_jax.data import video

        video.write_video(self.path(relative), frames, fps)

    def save_folder(self, relative: str) -> contextlib.AbstractContextManager[Path]:
        """A temporary folder to fill; it takes the place of `relative` when the block ends well."""
        return files.atomic_folder(self.path(relative))

    def key(self, *names: str) -> Any:
        """A JAX key for a named purpose: the same for the same seed and names, whatever else is done before."""
        import jax

        key = jax.random.key(self.settings.seed)
        for name in names:
            key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return key

    def stop_at_safe_points(self) -> contextlib.AbstractContextManager[Stop]:
        """Holds signals until the work asks for them; see `stopping.Stop`."""
        return self.stop.at_safe_points()

    # Records.

    def reasons(self, stage: Stage, unit: Unit) -> list[str]:
        """Why a unit must be done; empty if it is done and whole."""
        return self._reasons(stage, unit, self._depends(stage, unit))

    def _reasons(self, stage: Stage, unit: Unit, now: dict[str, Any]) -> list[str]:
        record = self.record["stages"].get(_name(stage, unit))
        if record is None:
            return ["not done yet"]
        then = record["depends"]
        changed = [
            _change(key, then.get(key), now.get(key)) for key in {**then, **now} if then.get(key) != now.get(key)
        ]
        if changed:
            return changed
        faults = []
        for output in unit.outputs:
            found = self._identities.content(self.path(output))
            if found is None:
                faults.append(f"{output} is missing")
            elif found != record["outputs"].get(output):
                faults.append(f"{output} is damaged or edited")
        return faults

    def run_stage(self, stage: Stage) -> bool:
        """Does what of a stage is not done; says what and why. Returns whether anything was done."""
        units = stage.units(self.settings)
        todo = []
        for unit in units:
            depends = self._depends(stage, unit)
            reasons = self._reasons(stage, unit, depends)
            if not reasons:
                _log.info("skip %s: done", _name(stage, unit))
                continue
            word = "do" if reasons == ["not done yet"] else "redo"
            _log.info("%s %s: %s", word, _name(stage, unit), "; ".join(reasons))
            todo.append(unit)
            self._judged[_name(stage, unit)] = depends
        if not todo:
            return False
        for unit in todo:
            # From here on the old outputs count for nothing, whenever this process dies.
            self.record["stages"].pop(_name(stage, unit), None)
        self._save_record()
        self._stage, self.todo = stage, tuple(todo)
        with contextlib.closing(measure.Meter()) as self._meter:
            stage.run(self.settings, self)
            for unit in todo:
                if _name(stage, unit) not in self.record["stages"]:
                    self.finish(unit)
        self._stage, self.todo, self._meter = None, (), None
        return True

    def finish(self, unit: Unit) -> None:
        """Records a unit of the running stage as done, with its time and memory since the one before.

        Raises:
            RuntimeError: an output that the unit promised was not written.
        """
        assert self._stage is not None
        assert self._meter is not None
        name = _name(self._stage, unit)
        outputs = {output: self._identities.content(self.path(output)) for output in unit.outputs}
        missing = [output for output, found in outputs.items() if found is None]
        if missing:
            raise RuntimeError(f"{name} ended without writing {', '.join(missing)}")
        self.record["stages"][name] = {
            "fingerprint": self._fingerprint(name),
            "depends": self._judged[name],
            "outputs": outputs,
            **self._meter.read(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self.record["devices"] = measure.devices()
        self._save_record()
        shutil.rmtree(self._scratch(self._stage, unit), ignore_errors=True)
        self._meter.start()

    def measured(self, stage: Stage, unit: Unit) -> dict[str, Any] | None:
        """What a unit took when it was last done, if it was."""
        return self.record["stages"].get(_name(stage, unit))

    def _scratch(self, stage: Stage, unit: Unit) -> Path:
        return self.root / ".scratch" / stage.name / (config.view_folder(unit.name) or "all")

    def _fingerprint(self, name: str) -> str:
        return files.hash_json(self._judged[name]).removeprefix("sha256:")[:16]

    def _depends(self, stage: Stage, unit: Unit) -> dict[str, Any]:
        flat = config.flatten(self.settings)
        depends: dict[str, Any] = {f"{stage.name}'s version": stage.version}
        for key in unit.settings:
            found = {name: value for name, value in flat.items() if name == key or name.startswith(f"{key}.")}
            if not found:
                raise KeyError(f"stage {stage.name} names the setting {key!r}, which does not exist")
            depends |= {f"config.{name}": value for name, value in found.items()}
        depends |= {path: self._identities.content(self.path(path)) for path in unit.inputs}
        for key in unit.external:
            if key == "loras":
                lora_files = [file for text in self.settings.loras for file in config.lora_files(text)]
                found = [self._identities.content(file) for file in lora_files]
                depends["the content of config.loras"] = found
            else:
                depends[f"the content of config.{key}"] = self._identities.content(Path(flat[key]))
        depends |= {f"the weights of {part}": self._identities.weights(self.weights(part)) for part in unit.weights}
        return depends

    def _save_record(self) -> None:
        files.atomic_write_json(self.root / RECORD, self.record)


def view_file(view: str, name: str) -> str:
    """A view's file, relative to the run's folder."""
    return f"views/{config.view_folder(view)}/{name}"


def _name(stage: Stage, unit: Unit) -> str:
    return f"{stage.name}/{config.view_folder(unit.name)}" if unit.name else stage.name


def _change(key: str, then: Any, now: Any) -> str:
    if key.startswith("config.") and then is not None and now is not None:
        return f"{key} changed from {then} to {now}"
    return f"{key} changed"


def _read_record(path: Path) -> dict[str, Any]:
    record: Any = None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {"format": _FORMAT, "stages": {}}
    except (ValueError, RecursionError):
        _log.warning("%s is damaged: everything will be redone", path)
    except OSError as error:
        words = f"--workdir {path.parent}: its {path.name} cannot be read ({error.strerror})"
        raise InputError(f"{words}: move it away, or choose another folder") from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT or not isinstance(record.get("stages"), dict):
        return {"format": _FORMAT, "stages": {}}
    stages = {name: entry for name, entry in record["stages"].items() if _is_entry(entry)}
    for name in sorted(record["stages"].keys() - stages.keys()):
        _log.warning("%s: what it says of %s is damaged: that will be redone", path, name)
    kept = {key: value for key in ("devices",) if _is_json(value := record.get(key))}  # else all is written anew
    return {"format": _FORMAT, **kept, "stages": stages}


def _is_entry(entry: Any) -> bool:
    """Whether what a record says of a unit has the shape that `finish` gave it."""
    if not _is_json(entry) or not all(isinstance(entry.get(key), dict) for key in ("depends", "outputs")):
        return False
    known = [entry.get(key) for key in ("seconds", "peak_host_bytes")]
    known += [value for key in ("peak_device_bytes", "sampled_device_bytes") if (value := entry.get(key)) is not None]
    return all(isinstance(value, int | float) and abs(value) < 1e18 for value in known)


def _is_json(value: Any) -> bool:
    """Whether it is an object that can be written again: JSON has no infinities, though Python reads them."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return isinstance(value, dict)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.lock(root / ".lock"))
        except BlockingIOError:
            raise InputError(
                f"--workdir {root} is in use by another run: wait for it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            why = _why_no_folder(root) or error.strerror
            raise InputError(f"--workdir {root} cannot be written ({why}): choose another folder") from None
        yield


def _why_no_folder(root: Path) -> str | None:
    for path in reversed((root, *root.parents)):
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to {os.readlink(path)}, which does not exist"
        if path.exists() and not path.is_dir():
            return f"{path} is no folder"
    return None
