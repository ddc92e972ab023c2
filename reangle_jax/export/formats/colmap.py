"""COLMAP's model: text for gsplat, 3D Gaussian Splatting and COLMAP (a folder for each time step), and binary."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reangle_jax.export import clouds
from reangle_jax.export.clip import Clip
from reangle_jax.export.writing import Options, mask, picture, quaternion


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes NNNNN/images/, masks/ and sparse/0/{cameras,images,points3D}.txt for each time step."""
    _, height, width = clip.size
    for t in options.frames:
        folder = root / f"{t:05d}"
        sparse = folder / "sparse" / "0"
        sparse.mkdir(parents=True)
        lenses, images = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"], []
        images = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
        for number, track in enumerate(clip.tracks, 1):
            K, name = track.K[t], f"{track.name}.png"
            picture(folder / "images" / name, track.frames[t])
            if options.masks:
                mask(folder / "masks" / f"{name}.png", track.seen[t])
            lenses.append(f"{number} PINHOLE {width} {height} {_words(K[0, 0], K[1, 1], K[0, 2], K[1, 2])}")
            images += [f"{number} {_words(*world_to_camera(track.poses[t]))} {number} {name}", ""]
        cloud = clouds.of_frame(clip, t)
        points = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
        points += [f"{k} {_words(*x)} {c[0]} {c[1]} {c[2]} 0" for k, (x, c) in enumerate(zip(*cloud, strict=True), 1)]
        for name, lines in (("cameras", lenses), ("images", images), ("points3D", points)):
            (sparse / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def world_to_camera(pose: np.ndarray) -> list[float]:
    """Quaternion, its real part first, and translation."""
    rotation = pose[:3, :3].T
    return [*quaternion(rotation), *(-rotation @ pose[:3, 3])]


def write_binary(
    folder: Path, lens: tuple[int, int, float, float, float], images: Sequence[tuple[str, np.ndarray]]
) -> None:
    """Writes cameras.bin with one SIMPLE_PINHOLE, number 1, images.bin, and a points3D.bin without points.

    The lens is width, height, focal length and principal point; images are names with poses, camera to world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.bin").write_bytes(struct.pack("<QiiQQddd", 1, 1, 0, *lens))
    content = struct.pack("<Q", len(images))
    for number, (name, pose) in enumerate(images, 1):
        content += (
            struct.pack("<I7dI", number, *world_to_camera(pose), 1) + name.encode() + b"\0" + struct.pack("<Q", 0)
        )
    (folder / "images.bin").write_bytes(content)
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", 0))


def _words(*values: float) -> str:
    return " ".join(f"{value:.12g}" for value in values)
