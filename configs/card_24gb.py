r"""Dynamic camera control on one 24 GB GPU (RTX 3090, 4090, L4, A10): CogVideoX-1.5-5B-I2V, LoRA of rank 64.

Purpose: configs/dynamic.py needs 19.1 to 23.4 GiB by `--plan`'s arithmetic, and CogVideoX-5B-I2V can have no smaller
clips; --config.base_dtype=int8 brings it to 13.9 to 18.2 GiB. The 1.5 model packs two latent frames into a token: half
the tokens for the same clip, 49 frames of 480 x 720.
Cost: 17.5 GiB for fine-tuning and 11.7 GiB for sampling, computed and not measured; `--plan` says what fits the card at
hand. Still too much: --config.num_frames=33 (15.9 GiB).
Needs the converted weights (licences in README):

    python -m converters cogvideox1.5-5b-i2v --source THUDM/CogVideoX1.5-5B-I2V --out weights/cogvideox1.5-5b-i2v
    python -m converters depth-anything-v2-large --source DIR_OR_FILE --out weights/cogvideox1.5-5b-i2v

Command; without the variable JAX takes three quarters of the card and no more:

    export XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
    python -m reangle_jax.main --config configs/card_24gb.py --workdir runs/mine \
        --config.video=clip.mp4 --config.caption="what the clip shows"

Expect: runs/mine/grid.mp4, metrics.json, views/NAME/video.mp4, and the adapters in runs/mine/lora. The model was made
for 768 x 1360, and what it is worth at this size was not tried. FLUX.1-dev (static mode) needs 32 GiB: it does not fit.
"""

import ml_collections

from reangle_jax.config import get_default


def get_config() -> ml_collections.ConfigDict:
    """Settings for any clip; `video` must be given."""
    c = get_default()
    c.model = "cogvideox1.5-5b-i2v"
    c.vae_tiles = "on"  # whole frames would take 13 GiB, which fits, but beside little else
    c.update_from_flattened_dict({"finetune.rank": 64, "finetune.alpha": 64.0})
    return c
