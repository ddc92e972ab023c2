"""The ConfigDicts that files in configs/ start from."""

import dataclasses

import ml_collections

from reangle_jax.config.settings import Settings


def get_default() -> ml_collections.ConfigDict:
    """The defaults: the paper's, where it says. A config in configs/ changes what it needs; `video` must be given."""
    return ml_collections.ConfigDict(dataclasses.asdict(Settings()))


def get_tiny() -> ml_collections.ConfigDict:
    """The defaults for the small family: its native size, and schedules for two CPU cores."""
    c = get_default()
    c.model = "tiny"
    c.num_frames, c.height, c.width = 17, 128, 192  # what its position table was made for
    c.update_from_flattened_dict(
        {
            # A small transformer needs a higher rate and more steps for its rank than the full one; a rate that falls
            # to zero brings it further in as many.
            "finetune.steps": 1400,
            "finetune.rank": 64,
            "finetune.alpha": 64.0,
            "finetune.learning_rate": 3e-3,
            "finetune.decay": 1.0,
            # What the adapters have to remember is what is where; how it looks in detail is mostly the base's.
            "finetune.noisiest_of": 3,
            # People are a hundredth of the picture, and what it is about (docs/training/vae.md).
            "finetune.moving_weight": 8.0,
            # Further steps add detail that is not the clip's (docs/training/vae.md).
            "sample.steps": 2,
            # Black holes beside visible latents would darken the outputs' edges.
            "infill": True,
            # Guidance away from the barely trained text encoder's empty prompt does harm.
            "sample.guidance_scale": 1.0,
            "sample.dynamic_guidance": False,
            "first_frames.model": "tiny",
            # It was trained to begin at Telea's filling, and every further step blotches (docs/training/flux.md). Two
            # of four can choose: sixteen candidates a view.
            "first_frames.infill": True,
            "first_frames.strength": 0.5,
            "first_frames.steps": 4,
            "first_frames.guided": "0.0:1.0",
            "first_frames.candidates": 8,
        }
    )
    return c
