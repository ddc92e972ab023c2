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
    """The smallest part of a stage that is kept or redone as a whole."""

    name: str = ""  # unique in its stage; empty for a stage with one unit
    # Dotted keys, or groups of keys, that the result depends on: ``sample.steps``, ``sample``.
    settings: tuple[str, ...] = ()
    # Paths in the run's folder whose content it depends on; earlier units of its stage may write them.
    inputs: tuple[str, ...] = ()
    # Paths in the run's folder that it writes, files or folders, each whole or not at all.
    outputs: tuple[str, ...] = ()
    external: tuple[External, ...] = ()  # files outside of the run's folder whose content it depends on
    # Names and folders of the weights that it reads; see `chosen_models.folders`.
    weights: tuple[tuple[str, Path], ...] = ()
    view: str = ""  # the view it makes, if it makes one
    # Files in its outputs that are to look at alone: it is not redone for what becomes of them.
    unjudged: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage."""

    name: str  # of the stage
    version: int  # of its code's results
    units: Callable[[Settings], tuple[Unit, ...]]  # its units for given settings, in order
    run: Callable[..., Any]  # its function
    # Settings that lower the memory it needs, of `faults.SMALLER`.
    smaller: tuple[str, ...] = ("num_frames", "height", "width")
    # Whether several processes run it together, each on its devices; the others wait for process 0 if not.
    together: bool = False
    # In place of `units` where what earlier stages left in the run's folder decides on the units' order.
    arranged: Callable[[Settings, Path], tuple[Unit, ...]] | None = None
    optional: bool = False  # whether a run is whole without it: its failure is logged, and the run goes on

    def units_in(self, settings: Settings, folder: Path) -> tuple[Unit, ...]:
        """Its units in a run's folder."""
        return self.arranged(settings, folder) if self.arranged else self.units(settings)

    def full_name(self, unit: Unit) -> str:
        """A unit's name in run.json: ``generate/left_10``, or the stage's alone where it has one unit."""
        return f"{self.name}/{folder_name(unit.name)}" if unit.name else self.name
