"""Video in (any file that FFmpeg reads, or a folder of frames) and video out (H.264 that a browser plays)."""

import contextlib
import dataclasses
import errno
import itertools
import logging
import math
import os
from collections.abc import Generator

import cv2
import numpy as np
from av.error import FFmpegError
from jaxtyping import Int, Shaped, UInt8

from reangle_jax.arrays import Picture
from reangle_jax.data import encoding, files
from reangle_jax.data.decoding import Decoded, Upright
from reangle_jax.data.sources import DEFAULT_FPS, Source, Watched, open_source
from reangle_jax.errors import InputError

_ROUNDING = 2e-3  # s; Matroska's time stamps are whole milliseconds: differences of that size mean nothing
_MUCH = 0.2  # a share of the picture whose loss is worth a warning; 16:9 loses 0.16 at 3:2

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Video:
    """A clip in memory."""

    frames: UInt8[np.ndarray, "T H W 3"]  # uint8 [T, H, W, 3], RGB
    fps: float  # frames per second
    indices: Int[np.ndarray, " T"]  # which frame of the source each one is
    source_size: tuple[int, int]  # rows and columns of the source's frames, turned upright
    pixel_aspect: float = 1.0  # a source pixel's width over its height


def covering_size(rows: int, columns: int, height: int, width: int, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of a picture of that size and pixel aspect, resized to just cover height x width."""
    shown = columns * aspect
    scale = max(height / rows, width / shown)
    return max(height, round(rows * scale)), max(width, round(shown * scale))


def fit(
    frame: Shaped[np.ndarray, "h w 3"], height: int, width: int, aspect: float = 1.0
) -> Shaped[np.ndarray, "{height} {width} 3"]:
    """Resizes uint8 or uint16 to cover height x width with the aspect ratio kept, then crops the centre.

    `aspect` is a pixel's width over its height; the result's pixels are square.
    """
    rows, columns = covering_size(frame.shape[0], frame.shape[1], height, width, aspect)
    if frame.shape[:2] != (rows, columns):
        shrinks = rows <= frame.shape[0] and columns <= frame.shape[1]
        frame = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return crop_centre(frame, height, width)


def crop_centre(
    array: Shaped[np.ndarray, "h w *c"], height: int, width: int
) -> Shaped[np.ndarray, "{height} {width} *c"]:
    """The middle height x width of something at least as large."""
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    return array[top : top + height, left : left + width]


def read_video(
    path: str | os.PathLike[str],
    *,
    start: int = 0,
    num_frames: int,
    fps: float | None = None,
    height: int,
    width: int,
    multiple: int = 1,
) -> Video:
    """Reads the chosen frames of a video file or of a folder of frames, as a player shows them.

    Frames are counted by decoding them: the count in a container's header is often absent or wrong. With `fps`, output
    frame k is the source frame whose time stamp is nearest to k / fps seconds after that of frame `start`, the later of
    two that are equally near. One frame of the source's size is in memory at a time, beside the decoder's few.

    Args:
        path: a video file, or a folder of pictures taken in natural order (2 before 10).
        start: index of the first frame, in frames of the source.
        num_frames: how many frames to return.
        fps: rate to resample to; None or 0 keeps the source's frames, one by one. A folder has no rate of its own: it
            is taken to have this one.
        height: rows of the result, reached by resizing to cover and cropping the centre.
        width: columns of the result.
        multiple: what height and width must be a multiple of, for advice on another size.

    Returns:
        the clip, frames uint8 [num_frames, height, width, 3].

    Raises:
        InputError: no such file, not a video, no frame, fewer frames than asked for, a frame that cannot be read, or
            damage in one that is taken.
    """
    source = open_source(path)
    known = source.fps or fps or DEFAULT_FPS
    if fps and fps > 1.01 * known:
        _log.warning("config.fps=%g is above the source's %g: frames will repeat", fps, known)
    frames, indices, seconds = [], [], []
    fitted = picture = None
    with contextlib.closing(Watched(source)) as watched:
        for index, frame in _choose(watched, start, num_frames, fps if source.fps else None):
            if not indices or index != indices[-1]:
                picture = frame.picture()
                fitted = picture.finish(fit(picture.pixels, height, width, picture.aspect))
            frames.append(fitted)
            indices.append(index)
            seconds.append(frame.seconds)
    if len(frames) < num_frames:
        left = watched.end - seconds[0] if seconds else 0.0
        raise InputError(_too_short(source, watched.count, len(frames), start, num_frames, fps, left))
    watched.complain(indices)
    assert picture is not None
    _say_what_is_lost(picture, height, width, multiple)
    rate = fps or (_rate(seconds, known) if source.fps else known)
    return Video(np.stack(frames), float(rate), np.array(indices), picture.pixels.shape[:2], picture.aspect)


def iterate_frames(path: str | os.PathLike[str]) -> Generator[Picture, None, None]:
    """Every frame of a video file or of a folder of frames, RGB, one at a time, its pixels made square.

    Raises:
        InputError: at the first frame: no such file, not a video, or no frame; later: a frame that cannot be read.
    """
    source = open_source(path)
    with contextlib.closing(Watched(source)) as watched:
        for frame in watched:
            picture = frame.picture()
            rows, columns = picture.pixels.shape[:2]
            yield picture.finish(fit(picture.pixels, rows, max(1, round(columns * picture.aspect)), picture.aspect))
    if not watched.count:
        raise InputError(f"{source.path} holds no frame that can be decoded: is it damaged or empty?")
    watched.complain([])


def _choose(
    frames: Watched, start: int, num_frames: int, fps: float | None
) -> Generator[tuple[int, Decoded], None, None]:
    """The chosen frames with their indices, in order; see `read_video`. Fewer, if the source ends before."""
    numbered = itertools.islice(enumerate(frames), start, None)
    if not fps:
        yield from itertools.islice(numbered, num_frames)
        return
    chosen, begin, before = 0, 0.0, None
    for index, frame in numbered:
        begin = begin if before else frame.seconds
        while chosen < num_frames and (wanted := begin + chosen / fps) <= frame.seconds + _ROUNDING:
            later = frame.seconds - wanted
            yield before if before and wanted - before[1].seconds < later - _ROUNDING else (index, frame)
            chosen += 1
        if chosen == num_frames:
            return
        before = index, frame
    # The last frame is the nearest for half of the time that it is shown.
    while before and chosen < num_frames and begin + chosen / fps < before[1].seconds + 0.499 * before[1].duration:
        yield before
        chosen += 1


def _rate(seconds: list[float], known: float) -> float:
    """Frames per second of frames taken one by one."""
    steps = np.diff(seconds)
    if not len(steps) or steps.max() - steps.min() <= 2 * _ROUNDING:
        return known
    rate = 1 / float(steps.mean())
    _log.warning(
        "the clip's frames follow each other after %.0f to %.0f ms, and are taken to be %g a second: set config.fps to "
        "choose them by time",
        *(1000 * steps.min(), 1000 * steps.max(), rate),
    )
    return rate


def _say_what_is_lost(picture: Upright, height: int, width: int, multiple: int) -> None:
    rows, columns = picture.pixels.shape[:2]
    shown = round(columns * picture.aspect)
    tall, wide = covering_size(rows, columns, height, width, picture.aspect)
    lost = 1 - height * width / (tall * wide)
    if lost < _MUCH:
        return
    # Another size of the same area, for models that take any.
    side = math.sqrt(height * width)
    factors = (math.sqrt(rows / shown), math.sqrt(shown / rows))
    like = [max(multiple, multiple * round(side * factor / multiple)) for factor in factors]
    _log.warning(
        "%.0f %% of the picture (height x width %dx%d) is cropped away, %s the middle, to fill %dx%d: crop or pad the "
        "clip to that shape first (docs/your_clip.md), or set --config.height=%d --config.width=%d if the model "
        "takes them",
        *(100 * lost, rows, shown, "above and below" if tall > height else "left and right of", height, width, *like),
    )


def _too_short(
    source: Source, count: int, got: int, start: int, num_frames: int, fps: float | None, left: float
) -> str:
    if count == 0:
        return f"{source.path} holds no frame that can be decoded: is it damaged or empty?"
    asked = f"config.start={start} and config.num_frames={num_frames}"
    if fps and source.fps and got:  # frames are chosen by time, which need not pass evenly
        asked += f" at config.fps={fps:g}"
        wanted = f"{(num_frames - 1) / fps:.3g} s, of which {left:.3g} s are left"
    else:
        wanted = start + num_frames
    if not fps and source.count >= start + num_frames and count < 0.9 * source.count:
        return (
            f"{source.path} cannot be read past frame {count} of {source.count}, and {asked} need "
            f"{wanted}: the file is broken midway; re-encode it, or take an earlier part"
        )
    latest = count - num_frames
    fitting = [f"config.start={latest}"] if latest >= 0 and not fps else []
    fitting += [f"config.num_frames={(got - 1) // 4 * 4 + 1}"] if got else []
    mend = f"{' or '.join(fitting)} would fit" if fitting else f"lower config.start (below {count})"
    return f"{source.path} has {count} frames, but {asked} need {wanted}: {mend}"


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float) -> None:
    """Writes RGB frames, uint8 [T, H, W, 3], as `encoding.encode_mp4` does, whole or not at all.

    Raises:
        ValueError: the frames are none.
        OSError: with errno ENOSPC and the file's name when the disk is full.
        RuntimeError: the encoder failed (with its own words).
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T>0, H, W, 3], not {frames.dtype} {frames.shape}")
    try:
        content = encoding.encode_mp4(frames, fps)
    except FFmpegError as error:
        raise RuntimeError(f"the encoder failed on {path}: {error}") from error
    try:
        files.atomic_write_bytes(path, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
