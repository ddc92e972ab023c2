"""Video in (any file that OpenCV reads, or a folder of frames) and video out (H.264 that a browser plays)."""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import cv2
import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8

from reangle_jax.arrays import Picture
from reangle_jax.data import files
from reangle_jax.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DEFAULT_FPS = 24.0  # of a source that does not say: a folder of frames, some GIFs

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Video:
    """A clip in memory.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB.
        fps: frames per second.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float


def source_indices(start: int, num_frames: int, source_fps: float, fps: float | None) -> list[int]:
    """Which source frame each output frame is: the nearest in time.

    Output frame k lies k / fps seconds after source frame `start`; a source frame n is taken to lie at n / source_fps
    (the nominal rate, also of a clip with a variable one). Halves round up. With fps None or 0, frames are taken one by
    one.
    """
    step = source_fps / fps if fps else 1.0
    return [start + math.floor(k * step + 0.5) for k in range(num_frames)]


def fit(frame: Picture, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resizes to cover height x width with the aspect ratio kept, then crops the centre."""
    h, w = frame.shape[:2]
    scale = max(height / h, width / w)
    if (h, w) != (height, width):
        size = (max(width, round(w * scale)), max(height, round(h * scale)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return frame[top : top + height, left : left + width]


def read_video(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    num_frames: int,
    fps: float | None = None,
    height: int,
    width: int,
) -> Video:
    """Reads the chosen frames of a video file or of a folder of frames.

    Frames are counted by decoding them: the count in a container's header is often absent or wrong. Rotation stored in
    the file (phones) is applied by OpenCV.

    Args:
        path: a video file, or a folder of pictures taken in natural order (2 before 10).
        start: index of the first frame, in frames of the source.
        num_frames: how many frames to return.
        fps: rate to resample to, see `source_indices`; None or 0 keeps the source's.
        height: rows of the result, reached by resizing to cover and cropping the centre.
        width: columns of the result.

    Returns:
        the clip, frames uint8 [num_frames, height, width, 3].

    Raises:
        InputError: no such file, not a video, no frame, fewer frames than asked for, or a frame that cannot be read.
    """
    path = Path(path)
    source = _open_source(path)
    # A folder has no rate of its own: `fps`, when given, says which one it has.
    known = source.fps or fps or DEFAULT_FPS
    wanted = source_indices(start, num_frames, known, fps)
    if fps and fps > 1.01 * known:
        _log.warning("config.fps=%g is above the source's %g: frames will repeat", fps, known)

    chosen: dict[int, np.ndarray] = {}
    needed, count = set(wanted), 0
    with contextlib.closing(source.frames) as decoded:
        for frame in decoded:
            if count in needed:
                chosen[count] = fit(frame, height, width)
            count += 1
            if count > wanted[-1]:
                break
    if count <= wanted[-1]:
        raise InputError(_too_short(path, count, source.count, start, num_frames, known, fps))
    frames = np.stack([chosen[index] for index in wanted])[..., ::-1]  # OpenCV's BGR to RGB
    return Video(np.ascontiguousarray(frames), float(fps or known))


def iterate_frames(path: str | os.PathLike[str]) -> Generator[Picture, None, None]:
    """Every frame of a video file or of a folder of frames, RGB, one at a time.

    Args:
        path: as in `read_video`.

    Raises:
        InputError: at the first frame: no such file, not a video, or no frame; later: a frame that cannot be read.
    """
    empty = True
    with contextlib.closing(_open_source(Path(path)).frames) as decoded:
        for frame in decoded:
            empty = False
            yield np.ascontiguousarray(frame[..., ::-1])
    if empty:
        raise InputError(f"config.video: {path} holds no frame that can be decoded: is it damaged or empty?")


class _Source(NamedTuple):
    fps: float  # 0: the source does not say
    count: int  # frames that the source promises; 0: it does not say
    frames: Generator[np.ndarray, None, None]  # BGR


def _too_short(
    path: Path, count: int, expected: int, start: int, num_frames: int, known: float, fps: float | None
) -> str:
    if count == 0:
        return f"config.video: {path} holds no frame that can be decoded: is it damaged or empty?"
    wanted = source_indices(start, num_frames, known, fps)[-1] + 1
    asked = f"config.start={start} and config.num_frames={num_frames}" + (f" at config.fps={fps:g}" if fps else "")
    if not fps and expected >= wanted:
        return (
            f"config.video: {path} cannot be read past frame {count} of {expected}, and {asked} need {wanted}: "
            f"the file is broken midway; re-encode it, or take an earlier part"
        )
    fitting = [n for n in range(1, num_frames, 4) if source_indices(start, n, known, fps)[-1] < count]
    mend = f"config.num_frames={fitting[-1]} would fit" if fitting else f"lower config.start (below {count})"
    return f"config.video: {path} has {count} frames, but {asked} need {wanted}: {mend}"


def _open_source(path: Path) -> _Source:
    if not path.exists():
        raise InputError(f"config.video: no such file or folder: {path}")
    return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> _Source:
    names = [p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".")]
    if not names:
        raise InputError(f"config.video: the folder {path} holds no frames ({', '.join(PICTURE_SUFFIXES)})")
    # split() with a group alternates text, digits, text, ...: equal places compare equal types.
    names.sort(key=lambda p: [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", p.name)])

    def frames() -> Generator[np.ndarray, None, None]:
        shape = None
        for name in names:
            frame = cv2.imread(str(name), cv2.IMREAD_COLOR)
            if frame is None:
                raise InputError(f"config.video: {name} is not a picture that OpenCV can read: remove or replace it")
            shape = shape or frame.shape
            if frame.shape != shape:
                raise InputError(
                    f"config.video: {name} is {frame.shape[1]}x{frame.shape[0]}, the frames before it "
                    f"{shape[1]}x{shape[0]}: all frames of a folder must have one size"
                )
            yield frame

    return _Source(0.0, len(names), frames())


def _file(path: Path) -> _Source:
    if path.suffix.lower() in PICTURE_SUFFIXES:
        # OpenCV would take frame_07.png for the pattern of a sequence.
        raise InputError(f"config.video: {path} is a single picture: give a video, or the folder with all frames")
    if not os.access(path, os.R_OK):
        raise InputError(f"config.video: {path} may not be read: check its permissions")
    capture = _open(path)
    if not capture.isOpened():
        raise InputError(f"config.video: {path} is not a video that OpenCV can read: re-encode it, for instance to mp4")
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)

    def frames() -> Generator[np.ndarray, None, None]:
        try:
            while True:
                good, frame = capture.read()
                if not good:
                    return
                yield frame
        finally:
            capture.release()

    return _Source(float(fps) if 0 < fps < 1000 else 0.0, int(count) if 0 < count < 1e9 else 0, frames())


def _open(path: Path) -> cv2.VideoCapture:
    # The decoders' own chatter would bury our one line.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(str(path))
    finally:
        cv2.utils.logging.setLogLevel(level)


def write_video(path: str | os.PathLike[str], frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Writes an H.264 (yuv420p, faststart) mp4, whole or not at all.

    Args:
        path: the file to write.
        frames: uint8 RGB; an odd height or width is padded by repeating the last row or column (4:2:0 needs even ones).
        fps: frames per second.

    Raises:
        OSError: with errno ENOSPC when the disk is full.
        RuntimeError: the encoder failed otherwise (with its own words).
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T>0, H, W, 3], not {frames.dtype} {frames.shape}")
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    # The colour tags say what swscale's conversion does; players guess otherwise.
    colour = ["-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"]
    with files.atomic_path(path) as temporary:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6f}", "-i", "-"]
        command += ["-an", "-c:v", "libx264", "-preset", "medium", "-crf", "16", "-pix_fmt", "yuv420p", *colour]
        command += [
            "-map_metadata",
            "-1",
            "-fflags",
            "+bitexact",
            "-movflags",
            "+faststart",
            "-f",
            "mp4",
            str(temporary),
        ]
        result = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
        if result.returncode:
            words = result.stderr.decode(errors="replace").strip()
            if "No space left" in words:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            raise RuntimeError(f"the encoder failed on {path}: {words}")
