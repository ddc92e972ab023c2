"""The scene's points: of a frame or of the whole clip, and as .ply."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from reangle_jax.export.clip import Clip

_FINENESS = 400  # cells of the fused cloud along the pictures' width at the median depth
_FAR = 0.999  # of the farthest depth: the sky, or what was not measured


class Cloud(NamedTuple):
    """Points in the world of the source's first camera, in scene units, and their colours."""

    xyz: Float[np.ndarray, "N 3"]
    rgb: UInt8[np.ndarray, "N 3"]


def of_frame(clip: Clip, frame: int, most: int = 100_000) -> Cloud:
    """The points of one of the input's frames; every k-th pixel of each row and column where there are too many."""
    source, z = clip.source, clip.z[frame].astype(np.float64)
    stride = max(1, int(np.ceil(np.sqrt(z.size / most))))
    y, x = np.mgrid[0 : z.shape[0] : stride, 0 : z.shape[1] : stride]
    z = z[::stride, ::stride]
    near = z < _FAR * clip.z.max()
    near = near if near.any() else np.ones_like(near)
    pixels = np.stack([x + 0.5, y + 0.5, np.ones(x.shape)], -1)[near]
    points = pixels @ np.linalg.inv(source.K[frame]).T * z[near][:, None]
    pose = source.poses[frame]
    return Cloud(points @ pose[:3, :3].T + pose[:3, 3], source.frames[frame][::stride, ::stride][near])


def fused(clip: Clip, most: int = 1_000_000) -> Cloud:
    """The points of all frames, one in each small cell of space: the mean of those that fall into it.

    What moves is in it once for every place that it was at.
    """
    clouds = [of_frame(clip, frame, most) for frame in range(len(clip.z))]
    xyz, rgb = (np.concatenate([cloud[k] for cloud in clouds]) for k in (0, 1))
    cell = float(np.median(clip.z)) * clip.size[2] / float(clip.source.K[0, 0, 0]) / _FINENESS
    _, which = np.unique(np.floor(xyz / cell).astype(np.int64), axis=0, return_inverse=True)
    which = which.reshape(-1)
    count = np.bincount(which)[:, None]
    means = [
        np.stack([np.bincount(which, values[:, k].astype(np.float64)) for k in range(3)], 1) / count
        for values in (xyz, rgb)
    ]
    return Cloud(means[0], np.round(means[1]).astype(np.uint8))


def write_ply(path: Path, cloud: Cloud) -> None:
    """Binary, little-endian, with the normals (zero) that Gaussian splatting's readers ask for."""
    kind = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    kind += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.zeros(len(cloud.xyz), kind)
    for k in range(3):
        rows["xyz"[k]], rows[("red", "green", "blue")[k]] = cloud.xyz[:, k], cloud.rgb[:, k]
    names = "".join(f"property {'float' if type_ == '<f4' else 'uchar'} {name}\n" for name, type_ in kind)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{names}end_header\n"
    path.write_bytes(head.encode() + rows.tobytes())
