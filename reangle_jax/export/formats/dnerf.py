"""D-NeRF: transforms_{train,val,test}.json with a time from 0 to 1 and a pose for every picture; .png with alpha.

Facts from the loaders of 4DGaussians and Deformable 3DGS: they take a pose right only where the camera looks at the
origin (they change the sign of its whole translation, and of two axes only), and a field of view only where pictures
are square. They begin with fused.ply and points3d.ply; without it with random points about the origin.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from reangle_jax.errors import InputError
from reangle_jax.export import clouds
from reangle_jax.export.clip import Clip
from reangle_jax.export.writing import Options, one_lens, opengl, picture, write_json


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes the three files, the points, and NAME/NNNNN.png; with masks, what the input did not see is transparent.

    The world's axes are the source's, its origin is what the cameras look at.
    """
    count, height, width = clip.size
    focal, cx, cy = one_lens(clip, "dnerf")
    if max(abs(cx - width / 2), abs(cy - height / 2)) > 0.5:
        raise InputError("--format dnerf: it knows no principal point beside the middle: use dycheck or nerfstudio")
    if options.square:
        height = width = min(height, width)
    top, left = (clip.size[1] - height) // 2, (clip.size[2] - width) // 2
    inside = np.s_[top : top + height, left : left + width]
    origin = looked_at(np.concatenate([track.poses for track in clip.tracks]))
    frames: dict[str, list[dict]] = {}
    for track in clip.tracks:
        frames[track.name] = []
        for t in range(count):
            alpha = np.where(track.seen[t], 255, 0) if options.masks else np.full(clip.size[1:], 255)
            rgba = np.concatenate([track.frames[t], alpha[..., None].astype(np.uint8)], axis=-1)
            picture(root / track.name / f"{t:05d}.png", rgba[inside])
            place = {"file_path": f"./{track.name}/{t:05d}", "time": t / max(1, count - 1)}
            pose = opengl(track.poses[t])
            pose[:3, 3] -= origin
            frames[track.name].append(place | {"transform_matrix": pose.tolist()})
    held = options.test.name if options.test else None
    train = [frame for name, found in frames.items() if name != held for frame in found]
    test = frames[held or clip.tracks[0].name]
    lens = {"camera_angle_x": 2 * math.atan(width / 2 / focal), "fl_x": focal, "w": width, "h": height}
    for split, found in (("train", train), ("val", test), ("test", test)):
        write_json(root / f"transforms_{split}.json", lens | {"frames": found})
    cloud = clouds.of_frame(clip, 0)
    for name in ("fused", "points3d"):
        clouds.write_ply(root / f"{name}.ply", cloud._replace(xyz=cloud.xyz - origin))


def looked_at(poses: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "3"]:
    """The point nearest to all optical axes; of those that are equally near the one nearest to the origin."""
    axes, places = poses[:, :3, 2], poses[:, :3, 3]
    across = np.eye(3) - axes[:, :, None] * axes[:, None]
    return np.linalg.lstsq(across.reshape(-1, 3), (across @ places[..., None]).reshape(-1), rcond=1e-6)[0]
