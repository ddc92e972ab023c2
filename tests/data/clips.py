"""Small clips to read, made by the ffmpeg program."""

import subprocess

import imageio_ffmpeg
import numpy as np


def clip(count=9, height=64, width=96):
    """Smooth colours; frame t has blue = 20 t + 10, so that a frame can be told by its colour."""
    y, x = np.mgrid[0:height, 0:width]
    frames = [np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 20 * t + 10)], -1) for t in range(count)]
    return np.stack(frames).astype(np.uint8)


def which(frames):
    """Frame numbers by colour."""
    return [round((float(frame[..., 2].mean()) - 10) / 20) for frame in frames]


def ffmpeg(*arguments, data=None):
    """Runs ffmpeg; gives what it writes to stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def encode(path, frames, *arguments, rate=24, pixels="rgb24"):
    """Encodes frames (uint8 [T, H, W, 3], or the bytes of `pixels` with a height and width)."""
    height, width = frames.shape[1:3]
    raw = ("-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}", "-r", rate, "-i", "-")
    ffmpeg(*raw, *arguments, path, data=frames.tobytes())
    return path


def error(a, b):
    """Mean absolute difference, in levels."""
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()
