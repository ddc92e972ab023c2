"""The command, killed at a place: ``killed.py PLACE[, until STAGE] ARGUMENTS``; see `test_static_run.STOPS`."""

import os
import signal
import sys

from reangle_jax import main, progress
from reangle_jax.backbones import registry as backbones
from reangle_jax.painters import registry
from reangle_jax.run import work
from tests.backbones import flowing
from tests.painters import toy

backbones.ENTRIES[flowing.NAME] = flowing.ENTRY
registry.ENTRIES[toy.NAME] = toy.ENTRY
place, _, last = sys.argv[1].partition(", until ")
argv = ["main", *sys.argv[2:]]
finish, update = work.Work.finish, progress.progress.update


def stages_until(**options):
    for stage in every(**options):
        yield stage
        if stage.name == last:
            return


def finish_or_die(self, unit):
    if f"{self._stage.name}/{unit.name}" == place:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self, unit)


def update_or_die(self, *arguments, **values):
    update(self, *arguments, **values)
    if f"{self._description} {self._done}" == place:
        os.kill(os.getpid(), signal.SIGTERM if "up" in place else signal.SIGKILL)


work.Work.finish, progress.progress.update = finish_or_die, update_or_die
every, main.stages = main.stages, stages_until
sys.exit(main.main(argv))
