"""What the command is given to score: pictures and videos read, each mistake one clear line."""

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from reangle_jax.arrays import Picture
from reangle_jax.data.pictures import read
from reangle_jax.data.video import fit, iterate_frames
from reangle_jax.errors import InputError, about

Note = Callable[[str], None]  # takes a line about what the user should know; the same line may come again


class Notes:
    """What the user should know beside the figures: at once on stderr, and in the report."""

    def __init__(self):
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        """Says a line, once."""
        if line not in self.lines:
            self.lines.append(line)
            print(f"note: {line}", file=sys.stderr)


def read_pictures(paths: Sequence[str], note: Notes) -> list[Picture]:
    """Pictures, all at the first one's size."""
    pictures = [read_picture(path) for path in paths]
    return [like(path, x, pictures[0], paths[0], note) for path, x in zip(paths, pictures, strict=True)]


def read_picture(path: str) -> Picture:
    """A PNG or JPEG file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return read(Path(path))
    except InputError as error:
        raise InputError(f"{error}; videos go with --video") from None


def like(path: str, picture: Picture, first: Picture, first_path: str, note: Note) -> Picture:
    """The picture at the first one's size, its centre kept."""
    (height, width), (h, w) = first.shape[:2], picture.shape[:2]
    if (h, w) == (height, width):
        return picture
    note(f"{path} is {w}x{h}: resized to the {width}x{height} of {first_path}, its centre kept")
    return np.ascontiguousarray(fit(picture, height, width))


def square(picture: Picture, size: int) -> Picture:
    """The picture's middle, its shorter side ``size`` pixels long."""
    return np.ascontiguousarray(fit(picture, size, size))


def check_size(size: int, multiple: int) -> None:
    """Refuses a --size of no whole patches.

    Raises:
        InputError: the line names the nearest ones.
    """
    if size < multiple or size % multiple:
        near = sorted({max(multiple, size // multiple * multiple), max(multiple, -(-size // multiple) * multiple)})
        choices = " or ".join(map(str, near))
        raise InputError(f"--size {size}: must be a multiple of {multiple}, DUSt3R's patch: take {choices}")


def moments(paths: Sequence[str], note: Notes) -> Iterator[list[Picture]]:
    """The frames of all videos, moment by moment, at the first one's size, as far as the shortest goes."""
    with contextlib.ExitStack() as stack:
        videos = [stack.enter_context(contextlib.closing(iterate_video(path))) for path in paths]
        for count in range(sys.maxsize):
            frames = [next(frames, None) for frames in videos]
            ended = [path for path, frame in zip(paths, frames, strict=True) if frame is None]
            if ended:
                if len(ended) < len(paths):
                    note(f"{', '.join(ended)} ends after {count} frames: the others' later frames are not scored")
                return
            first = frames[0]
            assert first is not None
            yield [
                like(path, frame, first, paths[0], note)
                for path, frame in zip(paths, frames, strict=True)
                if frame is not None
            ]


def iterate_video(path: str) -> Generator[Picture]:
    """The frames of a video, or of a folder of frames.

    Raises:
        InputError: it cannot be read.
    """
    with about("--video"):
        yield from iterate_frames(path)
