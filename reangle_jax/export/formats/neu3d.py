"""Neu3D (DyNeRF): cam00.mp4, cam01.mp4, ... of cameras that stand still; cam00 is the one held out.

A fact from 4DGaussians' loader: it stops without points3D_downsample2.ply.
"""

from pathlib import Path

import numpy as np

from reangle_jax.data import video
from reangle_jax.export import clouds
from reangle_jax.export.clip import Clip
from reangle_jax.export.writing import Options, one_lens, poses_bounds, still


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes poses_bounds.npy, points3D_downsample2.ply and a video a camera."""
    still(clip, "neu3d")
    one_lens(clip, "neu3d")
    tracks = clip.tracks
    if options.test is not None:
        tracks = (options.test, *(track for track in tracks if track is not options.test))
    for number, track in enumerate(tracks):
        video.write_video(root / f"cam{number:02d}.mp4", track.frames, clip.fps)
    np.save(root / "poses_bounds.npy", poses_bounds(clip, tracks))
    clouds.write_ply(root / "points3D_downsample2.ply", clouds.of_frame(clip, 0))
