r"""A fast look at any clip: two camera paths, a quarter of the fine-tuning, with the small family of models.

Purpose: to see within minutes what the method makes of one's own clip; configs/tiny_dynamic.py is the same, done well.
Cost: some 2 minutes on two CPU cores (2.3 of processor time were measured with an earlier family); `--plan`
says what is left to do.
Command:

    python -m reangle_jax.main --config configs/fast_look.py --workdir runs/look \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Useful besides: --preview (depth and warps only, in seconds), --config.views=up:8,in:0.15 (two other paths).
Expect: runs/look/grid.mp4, metrics.json, and views/NAME/video.mp4, 17 frames of 128 x 192: blurred where things move
fast, and further from the warps than with all steps (20.5 dB on the bundled clip, where the demo had 24.0, both
with an earlier family and more steps of sampling).
"""

import ml_collections

from reangle_jax.config import get_tiny


def get_config() -> ml_collections.ConfigDict:
    """Settings for any clip; `video` must be given."""
    c = get_tiny()
    c.views = ("left:10", "right:10")
    c.train_views = ("left:10", "right:10")  # no other path is to be learnt
    c.update_from_flattened_dict({"finetune.steps": 250})
    return c
