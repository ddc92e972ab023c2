r"""Dynamic camera control at full size: the paper's settings with CogVideoX-5B-I2V.

Purpose: six videos of 49 frames of 480 x 720, in which the camera moves left, right, up, down, in and out, each
synchronised with the input.
Cost: 400 steps of fine-tuning and six times 40 steps of sampling. The paper reports about an hour of fine-tuning on a
40 GB A100; `--plan` computes time and memory for the device at hand.
Needs the converted weights (licences in README):

    python -m converters cogvideox-5b-i2v --source CogVideoX-5b-I2V --out weights/cogvideox-5b-i2v
    python -m converters depth-anything-v2-large --source DIR_OR_FILE --out weights/cogvideox-5b-i2v

Command:

    python -m reangle_jax.main --config configs/dynamic.py --workdir runs/mine \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Look at the warps first (--preview, seconds): views/NAME/warp.mp4 must look like the scene, torn but not bent.
Expect: runs/mine/grid.mp4, metrics.json, views/NAME/video.mp4, and the adapters in runs/mine/lora.
"""

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """The paper's settings, which are the defaults; `video` must be given."""
    return get_default()
