"""Views whose camera paths are files: what stages depend on for them, their cameras, and what the model is told."""

from pathlib import Path

import numpy as np

from reangle_jax.cameras import inspection, placing, registry
from reangle_jax.cameras import views as spellings
from reangle_jax.config import Settings, camera_wishes
from reangle_jax.errors import about
from reangle_jax.geometry import trajectories
from reangle_jax.geometry.cameras import Cameras
from reangle_jax.run.stage import External

_SETTINGS = ("camera_frame", "camera_scale", "camera_resample")


def keys(view: str) -> tuple[str, ...]:
    """Settings that a view's cameras depend on beside those of every view."""
    return _SETTINGS if spellings.is_file(view) else ()


def external(settings: Settings, view: str) -> tuple[External, ...]:
    """Files that a view's cameras depend on: its own; in the frame of the source's file that one too."""
    if not spellings.is_file(view):
        return ()
    own = External("config.views", registry.sources(Path(view)))
    if settings.camera_frame != "given" or not settings.source_cameras:
        return (own,)
    return own, External("config.source_cameras", registry.sources(Path(settings.source_cameras)))


def cameras(settings: Settings, view: str, source: Cameras, pivot: float, indices: np.ndarray) -> Cameras:
    """A view's cameras, in the frame of the source's first camera, from which the pivot is so far.

    `indices` says which of the source's frames were taken.

    Raises:
        InputError: a file's path does not fit the video, begins elsewhere, or jumps.
    """
    if not spellings.is_file(view):
        return trajectories.view_cameras(
            trajectories.parse_view(view), source.K[0], pivot, source.num_frames, settings.mode
        )
    wishes, size = camera_wishes(settings), (settings.height, settings.width)
    with about("config.views"):
        world = None
        if settings.source_cameras:
            given = None if isinstance(settings.pivot_depth, str) else settings.pivot_depth
            file = registry.read(Path(settings.source_cameras))
            _, world = placing.place_source(file, wishes, indices, size, pivot=given)
        found = placing.place(registry.read(Path(view)), wishes, source, pivot, size, settings.mode, world)
        inspection.check_steps(view, found, pivot)
    return found


def check_seen(view: str, source: Cameras, depth: np.ndarray, found: Cameras) -> None:
    """Refuses a file's cameras that look away from everything; depth is the first frame's.

    Raises:
        InputError: they do.
    """
    if spellings.is_file(view):
        inspection.check_seen(f"config.views: {view}", inspection.seen_share(source, depth, found))


def prompt_keys(settings: Settings) -> tuple[str, ...]:
    """Settings that prompts depend on beside the caption and the mode."""
    return ("prompts",) if settings.prompts else ()


def prompt_inputs(settings: Settings, views: tuple[str, ...]) -> tuple[str, ...]:
    """Files of the run's folder that the prompts of some views depend on."""
    files = [view for view in views if spellings.is_file(view) and settings.mode == "dynamic"]
    return tuple(spellings.view_file(view, "cameras.json") for view in files)


def prompt(settings: Settings, folder: Path, view: str) -> str:
    """What the model is told of a video of a view."""
    given = spellings.read_prompts(settings.prompts, (*settings.views, *settings.train_views))
    return spellings.prompt(
        view, folder / spellings.view_file(view, "cameras.json"), settings.caption, settings.mode, given
    )
