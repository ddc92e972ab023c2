"""Runs that are finished, of a rendered scene: one whose cameras travel, one whose cameras stand."""

import numpy as np
import pytest

from reangle_jax.data import files
from reangle_jax.export.command import main
from reangle_jax.geometry import cameras as cam
from reangle_jax.geometry.trajectories import parse_view, view_cameras
from tests.geometry import analytic_scene

FRAMES, HEIGHT, WIDTH, PIVOT = 3, 48, 72, 5.0
K = np.array([[60.0, 0, 36], [0, 60, 24], [0, 0, 1]], np.float32)
VIEWS = ("left:10", "up:8+in:0.1")


def rendered(cameras):
    """Frames and depth as each camera sees them."""
    seen = [analytic_scene.render(K, pose, HEIGHT, WIDTH)[:2] for pose in np.asarray(cameras.camera_to_world)]
    return np.stack([(255 * c).round().astype(np.uint8) for c, _ in seen]), np.stack([z for _, z in seen])


def write_run(root, mode):
    source = cam.identity_cameras(K, FRAMES)
    frames, z = rendered(source)
    files.atomic_savez(root / "input/frames.npz", frames=frames, fps=8.0)
    files.atomic_savez(root / "input/depth.npz", depth=z)
    cam.save_cameras(root / "input/cameras.json", source, WIDTH, HEIGHT)
    for view, name in zip(VIEWS, ("left_10", "up_8_in_0_1"), strict=True):
        target = view_cameras(parse_view(view), K, PIVOT, FRAMES, mode)
        frames, _ = rendered(target)
        visible = np.ones(frames.shape[:3], bool)
        visible[:, :, -4:] = False
        files.atomic_savez(root / "views" / name / "frames.npz", frames=frames)
        files.atomic_savez(root / "views" / name / "warp.npz", frames=frames, visible=visible)
        cam.save_cameras(root / "views" / name / "cameras.json", target, WIDTH, HEIGHT, PIVOT)
    settings = {"views": list(VIEWS), "caption": "a ball", "mode": mode}
    files.atomic_write_json(root / "run.json", {"settings": settings})
    return root


@pytest.fixture(scope="session")
def moving(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "moving", "dynamic")


@pytest.fixture(scope="session")
def standing(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "standing", "static")


def export(run, out, layout, *arguments):
    """Exports a run, which must succeed."""
    assert main([str(run), "--format", layout, "--out", str(out), *arguments]) == 0
    return out
