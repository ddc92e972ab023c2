"""The input: the chosen frames of the video, and the cameras that they are taken to be seen with."""

import logging
from pathlib import Path

from reangle_jax.backbones import registry
from reangle_jax.config import Settings, camera_wishes
from reangle_jax.data import files
from reangle_jax.errors import about
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
    return frames, _cameras_unit(settings)


def _cameras_unit(settings: Settings) -> Unit:
    keys = ("num_frames", "height", "width", "focal")
    if not settings.source_cameras:
        return Unit("cameras", settings=keys, outputs=("input/cameras.json",))
    from reangle_jax.cameras import registry as formats  # late: it brings jax

    return Unit(
        "cameras",
        settings=(*keys, "camera_scale", "camera_resample", "pivot_depth"),
        inputs=("input/frames.npz",),  # which of the source's frames were taken
        external=(External("config.source_cameras", formats.sources(Path(settings.source_cameras))),),
        outputs=("input/cameras.json",),
    )


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

    with about("config.video"):
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

    with about("config.video"):
        clip = video.read_video(
            settings.video,
            start=settings.start,
            num_frames=settings.num_frames,
            fps=settings.fps,
            height=settings.height,
            width=settings.width,
            multiple=registry.ENTRIES[settings.model].grid.multiple,
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
    from reangle_jax.cameras import placing
    from reangle_jax.cameras import registry as formats
    from reangle_jax.geometry import cameras

    focal = None if isinstance(settings.focal, str) else settings.focal
    if settings.source_cameras:
        pivot = None if isinstance(settings.pivot_depth, str) else settings.pivot_depth
        indices = files.load_npz(folder / "input/frames.npz")["source_indices"]
        size = settings.height, settings.width
        with about("config.source_cameras"):
            file = formats.read(Path(settings.source_cameras))
            found, _ = placing.place_source(file, camera_wishes(settings), indices, size, focal, pivot)
    else:
        K = cameras.default_intrinsics(settings.height, settings.width, focal)
        found = cameras.identity_cameras(K, settings.num_frames)
    with files.atomic_path(folder / "input/cameras.json") as path:
        cameras.save_cameras(path, found, settings.width, settings.height)


STAGE = Stage("ingest", version=2, units=units, run=ingest)
