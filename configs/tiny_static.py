r"""Any clip as four cameras that stand elsewhere see it, with the small family of models.

Purpose: to try one's own clip at a small size before paying for the full one.
Cost: as the demo's, 11 minutes on two CPU cores.
Command:

    python -m reangle_jax.main --config configs/tiny_static.py --workdir runs/mine \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Useful besides: --config.views=left:12,up:6+right:4 (other places; they need not be trained on), --preview (depth and
warps only, in seconds), --config.edit.caption="..." (another first frame).
Expect: runs/mine/grid.mp4, metrics.json, and in views/NAME/ first_warp.png, first_frame.png and video.mp4, 17 frames
of 128 x 192.
"""

import ml_collections

from reangle_jax.config import get_tiny


def get_config() -> ml_collections.ConfigDict:
    """Settings for any clip; `video` must be given."""
    c = get_tiny()
    c.mode = "static"
    return c
