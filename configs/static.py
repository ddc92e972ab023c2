r"""Static view transport at full size: the paper's settings with CogVideoX-5B-I2V and FLUX.1-dev.

Purpose: four videos of 49 frames of 480 x 720, in step with the input, from cameras that stand 8 degrees to its left,
its right and above it, and 12 % nearer.
Cost: 400 steps of fine-tuning on the input and twelve warps; for each view a first frame of 50 steps, three in four of
which choose among 25 candidates, and 40 steps of sampling. `--plan` computes time and memory for the device at hand.
Needs the converted weights (licences in README; FLUX.1-dev's is non-commercial):

    python -m converters cogvideox-5b-i2v --source CogVideoX-5b-I2V --out weights/cogvideox-5b-i2v
    python -m converters depth-anything-v2-large --source DIR_OR_FILE --out weights/cogvideox-5b-i2v
    python -m converters flux.1-dev --source FLUX.1-dev --out weights/flux.1-dev
    python -m converters flux.1-dev-controlnet-inpainting-beta --source DIR_OR_FILE --out weights/flux.1-dev
    python -m converters dust3r-512-dpt --source DIR_OR_FILE --out weights/flux.1-dev
    python -m converters featup-dino16 --source DIR_OR_FILE --out weights/flux.1-dev

Command:

    python -m reangle_jax.main --config configs/static.py --workdir runs/mine \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Useful besides: --config.views=left:10,up:6+right:4 (other places), --config.first_frames.candidates=1 (each view is
painted by itself), --config.first_frames.given=DIR (your own pictures, left_8.png, for some or all of the views),
--config.edit.caption="..." (the first frame is edited before anything is made from it).
Look at views/NAME/first_warp.png and first_frame.png first: what is transparent in the one is painted in the other.
Expect: runs/mine/grid.mp4, metrics.json with MEt3R between the views, and views/NAME/video.mp4.
"""

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """The paper's settings; `video` must be given."""
    c = get_default()
    c.mode = "static"
    return c
