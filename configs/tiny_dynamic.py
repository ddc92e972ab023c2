r"""Any clip along six camera paths, with the small family of models.

Purpose: to try one's own clip at a small size before paying for the full one; the warps (--preview) are made as at full
size, from a smaller depth network.
Cost: 8 to 9 minutes on two CPU cores, most of them fine-tuning.
Command:

    python -m reangle_jax.main --config configs/tiny_dynamic.py --workdir runs/mine \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Useful besides: --config.start=30 (begin there), --config.fps=8 (calmer clips: take fewer frames a second),
--config.views=left:15,up:5+in:0.1 (other paths), --preview (depth and warps only, in seconds).
Expect: runs/mine/grid.mp4, metrics.json, and views/NAME/video.mp4, 17 frames of 128 x 192.
"""

import ml_collections

from reangle_jax.config import get_tiny


def get_config() -> ml_collections.ConfigDict:
    """Settings for any clip; `video` must be given."""
    return get_tiny()
