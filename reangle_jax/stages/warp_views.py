"""Every view's cameras, and the input video as these cameras would see it, holes and all."""

import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from reangle_jax.config import Settings
from reangle_jax.data import files, video
from reangle_jax.geometry import cameras, depth, splat
from reangle_jax.progress import progress
from reangle_jax.run import Stage, Unit, Work, view_file, view_paths

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for each view: those trained on, then those only generated."""
    return tuple(
        Unit(
            view,
            settings=("mode", "pivot_depth", "infill", *view_paths.keys(view)),
            inputs=("input/frames.npz", "input/depth.npz", "input/cameras.json"),
            outputs=tuple(view_file(view, name) for name in ("cameras.json", "warp.npz", "warp.mp4")),
            external=view_paths.external(settings, view),
            view=view,
        )
        for view in dict.fromkeys((*settings.train_views, *settings.views))
    )


def warp_views(settings: Settings, folder: Path, work: Work) -> None:
    """Writes views/NAME/cameras.json, warp.npz, warp.mp4."""
    clip, z = files.load_npz(folder / "input/frames.npz"), files.load_npz(folder / "input/depth.npz")["depth"]
    source, width, height = cameras.load_cameras(folder / "input/cameras.json", expect_frames=len(z))
    pivot = depth.pivot_depth(z) if isinstance(settings.pivot_depth, str) else settings.pivot_depth
    _log.info("the cameras turn about a point %.4g in front of the first one", pivot)
    frames_in, z_in = jnp.asarray(clip["frames"]), jnp.asarray(z)
    with progress(len(work), "warp_views", unit="view") as bar:
        for unit in work:
            target = view_paths.cameras(settings, unit.view, source, pivot, clip["source_indices"])
            view_paths.check_seen(unit.view, source, z[0], target)
            frames, visible = map(jnp.asarray, splat.warp_video(frames_in, z_in, source, target))
            frames, visible = frames.__array__(), visible.__array__()
            if settings.infill:
                frames = splat.infill(frames, visible)
            blind = np.flatnonzero(~visible.any(axis=(1, 2)))
            if blind.size:
                _log.warning(
                    "%s: nothing is visible in %d of %d frames: lower its amount, or check config.pivot_depth and "
                    "config.focal",
                    unit.view,
                    blind.size,
                    len(visible),
                )
            with files.atomic_path(folder / unit.outputs[0]) as path:
                cameras.save_cameras(path, target, width, height, pivot)
            files.atomic_savez(folder / unit.outputs[1], frames=frames, visible=visible)
            video.write_video(folder / unit.outputs[2], frames, float(clip["fps"]))
            _log.info(
                "%s: %.0f %% visible, %.0f %% at the end", unit.view, 100 * visible.mean(), 100 * visible[-1].mean()
            )
            bar.update()


STAGE = Stage("warp_views", version=3, units=units, run=warp_views)
