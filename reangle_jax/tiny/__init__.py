"""The small family: the weights that come with the package (`weights/README.md`), which `training/` makes."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")
"""Holds vae/, transformer/, text_encoder/, depth/, dust3r/, featup/, flux_*/, for `reangle_jax.checkpoints`."""
