"""What a stage tells of itself; ``stages/__init__.py`` describes how a stage is written."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reangle_jax.cameras.views import folder_name
from reangle_jax.config import Settings


@dataclasses.dataclass(frozen=True)
class External:
    """Files outside of the run's folder, a file or folder, or several files in order; the name: ``config.video``."""

    name: str
    paths: Path | tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Unit:
    """The smallest part of a stage that is kept or redone as a whole.

    Attributes:
        name: unique in its stage; empty for a stage with one unit.
        settings: dotted keys, or groups of keys, that the result depends on: ``sample.steps``, ``sample``.
        inputs: paths in the run's folder whose content it depends on; earlier units of its stage may write them.
        outputs: paths in the run's folder that it writes, files or folders, each whole or not at all.
        external: files outside of the run's folder whose content it depends on.
        weights: names and folders of the weights that it reads; see `chosen_models.folders`.
        view: the view it makes, if it makes one.
        unjudged: files in its outputs that are to look at alone: it is not redone for what becomes of them.
    """

    name: str = ""
    settings: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    external: tuple[External, ...] = ()
    weights: tuple[tuple[str, Path], ...] = ()
    view: str = ""
    unjudged: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: of the stage.
        version: of its code's results.
        units: its units for given settings, in order.
        run: its function.
        smaller: settings that lower the memory it needs, of `faults.SMALLER`.
        together: whether several processes run it together, each on its devices; the others wait for process 0 if not.
        arranged: in place of `units` where what earlier stages left in the run's folder decides on the units' order.
        optional: whether a run is whole without it: its failure is logged, and the run goes on.
    """

    name: str
    version: int
    units: Callable[[Settings], tuple[Unit, ...]]
    run: Callable[..., Any]
    smaller: tuple[str, ...] = ("num_frames", "height", "width")
    together: bool = False
    arranged: Callable[[Settings, Path], tuple[Unit, ...]] | None = None
    optional: bool = False

    def units_in(self, settings: Settings, folder: Path) -> tuple[Unit, ...]:
        """Its units in a run's folder."""
        return self.arranged(settings, folder) if self.arranged else self.units(settings)

    def full_name(self, unit: Unit) -> str:
        """A unit's name in run.json: ``generate/left_10``, or the stage's alone where it has one unit."""
        return f"{self.name}/{folder_name(unit.name)}" if unit.name else self.name
