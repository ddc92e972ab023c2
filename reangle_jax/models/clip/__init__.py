"""CLIP's image towers: a picture as a vector; and how well people would like it, which is linear in that."""

from reangle_jax.models.clip.image import Aesthetic, AestheticConfig, ClipImage, ClipImageConfig

__all__ = ["Aesthetic", "AestheticConfig", "ClipImage", "ClipImageConfig"]
