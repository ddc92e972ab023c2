"""I3D: what happens in a short video, as 400 numbers."""

from reangle_jax.models.i3d.config import I3DConfig
from reangle_jax.models.i3d.model import I3D

__all__ = ["I3D", "I3DConfig"]
