"""A run as the processes see it that follow process 0: the stages that all run, in a folder of their own."""

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from reangle_jax import compilation_cache, config, faults
from reangle_jax.distributed import ALONE, Team
from reangle_jax.run.stage import Stage, Unit
from reangle_jax.run.work import Work
from reangle_jax.stopping import Stop


def follow(stages: Collection[Stage], team: Team, stop: Stop) -> None:
    """Takes part in process 0's run, which tells its settings first, until that is done."""
    flat = team.tell()
    if flat is None:  # there was nothing to run, --plan
        return
    settings = config.from_flat(flat)
    compilation_cache.use(settings.compilation_cache)
    by_name = {stage.name: stage for stage in stages}
    with tempfile.TemporaryDirectory(prefix="reangle-") as own:
        team.folder = Path(own)
        while (task := team.tell()) is not None:
            stage = by_name[task["stage"]]
            root = Path(task["root"])
            work = Followed(team.folder, task, stop, team.sees(root))
            if work.seen:
                _take(root, team.folder, task)
                team.unanimous(True)
            else:
                team.share(team.folder, ())
            stop.agree = team.agree
            with faults.memory_explained(stage.name, flat, stage.smaller):
                stage.run(settings, team.folder, work)
            stop.agree = ALONE.agree


def _take(root: Path, folder: Path, task: Mapping[str, Any]) -> None:
    """Puts links in a folder to a task's inputs, which are read where they lie, and copies of what is kept of its work.

    A file that this process writes under such a name takes its place (`files.atomic_path`).
    """
    for name in dict.fromkeys([*task["inputs"], *task["kept"]]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if name in task["kept"]:
            shutil.copyfile(root / name, path)
        else:
            path.symlink_to(root / name)


class Followed(Work):
    """The units of a stage that all processes run, as one of those has them that follow, in a folder of its own.

    What it writes is left to itself: process 0, which has told the task, does the same, and enters it in the run's
    folder; ``seen`` says whether all see that.
    """

    def __init__(self, folder: Path, task: Mapping[str, Any], stop: Stop, seen: bool):
        self.stop, self.seen = stop, seen
        self._own, self._root = folder, Path(task["root"])
        fields = ("inputs", "outputs")
        self._scratches = {
            Unit(told["name"], view=told["view"], **{key: tuple(told[key]) for key in fields}): told["scratch"]
            for told in task["units"]
        }
        self.todo = tuple(self._scratches)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.todo)

    def scratch(self, unit: Unit) -> Path:
        """See `Work.scratch`."""
        folder = self._own / self._scratches[unit]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def origin(self, unit: Unit) -> Path | None:
        """See `Work.origin`."""
        return self._root / self._scratches[unit] if self.seen else None

    def finish_part(self, unit: Unit) -> None:
        """See `Work.finish_part`: process 0 does."""

    def finish(self, unit: Unit) -> None:
        """See `Work.finish`: process 0 does."""
