"""DUSt3R and MASt3R: two images to point maps in the first one's camera."""

from reangle_jax.models.dust3r.config import Dust3rConfig
from reangle_jax.models.dust3r.heads import View
from reangle_jax.models.dust3r.model import Dust3r
from reangle_jax.models.dust3r.preprocess import input_size, preprocess

__all__ = ["Dust3r", "Dust3rConfig", "View", "input_size", "preprocess"]
