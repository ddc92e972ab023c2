"""LPIPS: how different two images look."""

from reangle_jax.models.lpips.config import LpipsConfig
from reangle_jax.models.lpips.model import Fire, Lpips

__all__ = ["Fire", "Lpips", "LpipsConfig"]
