r"""Long camera paths: 81 frames in which the camera travels twice as far as the paper's, with CogVideoX-1.5-5B-I2V.

Purpose: four videos of 81 frames of 480 x 720 that end 20 degrees to the left and to the right, 15 above, and at 12
degrees to the left while 30 % nearer. Trained on are warps that go half as far, too, which show more of the scene.
Cost: 21.7 GiB for fine-tuning by `--plan`'s arithmetic, which also says how long the device at hand will take; nothing
of it was measured.
Needs the converted weights (licences in README):

    python -m converters cogvideox1.5-5b-i2v --source THUDM/CogVideoX1.5-5B-I2V --out weights/cogvideox1.5-5b-i2v
    python -m converters depth-anything-v2-large --source DIR_OR_FILE --out weights/cogvideox1.5-5b-i2v

Command:

    python -m reangle_jax.main --config configs/long_path.py --workdir runs/long \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Useful besides: --config.views=paths/crane.json (a path with turns, of keyframes or of another tool: docs/cameras.md),
--config.num_frames=49 (a shorter clip).
Look at the warps first (--preview): the log says how much of the last frame each path sees. What the input never saw
the model invents, and below a half or so it has little to hold on to: go less far.
Expect: runs/long/grid.mp4, metrics.json, views/NAME/video.mp4. The model was made for 768 x 1360, and what it is worth
at this size was not tried.
"""

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """Settings for a clip of at least 81 frames; `video` must be given."""
    c = get_default()
    c.model = "cogvideox1.5-5b-i2v"
    c.num_frames = 81
    c.views = ("left:20", "right:20", "up:15", "left:12+in:0.3")
    c.train_views = (*c.views, "left:10", "right:10", "up:8", "left:6+in:0.15")
    return c
