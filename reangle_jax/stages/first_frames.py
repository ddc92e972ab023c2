"""The first frame of every output. In dynamic mode the camera starts where the input's stands: the input's own."""

from pathlib import Path

from reangle_jax.config import Settings
from reangle_jax.data import files, pictures
from reangle_jax.run import Stage, Unit, Work, view_file


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view."""
    return tuple(
        Unit(
            view,
            settings=("mode",),
            inputs=("input/frames.npz",),
            outputs=(view_file(view, "first_frame.png"),),
            view=view,
        )
        for view in settings.views
    )


def first_frames(settings: Settings, folder: Path, work: Work) -> None:
    """Writes views/NAME/first_frame.png."""
    assert settings.mode == "dynamic", "config.parse lets nothing else pass"
    first = files.load_npz(folder / "input/frames.npz")["frames"][0]
    for unit in work:
        pictures.write_png(folder / unit.outputs[0], first)


STAGE = Stage("first_frames", version=1, units=units, run=first_frames)
