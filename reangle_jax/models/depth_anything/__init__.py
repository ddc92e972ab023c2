"""Depth Anything V2: depth of single images and of videos."""

from reangle_jax.models.depth_anything.config import DepthAnythingConfig
from reangle_jax.models.depth_anything.model import DepthAnything
from reangle_jax.models.depth_anything.video import estimate_video_depth, input_size, preprocess

__all__ = ["DepthAnything", "DepthAnythingConfig", "estimate_video_depth", "input_size", "preprocess"]
