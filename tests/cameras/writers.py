"""Camera files of other tools, written from their formats' descriptions alone."""

import json

import numpy as np

from reangle_jax.geometry.cameras import default_intrinsics
from reangle_jax.geometry.trajectories import parse_view, view_cameras

HEIGHT, WIDTH = 48, 72
TO_OPENGL = np.diag([1.0, -1, -1, 1])


def path(spelling="left:10+up:4+in:0.2", frames=12, pivot=3.0, mode="dynamic"):
    """Camera to world, float64, of a motion."""
    cameras = view_cameras(parse_view(spelling), default_intrinsics(HEIGHT, WIDTH), pivot, frames, mode)
    return np.asarray(cameras.camera_to_world, np.float64)


def nerfstudio(file, poses, **top):
    """A transforms.json, its frames in an order that is not the pictures'."""
    frames = [
        {"file_path": f"images/frame_{k + 1}.png", "transform_matrix": (pose @ TO_OPENGL).tolist()}
        for k, pose in enumerate(poses)
    ]
    lens = {"fl_x": 30.0, "fl_y": 31.0, "cx": 35.0, "cy": 24.5, "w": WIDTH, "h": HEIGHT}
    file.write_text(json.dumps({**lens, **top, "frames": frames[::-1]}))
    return file


def quaternion(rotation):
    """Real part first."""
    w = np.sqrt(1 + np.trace(rotation)) / 2
    x, y, z = (rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1])
    return np.array([w, x / (4 * w), y / (4 * w), z / (4 * w)])


def colmap(folder, poses, camera="PINHOLE 72 48 30 31 35 24.5", points=""):
    """COLMAP's text model, its images in an order that is not their names'."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"# Camera list\n#   CAMERA_ID, MODEL, ...\n1 {camera}\n")
    lines = ["# Image list with two lines of data per image:"]
    for k in reversed(range(len(poses))):
        inverse = np.linalg.inv(poses[k])
        values = [*quaternion(inverse[:3, :3]), *inverse[:3, 3]]
        lines += [f"{k + 1} {' '.join(map(repr, map(float, values)))} 1 frame {k + 1}.png", points]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    return folder
