"""DINO: features of image patches; FeatUp: those features at the image's own resolution."""

from reangle_jax.models.dino.config import DinoConfig, FeatUpConfig
from reangle_jax.models.dino.featup import FeatUp, JBUStack, JBUStage
from reangle_jax.nn.colours import normalise
from reangle_jax.nn.vit import VisionTransformer

__all__ = ["DinoConfig", "FeatUp", "FeatUpConfig", "JBUStack", "JBUStage", "VisionTransformer", "normalise"]
