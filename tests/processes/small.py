"""The inputs of one small run that several processes share."""

import textwrap
from pathlib import Path

import numpy as np

from reangle_jax.data import video
from tests.networks import FRAMES, HEIGHT, WIDTH

STEPS = 8


def write_inputs(folder: Path, weights: Path) -> Path:
    """A clip with its depth, and a config of the very small networks; returns the config."""
    rng = np.random.default_rng(0)
    texture = rng.integers(60, 200, (HEIGHT // 4, WIDTH // 4, 3)).astype(np.uint8)
    frames = np.stack([np.kron(texture, np.ones((4, 4, 1), np.uint8))] * FRAMES)
    depth = np.full(frames.shape[:3], 4.0, np.float32)
    for t in range(FRAMES):
        box = (t, slice(20, 40), slice(10 + 4 * t, 30 + 4 * t))
        frames[box], depth[box] = (220, 60, 40), 2.0
    video.write_video(folder / "clip.mp4", frames, 8)
    np.save(folder / "depth.npy", depth)
    config = folder / "config.py"
    config.write_text(
        textwrap.dedent(f"""
        from reangle_jax.config import get_default
        def get_config():
            c = get_default()
            c.video, c.depth, c.depth_kind = {str(folder / "clip.mp4")!r}, {str(folder / "depth.npy")!r}, "metric"
            c.caption = "a red box"
            c.num_frames, c.height, c.width = {FRAMES}, {HEIGHT}, {WIDTH}
            c.model, c.weights = "tiny", {str(weights)!r}
            c.views, c.train_views = ("left:8",), ("left:8",)
            c.mesh = "data:2,u:4"
            c.update_from_flattened_dict({{
                "finetune.steps": {STEPS}, "finetune.rank": 8, "finetune.alpha": 8.0, "finetune.batch_size": 2,
                "finetune.checkpoint_every": 2, "finetune.moving_weight": 4.0, "sample.steps": 2,
            }})
            return c
        """)
    )
    return config
