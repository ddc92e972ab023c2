"""Every view's cameras, and the input video as these cameras would see it, holes and all."""

import logging

import jax.numpy as jnp

from reangle_jax.config import Settings
from reangle_jax.data import files
from reangle_jax.geometry import cameras, depth, splat, trajectories
from reangle_jax.progress import progress
from reangle_jax.run import Run, Stage, Unit, view_file

_log = logging.getLogger(__name__)


def all_views(settings: Settings) -> tuple[str, ...]:
    """The views trained on, then those only generated."""
    return tuple(dict.fromkeys((*settings.train_views, *settings.views)))


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view."""
    return tuple(
        Unit(
            view,
            settings=("mode", "pivot_depth", "infill"),
            inputs=("input/frames.npz", "input/depth.npz", "input/cameras.json"),
            outputs=tuple(view_file(view, name) for name in ("cameras.json", "warp.npz", "warp.mp4")),
            view=view,
        )
        for view in all_views(settings)
    )


def warp_views(settings: Settings, run: Run) -> None:
    """Writes views/NAME/cameras.json, warp.npz, warp.mp4."""
    clip, z = run.load_npz("input/frames.npz"), run.load_npz("input/depth.npz")["depth"]
    source, width, height = cameras.load_cameras(run.path("input/cameras.json"), expect_frames=len(z))
    pivot = depth.pivot_depth(z) if isinstance(settings.pivot_depth, str) else settings.pivot_depth
    _log.info("the cameras turn about a point %.4g in front of the first one", pivot)
    frames_in, z_in = jnp.asarray(clip["frames"]), jnp.asarray(z)
    for unit in progress(run.todo, "warp_views", unit="view"):
        view = trajectories.parse_view(unit.view)
        target = trajectories.view_cameras(view, source.K[0], pivot, source.num_frames, "dynamic")
        frames, visible = map(jnp.asarray, splat.warp_video(frames_in, z_in, source, target))
        frames, visible = frames.__array__(), visible.__array__()
        if settings.infill:
            frames = splat.infill(frames, visible)
        if not visible.any():
            _log.warning("%s: nothing is visible: lower its amount, or check config.pivot_depth", unit.view)
        with files.atomic_path(run.path(unit.outputs[0])) as path:
            cameras.save_cameras(path, target, width, height)
        run.save_npz(unit.outputs[1], frames=frames, visible=visible)
        run.save_video(unit.outputs[2], frames, float(clip["fps"]))
        _log.info("%s: %.0f %% visible, %.0f %% at the end", unit.view, 100 * visible.mean(), 100 * visible[-1].mean())
        run.finish(unit)


STAGE = Stage("warp_views", version=2, units=units, run=warp_views)
