"""The demo: the bundled real clip along six camera paths, with the small family of models.

Purpose: to see the whole method at work on any laptop; `make demo` runs it.
Cost: meant for under 10 minutes on two CPU cores; README has what was measured, `--plan` what is left to do.
Command, from the repository's root:

    python -m reangle_jax.main --config configs/demo.py --workdir runs/demo

Expect: runs/demo/grid.mp4, the input and, for each path, its warp (black where the input saw nothing) above the
model's video; runs/demo/metrics.json with the likeness to the warps of the tuned model and, to compare, of the untuned
one; a video for each path in runs/demo/views/.
"""

from pathlib import Path

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """The demo's settings."""
    c = get_default()
    c.video = str(Path(__file__).parent.parent / "assets" / "demo.mp4")
    c.caption = "A woman walks past a man sitting on a block, a large tree stands in front."
    c.model = "tiny"
    c.num_frames, c.height, c.width = 17, 128, 192  # what the tiny model's position table was made for
    c.update_from_flattened_dict(
        {
            "finetune.steps": 200,
            "finetune.rank": 16,
            "finetune.alpha": 16.0,
            "finetune.learning_rate": 1e-3,
            "sample.steps": 20,
            "evaluate.untuned": True,
        }
    )
    return c
