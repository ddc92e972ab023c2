r"""Static view transport at full size with a fifth of the search: configs/static.py, five candidates in place of 25.

Purpose: four videos in step with the input, as of configs/static.py, where the first frames shall not cost most.
Cost: 6.4 in place of 30 PFLOP for each first frame, 0.3 in place of 1.2 minutes of an H100 (`--plan`); the rest is the
same. With the small family on rendered scenes five candidates keep seven tenths of what 25 gain in MEt3R between the
views, and all of PSNR in the holes ("What the search is worth" in docs/static.md); at full size it was not measured.
Command, with the weights that configs/static.py names:

    python -m reangle_jax.main --config configs/static_fast.py --workdir runs/mine \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Expect: as of configs/static.py; views/NAME/first_frame.json tells every choice.
"""

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """The paper's settings, but for the candidates; `video` must be given."""
    c = get_default()
    c.mode = "static"
    c.update_from_flattened_dict({"first_frames.candidates": 5})
    return c
