"""The input: the chosen frames of the video, and the cameras that they are taken to be seen with."""

import logging
from pathlib import Path

from reangle_jax.backbones import registry
from reangle_jax.config import Settings
from reangle_jax.data import files
from reangle_jax.run import External, Stage, Unit, Work

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """The frames; the source cameras."""
    frames = Unit(
        "frames",
        settings=("start", "num_frames", "fps", "height", "width"),
        external=(External("config.video", _video_files(Path(settings.video))),),
        outputs=("input/frames.npz", "input/video.mp4"),
    )
    cameras = Unit("cameras", settings=("num_frames", "height", "width", "focal"), outputs=("input/cameras.json",))
    return frames, cameras


def _video_files(path: Path) -> Path | tuple[Path, ...]:
    """A video; of a folder its pictures alone, whatever else lies there (the run's own folder, say)."""
    if not path.is_dir():
        return path
    from reangle_jax.data import pictures  # late: it brings OpenCV

    return tuple(pictures.in_folder(path))


def check(settings: Settings) -> None:
    """Opens the clip, and reads none of its frames.

    Raises:
        InputError: it cannot be opened.
    """
    from reangle_jax.data import sources

    sources.open_source(settings.video).frames.close()


def ingest(settings: Settings, folder: Path, work: Work) -> None:
    """Reads the video; writes input/frames.npz, input/video.mp4, input/cameras.json."""
    for unit in work:
        if unit.name == "frames":
            _frames(settings, folder)
        else:
            _cameras(settings, folder)


def _frames(settings: Settings, folder: Path) -> None:
    from reangle_jax.data import video

    clip = video.read_video(
        settings.video,
        start=settings.start,
        num_frames=settings.num_frames,
        fps=settings.fps,
        height=settings.height,
        width=settings.width,
        multiple=registry.entry(settings.model).grid.multiple,
    )
    _log.info("%d frames of %dx%d at %g fps from %s", *clip.frames.shape[:3], clip.fps, settings.video)
    files.atomic_savez(
        folder / "input/frames.npz",
        frames=clip.frames,
        fps=clip.fps,
        source_indices=clip.indices,
        source_size=clip.source_size,
        pixel_aspect=clip.pixel_aspect,
    )
    video.write_video(folder / "input/video.mp4", clip.frames, clip.fps)


def _cameras(settings: Settings, folder: Path) -> None:
    from reangle_jax.geometry import cameras

    focal = None if isinstance(settings.focal, str) else settings.focal
    K = cameras.default_intrinsics(settings.height, settings.width, focal)
    with files.atomic_path(folder / "input/cameras.json") as path:
        cameras.save_cameras(path, cameras.identity_cameras(K, settings.num_frames), settings.width, settings.height)


STAGE = Stage("ingest", version=2, units=units, run=ingest)
