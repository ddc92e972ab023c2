"""What a clip is read from, a video file or a folder of pictures, and what is wrong with it."""

import contextlib
import functools
import itertools
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from reangle_jax.data import pictures
from reangle_jax.data.decoding import Decoded, Upright, VideoFile
from reangle_jax.errors import InputError

DEFAULT_FPS = 24.0  # of a source that does not say: a folder of frames, raw streams

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """A clip that is open, its frames to be read once and closed.

    Frames per second, and how many the source promises, are 0 where it does not say.
    """

    path: Path
    fps: float
    count: int
    frames: Generator[Decoded, None, None]


class Watched:
    """A source's frames, counted, and what is damaged among them.

    ``count`` have been read, the last of which is no longer shown at ``end``, in the source's seconds.
    """

    def __init__(self, source: Source):
        self.count, self.end = 0, 0.0
        self._source = source
        self._damaged: list[int] = []

    def __iter__(self) -> Iterator[Decoded]:
        for frame in self._source.frames:
            if frame.damaged:
                self._damaged.append(self.count)
            self.count, self.end = self.count + 1, frame.seconds + frame.duration
            yield frame

    def close(self) -> None:
        """Closes the source."""
        self._source.frames.close()

    def complain(self, taken: list[int]) -> None:
        """Refuses damage in the frames that are taken, given by their indices, and warns of it in others.

        Raises:
            InputError: some that are taken are damaged.
        """
        if not self._damaged:
            return
        what = (
            f"{self._source.path} is damaged: frames {_ranges(self._damaged)} (counted from 0) cannot be decoded as "
            "they were"
        )
        hit = sorted(set(self._damaged) & set(taken))
        if hit:
            raise InputError(
                f"{what}, and {_ranges(hit)} would be taken: take another part (config.start, "
                "config.num_frames), get an undamaged copy, or re-encode this one to accept what a player makes of it"
            )
        _log.warning("%s%s", what, "; none of them is taken" if taken else "")


def _ranges(indices: list[int]) -> str:
    """[3, 4, 5, 9] as "3 to 5, 9"."""
    runs = [
        [index for _, index in run] for _, run in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def open_source(given: str | os.PathLike[str]) -> Source:
    """Opens a video file or a folder of pictures.

    Raises:
        InputError: there is none, it may not be read, or it is something else.
    """
    path = Path(given)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if not path.is_file():
        raise InputError(f"{path} is a pipe or a device: write it to a file first")
    if path.suffix.lower() in pictures.PICTURE_SUFFIXES:
        what = "an animated WebP, which cannot be read: convert it to mp4 or gif"
        if not pictures.is_animated_webp(path):
            what = "a single picture: give a video, or the folder with all frames"
        raise InputError(f"{path} is {what}")
    return _file(path)


def _folder(path: Path) -> Source:
    found = pictures.in_folder(path)
    if not found:
        suffixes = ", ".join(pictures.PICTURE_SUFFIXES)
        raise InputError(f"the folder {path} holds no frames ({suffixes})")

    def frames() -> Generator[Decoded, None, None]:
        shape = None
        for index, name in enumerate(found):
            frame = pictures.read(name)
            shape = shape or frame.shape
            if frame.shape != shape:
                raise InputError(
                    f"{name} is {frame.shape[1]}x{frame.shape[0]}, the frames before it "
                    f"{shape[1]}x{shape[0]}: all frames of a folder must have one size"
                )
            yield Decoded(index / DEFAULT_FPS, 1 / DEFAULT_FPS, False, functools.partial(Upright, frame))

    return Source(path, 0.0, len(found), frames())


def _file(path: Path) -> Source:
    file = VideoFile(path)

    def frames() -> Generator[Decoded, None, None]:
        with contextlib.closing(file):
            yield from file.frames()

    return Source(path, file.fps, file.count, frames())
