"""The demo: the bundled real clip along six camera paths, with the small family of models.

Purpose: to see the whole method at work on any laptop; `make demo` runs it.
Cost: 8 minutes on two CPU cores, most of them fine-tuning; `--plan` says what is left to do.
Command, from the repository's root:

    python -m reangle_jax.main --config configs/demo.py --workdir runs/demo

Expect: runs/demo/grid.mp4, the input and, for each path, its warp (smeared where the input saw nothing) above the
model's video; runs/demo/metrics.json with the likeness to the warps of the tuned model and, to compare, of the untuned
one; a video for each path in runs/demo/views/.
"""

from pathlib import Path

import ml_collections

from reangle_jax.config import get_tiny


def get_config() -> ml_collections.ConfigDict:
    """The demo's settings."""
    c = get_tiny()
    c.video = str(Path(__file__).parent.parent / "assets" / "demo.mp4")
    c.caption = "a woman walks past a man who stands on a block"
    c.fps = 15.0  # every frame of the clip, which is slow motion: 17 of its 61
    # Steps for which it takes less than 8 minutes; the family's own 1,400 take one more.
    c.update_from_flattened_dict({"evaluate.untuned": True, "finetune.steps": 1260})
    return c
