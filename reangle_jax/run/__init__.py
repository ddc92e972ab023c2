"""The run: a folder of artefacts, and a ledger of what is done, of what, and at what cost."""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from reangle_jax import weights
from reangle_jax.config import Settings
from reangle_jax.data import files
from reangle_jax.run import work as works
from reangle_jax.run.ledger import Ledger
from reangle_jax.run.stage import Stage, Unit, view_file
from reangle_jax.stopping import Stop

__all__ = ["Run", "Stage", "Unit", "view_file"]


class Run(Ledger):
    """A ledger, with what stages ask of the folder.

    Attributes:
        stop: asks whether the process shall stop.
        work: what the running stage must do.
    """

    def __init__(self, root: str | os.PathLike[str], settings: Settings, *, stop: Stop | None = None):
        super().__init__(root, settings)
        self.stop = stop or Stop()
        self.work: works.Work | None = None

    @classmethod
    @contextlib.contextmanager
    def opened(cls, root: str | os.PathLike[str], settings: Settings, *, stop: Stop | None = None) -> Iterator[Self]:
        """See `Ledger.opened`."""
        with super().opened(root, settings) as run:
            run.stop = stop or Stop()
            yield run

    def run_stage(self, stage: Stage) -> bool:
        """See `work.run_stage`."""

        def run(settings: Settings, work: works.Work) -> None:
            self.work = work
            stage.run(settings, self)

        return works.run_stage(dataclasses.replace(stage, run=run), self, stop=self.stop)

    @property
    def todo(self) -> tuple[Unit, ...]:
        """The units that the running stage must do."""
        return self.work.todo if self.work else ()

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.work or ())

    def finish(self, unit: Unit) -> None:
        """See `work.Work.finish`."""
        assert self.work
        self.work.finish(unit)

    def finish_part(self, unit: Unit) -> None:
        """See `work.Work.finish_part`."""
        assert self.work
        self.work.finish_part(unit)

    def scratch(self, unit: Unit) -> Path:
        """See `work.Work.scratch`."""
        assert self.work
        return self.work.scratch(unit)

    def reasons(self, stage: Stage, unit: Unit) -> list[str]:
        """Why a unit must be done; empty if it is done and whole."""
        return list(self.judge(stage, unit).reasons)

    def path(self, relative: str) -> Path:
        """Absolute path of something in the run's folder."""
        return self.root / relative

    def view_path(self, view: str, name: str) -> Path:
        """Absolute path of a view's file."""
        return self.root / view_file(view, name)

    def weights(self, part: str) -> Path:
        """Folder of a part's converted weights."""
        return weights.folder(self.settings, part)

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
