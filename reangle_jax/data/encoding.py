"""Frames to H.264 in an mp4, by FFmpeg's libraries."""

import io
from fractions import Fraction

import av
import numpy as np
from jaxtyping import UInt8

from reangle_jax.data.decoding import filter_graph

_CONVERSION = "flags=bicubic+accurate_rnd+full_chroma_inp:out_color_matrix=bt709:out_range=tv"


def encode_mp4(frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> bytes:
    """The content of an mp4 (H.264, yuv420p, BT.709, faststart); equal frames give equal bytes.

    An odd height or width is padded by repeating the last row or column: 4:2:0 needs even ones. It is made in memory: a
    file that FFmpeg itself opens stays open where the disk is too full for the header.

    Raises:
        av.error.FFmpegError: the encoder failed.
    """
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    rate = Fraction(fps).limit_denominator(1_000_000)
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    file = io.BytesIO()

    def again(*_) -> io.BytesIO:  # faststart reads what was written, to move it behind the index
        return io.BytesIO(file.getvalue())

    with av.open(file, "w", format="mp4", options=options, io_open=again) as container:
        # Without macroblock trees: x264's AVX-512 code for them gives other bytes for equal frames now and then.
        quality = {"preset": "medium", "crf": "16", "flags": "+bitexact", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=quality)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        # The tags say what the conversion does; players guess otherwise.
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
        graph = None
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            graph = graph or filter_graph(frame, ("scale", _CONVERSION), ("format", "pix_fmts=yuv420p"))
            graph.push(frame)
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode())
    return file.getvalue()
