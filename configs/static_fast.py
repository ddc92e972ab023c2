r"""Static view transport at full size with a ninth of the search: configs/static.py, few candidates, from the noise on.

Purpose: four videos in step with the input, as of configs/static.py, where the first frames shall not cost most.
Cost: 100 in place of 890 evaluations for each first frame, 3.3 in place of 30 PFLOP, 8 in place of 71 seconds of an
H100 (`--plan`); the rest is the same. Three candidates are drawn in each of the first half of the steps, in place of
25 in each after the first quarter. With the small family on rendered scenes that is the cheapest setting that reaches
the full search: its MEt3R between the views is +0.003 [-0.003, +0.009] from it, 86 % of the gain, and PSNR in the
holes 0.6 dB higher ("What the search is worth" in docs/static.md). At full size it was not measured.
Command, with the weights that configs/static.py names:

    python -m reangle_jax.main --config configs/static_fast.py --workdir runs/mine \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Expect: as of configs/static.py; views/NAME/first_frame.json tells every choice.
"""

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """The paper's settings, but for which steps choose and among how many; `video` must be given."""
    c = get_default()
    c.mode = "static"
    c.update_from_flattened_dict({"first_frames.candidates": 3, "first_frames.guided": "0.0:0.5"})
    return c
