"""The demo of static view transport: the bundled clip as four cameras that stand elsewhere see it, by the small models.

Purpose: to see the whole method at work on any laptop; `make demo-static` runs it.
Cost: 13 minutes on two CPU cores; `--plan` says what is left to do.
Command, from the repository's root:

    python -m reangle_jax.main --config configs/demo_static.py --workdir runs/demo-static

Expect: runs/demo-static/grid.mp4, the input and, for each view, its warp above the model's video; in views/NAME/
first_warp.png (transparent where the input saw nothing) and first_frame.png, in which that is painted; metrics.json
with MEt3R between the views.
"""

from pathlib import Path

import ml_collections

from reangle_jax.config import get_tiny


def get_config() -> ml_collections.ConfigDict:
    """The demo's settings."""
    c = get_tiny()
    c.mode = "static"
    c.video = str(Path(__file__).parent.parent / "assets" / "demo.mp4")
    c.caption = "a woman walks past a man who stands on a block"
    c.fps = 15.0  # every frame of the clip, which is slow motion: 17 of its 61
    return c
