"""A stage at work: what it must do, unit after unit, each entered into the ledger when it is done."""

import contextlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from reangle_jax import faults, measure
from reangle_jax.data import files
from reangle_jax.distributed import ALONE, Team
from reangle_jax.run.ledger import Ledger, Verdict, fingerprint
from reangle_jax.run.stage import Stage, Unit
from reangle_jax.stopping import Stop

MEASURED = "measured.json"  # in a unit's scratch

_log = logging.getLogger(__name__)


def run_stage(stage: Stage, ledger: Ledger, *, stop: Stop | None = None, team: Team = ALONE) -> bool:
    """Does what of a stage is not done; says what and why. Returns whether there was anything to do.

    What an optional stage raises is logged: what was made before it is not lost for its sake. This process owns the
    run's folder; those of the team follow it.
    """
    try:
        return _run(stage, ledger, stop or Stop(), team)
    except Exception:  # whatever it is: what a run is for is done, and none of it may be lost for a page
        if not stage.optional:
            raise
        words = "%s could not be made; all that comes before it is done, and the same command tries it again"
        _log.warning(words, stage.name, exc_info=True)
        return True


def _run(stage: Stage, ledger: Ledger, stop: Stop, team: Team) -> bool:
    explained = faults.memory_explained(stage.name, ledger.flat, stage.smaller)
    with explained, contextlib.closing(Work(stage, ledger, ledger.survey(stage), stop)) as work:
        if work.todo:
            with _led(stage, ledger, work, team):
                stage.run(ledger.settings, ledger.root, work)
            work.end()
        return bool(work.todo)


@contextlib.contextmanager
def _led(stage: Stage, ledger: Ledger, work: "Work", team: Team) -> Iterator[None]:
    """Calls the other processes to a stage that all run: tells them the work, and gives them the files that it reads.

    These are the units' inputs and what an earlier start left in their scratch. Where all see the run's folder, each
    reads there what it needs of them; `run.following` is the other side.
    """
    if not (team.several and stage.together):
        yield
        return
    inputs = [name for unit in work.todo for name in unit.inputs if (ledger.root / name).is_file()]
    kept, units = [], []
    for unit in work.todo:
        scratch = work.scratch(unit)
        kept += [path.relative_to(ledger.root).as_posix() for path in sorted(scratch.iterdir()) if path.is_file()]
        told = {key: getattr(unit, key) for key in ("name", "inputs", "outputs", "view")}
        units.append({**told, "scratch": scratch.relative_to(ledger.root).as_posix()})
    team.tell({"stage": stage.name, "root": str(ledger.root.resolve()), "units": units, "inputs": inputs, "kept": kept})
    work.seen = team.sees(ledger.root)
    if work.seen:
        team.unanimous(True)  # all have copied what this one removes when it has finished a unit
    else:
        team.share(ledger.root, [*inputs, *kept])
    work.stop.agree = team.agree
    try:
        yield
    finally:
        work.stop.agree = ALONE.agree


class Work:
    """The units that a running stage must do.

    Iterating gives one after the other, each judged when its turn comes if it depends on those before, and enters each
    as done when the next one is asked for::

        for unit in work:
            ...  # writes unit.outputs

    To look at the units without beginning any, see `todo`.

    Attributes:
        todo: all of them, those too that may turn out to be done once those before them are.
        stop: whether the process shall stop.
        seen: whether all processes that do the work see the run's folder.
    """

    seen = True

    def __init__(self, stage: Stage, ledger: Ledger, verdicts: Collection[Verdict], stop: Stop):
        self.stop = stop
        self.todo = tuple(verdict.unit for verdict in verdicts if verdict.pending)
        self._stage, self._ledger = stage, ledger
        self._begun: dict[Unit, Verdict] = {}
        self._settled: set[Unit] = set()
        self._decide([verdict for verdict in verdicts if not verdict.waits])
        self._meter = measure.Meter()

    def __len__(self) -> int:
        return len(self.todo)

    def __iter__(self) -> Iterator[Unit]:
        for unit in self.todo:
            if unit not in self._begun and unit not in self._settled:
                self._decide([self._ledger.judge(self._stage, unit)])
            if unit in self._settled:
                continue
            yield unit
            if unit not in self._settled:
                self.finish(unit)

    def finish_part(self, unit: Unit) -> None:
        """Keeps in a unit's scratch what a part of its work took since the last was finished; `finish` adds it."""
        files.atomic_write_json(self.scratch(unit) / MEASURED, self._meter.read())
        self._meter.start()

    def finish(self, unit: Unit) -> None:
        """Enters a unit as done, with time and memory since it was begun, or the one before was finished.

        Raises:
            RuntimeError: an output that the unit promised was not written.
        """
        name, depends = self._stage.full_name(unit), self._begun[unit].depends
        took, part = self._meter.read(), self._scratch(unit) / fingerprint(depends) / MEASURED
        if part.exists():
            took = measure.together(json.loads(part.read_text(encoding="utf-8")), took)
        self._ledger.enter(name, unit, depends, took)
        self._settled.add(unit)
        shutil.rmtree(self._scratch(unit), ignore_errors=True)
        self._meter.start()

    def scratch(self, unit: Unit) -> Path:
        """A folder for work in progress on a unit: kept while the same work is resumed."""
        folder = self._scratch(unit) / fingerprint(self._begun[unit].depends)
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return folder

    def origin(self, unit: Unit) -> Path | None:
        """A unit's scratch in the run's folder, for all processes to write to; None where this one does not see it."""
        return self.scratch(unit)

    def end(self) -> None:
        """Checks that nothing was left undone.

        Raises:
            RuntimeError: something was.
        """
        undone = [self._stage.full_name(unit) for unit in self.todo if unit not in self._settled]
        if undone:
            raise RuntimeError(f"left undone: {', '.join(undone)}")

    def close(self) -> None:
        """Ends the measuring."""
        self._meter.close()

    def _decide(self, verdicts: Collection[Verdict]) -> None:
        """Says of each unit whether and why it is done, and begins those to do."""
        for verdict in verdicts:
            name = self._stage.full_name(verdict.unit)
            if not verdict.reasons:
                _log.info("skip %s: done", name)
                self._settled.add(verdict.unit)
                continue
            word = "do" if verdict.reasons == ("not done yet",) else "redo"
            _log.info("%s %s: %s", word, name, "; ".join(verdict.reasons))
            self._begun[verdict.unit] = verdict
        begun = [self._stage.full_name(verdict.unit) for verdict in verdicts if verdict.reasons]
        if begun:
            self._ledger.forget(*begun)

    def _scratch(self, unit: Unit) -> Path:
        name = self._stage.full_name(unit)
        return self._ledger.root / ".scratch" / (name if unit.name else f"{name}/all")
