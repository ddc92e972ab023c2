"""What a run says of its videos beside the warps: a clip in which nothing moves, and one in which a square jumps."""

import logging

import numpy as np
import pytest

from reangle_jax import config
from reangle_jax.data import files
from reangle_jax.stages import evaluate


@pytest.mark.parametrize("moves", [True, False])
def test_a_clip_in_which_nothing_moves_is_called_so(tmp_path, caplog, monkeypatch, moves):
    caplog.set_level(logging.INFO)
    settings = config.parse(config.get_tiny().to_dict() | {"video": "v.mp4", "views": ("left:8",), "num_frames": 5})
    frames = np.random.default_rng(0).integers(90, 110, (1, 32, 32, 3)).astype(np.uint8).repeat(5, axis=0)
    if moves:
        frames[3, 10:20, 10:20] = 255
    seen = np.ones(frames.shape[:3], bool)
    monkeypatch.setattr(evaluate, "_frozen", lambda folder, view: (frames[:1].repeat(5, axis=0), seen))
    view = tmp_path / "views/left_8"
    files.atomic_savez(view / "warp.npz", frames=frames, visible=seen)
    files.atomic_savez(view / "frames.npz", frames=frames - np.uint8(1))
    found = evaluate._metrics(settings, tmp_path)
    said = next(record.getMessage() for record in caplog.records if "against the warps" in record.getMessage())
    assert "unknown" not in said
    assert said.endswith("; nothing moves") != moves
    assert (found["mean"]["tuned"]["moving_gain"] is not None) == moves
