"""Made-up runs that are finished, for the report: no network has made them, their numbers are known."""

import contextlib
from unittest import mock

import numpy as np

from reangle_jax import config, plan
from reangle_jax.cameras.views import folder_name
from reangle_jax.data import files, pictures, video
from reangle_jax.geometry import cameras as cam
from reangle_jax.geometry.trajectories import parse_view, view_cameras
from reangle_jax.needs import Needs
from reangle_jax.run import view_file

FRAMES, HEIGHT, WIDTH, FPS = 13, 48, 64, 12.0
K = np.array([[40.0, 0, 32], [0, 40, 24], [0, 0, 1]], np.float32)
HOSTILE = "</script><img src=x onerror=window.hit=1>"
LOSSES = [0.5 / (1 + step) for step in range(120)]
MET3R = {"input": 0.25, "left:8": 0.125}


def made_settings(mode="dynamic", views=("left:8", "up:5"), caption="a red box", **changes):
    values = config.get_tiny().to_dict() | {
        "video": "clip.mp4", "caption": caption, "mode": mode, "views": views, "train_views": views,
        "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH,
    }  # fmt: skip
    values["evaluate"] = {"untuned": mode == "dynamic"}
    return config.parse(values | changes)


def clip(shift=0):
    """A gradient with a red square that walks to the right: uint8 [T, H, W, 3]; its depth."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    frames = np.stack([np.stack([3 * y, 2 * x, np.full_like(x, 90)], -1)] * FRAMES).astype(np.uint8)
    z = np.full((FRAMES, HEIGHT, WIDTH), 4.0, np.float32) + x.astype(np.float32) / WIDTH
    for t in range(FRAMES):
        frames[t, 15:30, 4 + shift + 3 * t : 16 + shift + 3 * t] = (220, 60, 40)
        z[t, 15:30, 4 + shift + 3 * t : 16 + shift + 3 * t] = 3.0
    return frames, z


def write_run(root, settings):
    """Outputs are the warps, brighter by 5 grey levels and by one more a frame; the untuned model's by 30."""
    frames, z = clip()
    source = cam.identity_cameras(K, FRAMES)
    files.atomic_savez(root / "input/frames.npz", frames=frames, fps=FPS)
    files.atomic_savez(root / "input/depth.npz", depth=z)
    video.write_video(root / "input/video.mp4", frames, FPS)
    cam.save_cameras(root / "input/cameras.json", source, WIDTH, HEIGHT)
    scores = {"psnr": 25.25, "ssim": 0.5, "moving_psnr": None, "moving_gain": 1.5}
    made = ("tuned", "untuned") if settings.evaluate.untuned else ("tuned",)
    views = {}
    for index, view in enumerate(settings.views):
        _write_view(root, settings, view, clip(4 * index + 4)[0])
        views[view] = {"visible": 0.875, "moving": 0.1} | dict.fromkeys(made, scores)
    metrics = {"compared_with": "the warp", "views": views, "mean": dict.fromkeys(made, scores)}
    if settings.mode == "static":
        metrics |= {"met3r_is": "0 agrees", "met3r": {"tuned": {"between_views": 0.2, "with_input": 0.375}}}
    files.atomic_write_json(root / "metrics.json", metrics)
    learning = {"loss": LOSSES, "gradient_norm": [1.0] * 120, "learning_rate": [1e-5 * (120 - k) for k in range(120)]}
    files.atomic_write_json(root / "lora/losses.json", LOSSES)
    files.atomic_write_json(root / "lora/learning.json", learning)
    return root


def outputs(warp):
    brighter = np.arange(5, 5 + FRAMES)[:, None, None, None]
    return np.clip(warp + brighter, 0, 255).astype(np.uint8), np.clip(warp + 30, 0, 255).astype(np.uint8)


def _write_view(root, settings, view, warp):
    at = {name: root / view_file(view, name) for name in
          ("warp.npz", "warp.mp4", "frames.npz", "video.mp4", "untuned.npz", "cameras.json")}  # fmt: skip
    motion = parse_view("left:8" if "/" in view else view)
    path = view_cameras(motion, K, 4.0, FRAMES, settings.mode)
    visible = np.ones(warp.shape[:3], bool)
    visible[:, :, -8:] = False
    warp = np.clip(warp, 0, 200)  # so that what is brighter is not clipped
    tuned, untuned = outputs(warp.astype(int))
    files.atomic_savez(at["warp.npz"], frames=warp, visible=visible)
    files.atomic_savez(at["frames.npz"], frames=tuned)
    video.write_video(at["warp.mp4"], warp, FPS)
    video.write_video(at["video.mp4"], tuned, FPS)
    cam.save_cameras(at["cameras.json"], path, WIDTH, HEIGHT, 4.0)
    if settings.evaluate.untuned:
        files.atomic_savez(at["untuned.npz"], frames=untuned)
    if settings.mode == "static":
        pictures.write_png(root / view_file(view, "first_warp.png"), warp[0], visible[0])
        pictures.write_png(root / view_file(view, "first_frame.png"), tuned[0])
        before = {} if view == settings.views[0] else MET3R
        before = before if before else {"input": MET3R["input"]}
        steps = [{"step": step, "scores": [[0.5 + 0.01 * step], [0.4]], "kept": 0} for step in (2, 4, 6)]
        record = {"painted": 0.1875, "steps": steps, "compared_with": list(before), "met3r": before}
        files.atomic_write_json(root / view_file(view, "first_frame.json"), record)


def enter(root, settings):
    """run.json, as a run that has come so far leaves it."""
    took = {"seconds": 90.0, "peak_host_bytes": 3 << 29, "peak_device_bytes": None, "sampled_device_bytes": None}
    entry = {"depends": {}, "outputs": {}, **took}
    stages = {"ingest/frames": entry, "finetune": entry}
    for view in settings.views:
        paths = {view_file(view, name): "sha256:0" for name in ("frames.npz", "cameras.json")}
        stages[f"generate/{folder_name(view)}"] = entry | {"outputs": paths}
    record = {
        "format": 1, "stages": stages, "settings": config.flatten(settings),
        "versions": {"reangle_jax": "0.1.0", "jax": "0.10.2"}, "command": f"reangle --config.caption='{HOSTILE}'",
        "devices": {"platform": "cpu", "kind": "cpu", "count": 2, "processes": 1},
    }  # fmt: skip
    files.atomic_write_json(root / "run.json", record)
    return root


@contextlib.contextmanager
def plan_in_place():
    """A plan that is made up too: finetune takes 42 s and 2.5 GiB."""
    needs = {"finetune": Needs({"train": 2.5 * 2**30}, 42e9)}
    with mock.patch.object(plan, "estimate", return_value=needs), mock.patch.object(plan, "rate", return_value=1e9):
        yield
