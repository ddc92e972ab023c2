"""Frames of a video file, decoded by FFmpeg's libraries through PyAV, as a player shows them.

Why PyAV, and neither OpenCV's reader nor the ``ffmpeg`` program that imageio-ffmpeg carries. OpenCV tells neither time
stamps that vary nor mirroring, aspect, interlacing or damage, and what it does to colours changes from version to
version. The program does all of that by itself, but its answers (size, field order, which frame is damaged) are log
lines for people, whose order its threads leave open, and it comes without ffprobe. PyAV gives each frame's time stamp,
flags, colour tags and display matrix as values, stops after the last frame needed, takes any file name, and raises
errors that can be told apart; its wheels (Python 3.11 to 3.14; Linux, macOS, Windows) also hold the H.264 encoder that
we need, in a little over half of the program's size, and a release follows each of FFmpeg's. They have no zscale: HDR
is converted in `colour`.
"""

import contextlib
import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import EOFError as EndOfFile
from av.error import FFmpegError
from av.filter import Graph
from av.video.stream import VideoStream
from jaxtyping import Int, Shaped

from reangle_jax.data import colour, files
from reangle_jax.errors import InputError

_MAX_THREADS = 8  # each holds a frame or more: 4K in 10 bits takes 25 MB
# Matrices (AVColorSpace) that the scale filter knows; 2 is "not stated", 0 is RGB.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
_RANGES = {1: "tv", 2: "pc"}
# Titles that are not UTF-8 are replaced: from av 19 on by itself.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: a cover, beside sound
_WIDEST_PIXEL = 8.0  # beyond it, the aspect is taken for a mistake


class Decoded(NamedTuple):
    """One decoded frame."""

    seconds: float  # when it is shown; never decreases
    duration: float  # for how long, in seconds
    # What the decoder made up for lost data is in it, or in a frame that it was predicted from, as far as the decoder
    # notices: H.264's nearly always does, HEVC's seldom.
    damaged: bool
    picture: Callable[[], "Upright"]  # makes its picture; may be called once, before or after the next frame is decoded


@dataclasses.dataclass(frozen=True)
class Upright:
    """A frame's pixels, turned upright."""

    pixels: Shaped[np.ndarray, "h w 3"]  # RGB, uint8, or uint16 where `finish` is to be called after resizing
    aspect: float = 1.0  # a pixel's width over its height
    # From `pixels`, resized or not, to uint8 in BT.709's colours.
    finish: Callable[[np.ndarray], np.ndarray] = np.asarray


class VideoFile:
    """An open video file: frames per second on average, and how many the container promises; 0: it does not say."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self._container = _open(self._path)
        try:
            self._stream = _stream(self._container, self._path)
        except InputError:
            self.close()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate or 0
        self.fps = float(rate) if 0 < rate < 1000 else 0.0
        # By the duration: the number of frames that is stored counts those, too, that an edit list leaves out.
        duration = float((self._stream.duration or 0) * (self._stream.time_base or 0))
        self.count = round(duration * self.fps) or self._stream.frames
        aspect = float(self._stream.sample_aspect_ratio or 1)
        self._aspect = aspect if 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL else 1.0
        self._converter: tuple[tuple, Graph] | None = None
        self._turns: dict[int, np.ndarray] = {}

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def frames(self) -> Generator[Decoded, None, None]:
        """Every frame, in the order of showing, deinterlaced.

        Raises:
            InputError: a frame's colours are coded in a way that is not supported.
        """
        last, damaged = -np.inf, False
        step = 1 / (self.fps or 25)
        for frame, shown, after_gap in _deinterlaced(_decoded(self._container, self._stream)):
            stamp, unit = frame.pts if frame.pts is not None else frame.dts, float(frame.time_base or 0)
            seconds = last + step if stamp is None else stamp * unit
            if not seconds > last:  # raw streams have no stamps; joined ones begin again
                seconds = last + step if np.isfinite(last) else 0.0
            last = seconds
            damaged = frame.is_corrupt or after_gap or (damaged and not frame.key_frame)
            duration = frame.duration * unit if frame.duration else step
            yield Decoded(seconds, duration, damaged, functools.partial(self._picture, frame, shown))

    def _picture(self, frame: av.VideoFrame, shown: av.VideoFrame) -> Upright:
        to_sdr = colour.to_sdr(frame.color_trc, frame.color_primaries)
        pixels = self._convert(shown, self._scaling(frame), "rgb24" if to_sdr is None else "rgb48le")
        # A frame that has been asked for its side data is freed by the garbage collector alone: too late for 4K. So
        # only the first of each rotation is asked.
        turn = frame.rotation
        if turn not in self._turns:
            self._turns[turn] = _display_matrix(frame)
        pixels, transposed = _upright(pixels, self._turns[turn])
        aspect = 1 / self._aspect if transposed else self._aspect
        return Upright(pixels, aspect) if to_sdr is None else Upright(pixels, aspect, to_sdr)

    def _convert(self, frame: av.VideoFrame, scaling: str, target: str) -> np.ndarray:
        key = (*_layout(frame), scaling, target)
        if self._converter is None or self._converter[0] != key:
            # Only the matrix is undone here (`colour` does the rest), and codes that are reserved would be refused.
            same = "setparams", "color_primaries=bt709:color_trc=bt709"
            self._converter = key, filter_graph(frame, same, ("scale", scaling), ("format", f"pix_fmts={target}"))
        graph = self._converter[1]
        graph.push(frame)
        return graph.vpull().to_ndarray()

    def _scaling(self, frame: av.VideoFrame) -> str:
        """Options of the scale filter: no scaling, but the conversion to RGB by the frame's own matrix and range."""
        options = f"flags=bicubic+accurate_rnd+full_chroma_int:in_range={_RANGES.get(frame.color_range, 'auto')}"
        if frame.format.is_rgb or frame.colorspace == 0:
            return options
        matrix = _MATRICES.get(frame.colorspace)
        if frame.colorspace == 2:  # as players guess
            matrix = "bt709" if frame.height > 576 or frame.width >= 1280 else "bt601"
            if frame.color_primaries == colour.BT2020 or frame.color_trc in (colour.PQ, colour.HLG):
                matrix = "bt2020"
        if matrix is None:
            raise InputError(
                f"{self._path} codes its colours by matrix {frame.colorspace} of H.273, which is not "
                "supported: re-encode it to BT.709, for instance with a video editor's export to H.264"
            )
        return f"{options}:in_color_matrix={matrix}"


def _open(path: Path) -> InputContainer:
    try:
        # "file:" keeps a colon in the name from being read as a protocol.
        container = av.open(f"file:{path}", **_LENIENT)
    except PermissionError:
        raise InputError(f"{path} may not be read: check its permissions") from None
    except (FFmpegError, OSError):
        words = files.stand_in(path) or "is not a video that FFmpeg can read: re-encode it, for instance to mp4"
        raise InputError(f"{path} {words}") from None
    if container.format.name == "tty":  # it takes any text for one
        container.close()
        words = files.stand_in(path) or "is not a video but text: give a video file"
        raise InputError(f"{path} {words}")
    return container


def _stream(container: InputContainer, path: Path) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition.value & _ATTACHED_PICTURE]
    if not streams:
        what = "sound" if container.streams.audio else "nothing that can be shown"
        raise InputError(f"{path} is not a video: it holds {what} only; give a file with pictures")
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise InputError(f"{path} is a single picture: give a video, or the folder with all frames")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if stream is best), streams[0])
    if stream.codec_context is None:
        raise InputError(f"{path} is coded in a way that FFmpeg does not know: re-encode it to H.264")
    # The H.264 decoder marks damaged frames only where frames are decoded in parallel; HEVC's waits there for ever for
    # a reference that is lost.
    stream.thread_type = "AUTO" if stream.codec_context.name == "h264" else "SLICE"
    stream.codec_context.thread_count = max(2, min(_MAX_THREADS, os.cpu_count() or 1))
    return stream


def _decoded(container: InputContainer, stream: VideoStream) -> Generator[tuple[av.VideoFrame, bool], None, None]:
    """The frames, and whether something before each could not be decoded at all."""
    begun = gap = False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except EndOfFile:
            return
        except FFmpegError:
            # Before its first key frame, a stream that was cut out of another has nothing that could be decoded.
            gap = begun
            continue
        for frame in frames:
            yield frame, gap
            begun, gap = True, False


def _deinterlaced(
    frames: Iterator[tuple[av.VideoFrame, bool]],
) -> Generator[tuple[av.VideoFrame, av.VideoFrame, bool], None, None]:
    """Each frame, what shall be seen of it, and whether something before it is missing.

    Frames that are flagged as interlaced are rebuilt from their first field (bwdif); from the first of them on, all
    pass through the filter, which knows a frame's neighbours.
    """
    graph, made_for = None, None
    waiting: deque[tuple[av.VideoFrame, bool]] = deque()  # what went into the graph and has not come out

    def pulled(graph: Graph) -> Generator[tuple[av.VideoFrame, av.VideoFrame, bool], None, None]:
        with contextlib.suppress(BlockingIOError, EndOfFile):
            while True:
                shown = graph.vpull()
                frame, gap = waiting.popleft()
                yield frame, shown, gap

    for frame, gap in frames:
        if graph is not None and _layout(frame) != made_for:
            graph.push(None)
            yield from pulled(graph)
            graph = None
        if graph is None and frame.interlaced_frame:
            graph, made_for = filter_graph(frame, ("bwdif", "mode=send_frame:deint=interlaced")), _layout(frame)
        if graph is None:
            yield frame, frame, gap
        else:
            waiting.append((frame, gap))
            graph.push(frame)
            yield from pulled(graph)
    if graph is not None:
        graph.push(None)
        yield from pulled(graph)


def filter_graph(frame: av.VideoFrame, *filters: tuple[str, str]) -> Graph:
    """Filters in a row, each a name and its options, for frames like this one."""
    graph = Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)]
    nodes += [graph.add(name, options) for name, options in filters]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph


def _layout(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _display_matrix(frame: av.VideoFrame) -> Int[np.ndarray, "2 2"]:
    """[[a, b], [c, d]]: column x and row y are shown at column a x + c y and row b x + d y, but for scale and shift."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return np.eye(2, dtype=int)
    return np.frombuffer(bytes(stored), np.int32).reshape(3, 3)[:2, :2].astype(int)


def _upright(pixels: np.ndarray, display: Int[np.ndarray, "2 2"]) -> tuple[np.ndarray, bool]:
    """Turned and mirrored to the nearest right angle of the display matrix; whether rows became columns."""
    (a, b), (c, d) = display
    transposed = bool(abs(b) + abs(c) > abs(a) + abs(d))
    if transposed:
        pixels, a, d = cv2.transpose(pixels), c, b
    if a < 0 or d < 0:
        pixels = cv2.flip(pixels, -1 if a < 0 and d < 0 else 1 if a < 0 else 0)
    return pixels, transposed
