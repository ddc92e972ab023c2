"""The first frame of every output. In dynamic mode the camera starts where the input's stands: the input's own."""

from reangle_jax.config import Settings
from reangle_jax.run import Run, Stage, Unit, view_file


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


def first_frames(settings: Settings, run: Run) -> None:
    """Writes views/NAME/first_frame.png."""
    assert settings.mode == "dynamic", "config.parse lets nothing else pass"
    first = run.load_npz("input/frames.npz")["frames"][0]
    for unit in run.todo:
        run.save_png(unit.outputs[0], first)
        run.finish(unit)


STAGE = Stage("first_frames", version=1, units=units, run=first_frames)
