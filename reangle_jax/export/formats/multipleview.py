"""4DGaussians' multipleview: cameras that stand still, one folder of .jpg each.

Facts from its loader: only the camera with the number 1 is read and its first parameter taken for both focal lengths;
an image's name is five characters, a number and four characters, image1.jpg for cam01.
"""

from pathlib import Path

import numpy as np

from reangle_jax.export import clouds
from reangle_jax.export.clip import Clip
from reangle_jax.export.formats.colmap import write_binary
from reangle_jax.export.writing import Options, one_lens, picture, poses_bounds, still


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes camNN/frame_NNNNN.jpg, sparse_/, points3D_multipleview.ply and poses_bounds_multipleview.npy."""
    del options
    still(clip, "multipleview")
    _, height, width = clip.size
    lens = one_lens(clip, "multipleview")
    for number, track in enumerate(clip.tracks, 1):
        for t, frame in enumerate(track.frames, 1):
            picture(root / f"cam{number:02d}" / f"frame_{t:05d}.jpg", frame)
    images = [(f"image{number}.jpg", track.poses[0]) for number, track in enumerate(clip.tracks, 1)]
    write_binary(root / "sparse_", (width, height, *lens), images)
    clouds.write_ply(root / "points3D_multipleview.ply", clouds.of_frame(clip, 0))
    np.save(root / "poses_bounds_multipleview.npy", poses_bounds(clip, clip.tracks))
