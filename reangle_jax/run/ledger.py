"""The ledger, run.json: what of a run is done, of what, and at what cost."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Self

from reangle_jax import config, measure
from reangle_jax.config import Settings
from reangle_jax.data import files
from reangle_jax.data.identity import Identities
from reangle_jax.run import folder as run_folder
from reangle_jax.run.stage import Stage, Unit


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to become of a unit."""

    unit: Unit  # the unit
    depends: dict[str, Any]  # what it depends on and how that is now, as run.json keeps it
    reasons: tuple[str, ...]  # why it must be done; empty if it is done and whole
    # Inputs that earlier units are to make anew, with the name of each: it must be judged again after them.
    waits: tuple[str, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether it is to be done, or may be."""
        return bool(self.reasons or self.waits)


class Ledger:
    """What of a run is done: its folder, its settings (``flat``: by dotted key, as JSON), and what run.json holds."""

    def __init__(self, root: str | os.PathLike[str], settings: Settings):
        self.root = Path(root).absolute()
        self.settings, self.flat = settings, config.flatten(settings)
        self.record = run_folder.read_record(self.root)
        before = self.record.get("settings", self.flat)
        self.record["added"] = sorted({*self.record.get("added", ()), *(self.flat.keys() - before.keys())})
        self._before = {key: value for key, value in before.items() if key not in self.record["added"]}
        self._identities = Identities(self.root / run_folder.INDEX)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, root: str | os.PathLike[str], settings: Settings, command: str = "") -> Iterator[Self]:
        """The ledger of a folder that this process alone works in, made if need be; `command` goes on with the run.

        Raises:
            InputError: the folder cannot be written, or another process works in it.
        """
        with run_folder.opened(Path(root).absolute()):
            ledger = cls(root, settings)
            ledger.record["settings"] = ledger.flat
            ledger.record["versions"] = measure.versions()
            ledger.record |= {"command": command} if command else {}
            ledger.save()
            yield ledger
            with contextlib.suppress(OSError):
                ledger._identities.save()

    def survey(self, stage: Stage, remade: dict[str, str] | None = None) -> list[Verdict]:
        """Judges a stage's units, in order.

        `remade` has the outputs that units of earlier stages are to make anew, and which do; this stage's are added.
        """
        remade = {} if remade is None else remade
        verdicts = []
        for unit in stage.units_in(self.settings, self.root):
            makers = {path: maker for path in unit.inputs if (maker := _maker(path, remade))}
            waits = tuple(f"{path} of {maker}" for path, maker in makers.items())
            verdicts.append(dataclasses.replace(self.judge(stage, unit), waits=waits))
            if verdicts[-1].pending:
                remade |= dict.fromkeys(unit.outputs, stage.full_name(unit))
        return verdicts

    def judge(self, stage: Stage, unit: Unit) -> Verdict:
        """Judges one unit by the files as they are."""
        depends = self._depends(stage, unit)
        return Verdict(unit, depends, tuple(self._reasons(unit, depends, self.measured(stage, unit))))

    def measured(self, stage: Stage, unit: Unit) -> dict[str, Any] | None:
        """What run.json says of a unit that is done: seconds, memory and more; None if it is not."""
        return self.record["stages"].get(stage.full_name(unit))

    def forget(self, *names: str) -> None:
        """Lets units count as not done: the outputs that are there count for nothing, whenever this process dies."""
        for name in names:
            self.record["stages"].pop(name, None)
        self.save()

    def enter(self, name: str, unit: Unit, depends: dict[str, Any], took: dict[str, Any]) -> None:
        """Enters a unit as done: what it depended on when it was begun, and what it took (`measure.Meter.read`).

        Raises:
            RuntimeError: an output that it promised was not written.
        """
        outputs = {output: self._output(unit, output) for output in unit.outputs}
        missing = [output for output, found in outputs.items() if found is None]
        if missing:
            raise RuntimeError(f"{name} ended without writing {', '.join(missing)}")
        self.record["stages"][name] = {
            "fingerprint": fingerprint(depends),
            "depends": depends,
            "outputs": outputs,
            **took,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self.record["devices"] = measure.devices()
        self.save()

    def save(self) -> None:
        """Writes run.json."""
        files.atomic_write_json(self.root / run_folder.RECORD, self.record)

    def _reasons(self, unit: Unit, now: dict[str, Any], record: dict[str, Any] | None) -> list[str]:
        if record is None:
            return ["not done yet"]
        then = record["depends"]
        if changes := _changes(then, now, self._before, self._dormant):
            return changes
        faults = []
        for output in unit.outputs:
            found, recorded = self._output(unit, output), record["outputs"].get(output)
            if found is None:
                faults.append(f"{output} is missing")
            # Before there was `unjudged` all of a folder counted.
            elif recorded not in (found, unit.unjudged and self._identities.content(self.root / output)):
                faults.append(f"{output} is damaged or edited")
        return faults

    @property
    def _dormant(self) -> set[str]:
        """Settings that there were not when the run was begun, at their defaults: as then, or versions were raised."""
        defaults = config.defaults()
        return {f"config.{key}" for key in self.record["added"] if self.flat.get(key) == defaults.get(key)}

    def _output(self, unit: Unit, output: str) -> str | None:
        return self._identities.content(self.root / output, [self.root / name for name in unit.unjudged])

    def _depends(self, stage: Stage, unit: Unit) -> dict[str, Any]:
        depends: dict[str, Any] = {f"{stage.name}'s version": stage.version}
        for key in unit.settings:
            found = {name: value for name, value in self.flat.items() if name == key or name.startswith(f"{key}.")}
            if not found:
                raise KeyError(f"stage {stage.name} names the setting {key!r}, which does not exist")
            depends |= {f"config.{name}": value for name, value in found.items()}
        depends |= {path: self._identities.content(self.root / path) for path in unit.inputs}
        for given in unit.external:
            depends[f"the content of {given.name}"] = self._content(given.paths)
        depends |= {f"the weights of {part}": self._identities.weights(folder) for part, folder in unit.weights}
        return depends

    def _content(self, paths: Path | tuple[Path, ...]) -> str | list[str | None] | None:
        return [*map(self._identities.content, paths)] if isinstance(paths, tuple) else self._identities.content(paths)


def fingerprint(depends: dict[str, Any]) -> str:
    """A short hash of what a unit depends on."""
    return files.hash_json(depends).removeprefix("sha256:")[:16]


def _maker(path: str, remade: dict[str, str]) -> str | None:
    """Which unit makes a path, or something in it, or a folder around it."""
    for output, maker in remade.items():
        if path == output or path.startswith(f"{output}/") or output.startswith(f"{path}/"):
            return maker
    return None


def _changes(then: dict[str, Any], now: dict[str, Any], before: dict[str, Any], dormant: Container[str]) -> list[str]:
    """What tells two sets of dependencies apart; made another way, a unit has many that the other had not.

    `before` has the settings of the run that made it, by key without ``config.``; `dormant` those, with it, that are
    no reason where it depended on none of them.
    """
    known = {f"config.{key}": value for key, value in before.items()} | then
    there, was = _there(now), _there(then)
    both = [key for key in now if key in known and (_is_key(key) or (key in there and key in was))]
    changed = [_change(key, known[key], now[key]) for key in both if known[key] != now[key]]
    gone = [key for key in was if key not in there and not (_is_key(key) and key in now)]
    new = [key for key in there if _is_key(key) and key not in then and now[key] == known.get(key, now[key])]
    new = [key for key in new if key not in dormant]
    settings = [f"{key}={_shown(now[key])}{'' if key in known else ' (a new setting)'}" for key in new]
    files = [key for key in there if not _is_key(key) and key not in was]
    found = (("no longer made from", gone), ("now depends on", settings), ("now made from", files))
    return [*changed, *(f"{words} {listed(keys)}" for words, keys in found if keys)]


def _there(depends: dict[str, Any]) -> list[str]:
    """What is something: a file that is not there is None."""
    return [key for key, value in depends.items() if value is not None]


def _is_key(name: str) -> bool:
    return name.startswith("config.")


def _change(key: str, then: Any, now: Any) -> str:
    if _is_key(key) and then is not None and now is not None:
        return f"{key} changed from {_shown(then)} to {_shown(now)}"
    return f"{key} changed"


def _shown(value: Any) -> str:
    return "''" if value == "" else f"{value}"


def listed(names: list[str], shown: int = 3) -> str:
    """Names in words: the first few, and how many others there are."""
    rest = len(names) - shown
    if rest < 2:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {rest} others"
