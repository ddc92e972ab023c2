r"""A set of cameras that stand still, for 4D reconstruction: seven views beside the input, with the paper's models.

Purpose: synchronised videos, 49 frames of 480 x 720, from an arc of cameras up to 10 degrees to each side, two of them
raised, and one above: what 4DGaussians and its like read as a rig of cameras.
Cost: as configs/static.py, with seven first frames and videos in place of four; `--plan` computes time and memory for
the device at hand. Needs the same converted weights.
Command, and then the data set (docs/export.md goes on from there):

    python -m reangle_jax.main --config configs/static_for_4d.py --workdir runs/set \
        --config.video=clip.mp4 --config.caption="what the clip shows"
    python -m reangle_jax.export runs/set --format multipleview --with-input --out data/multipleview/set

Useful besides: --config.source_cameras=FILE (a camera that moved while it filmed: docs/cameras.md),
--config.first_frames.candidates=1 (a fraction of the time, and views that agree less).
The same with the small models, on a CPU: configs/tiny_static.py and
--config.views=left:10,left:5,right:5,right:10,up:8,left:7+up:5,right:7+up:5.
Expect: runs/set/views/NAME/video.mp4, and in metrics.json MEt3R between the views: where they do not agree, a
reconstruction blurs. All views see one side of the scene, and a reconstruction holds between them only.
"""

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """Settings for any clip; `video` must be given."""
    c = get_default()
    c.mode = "static"
    c.views = ("left:5", "right:5", "left:10", "right:10", "left:7+up:5", "right:7+up:5", "up:8")
    return c
