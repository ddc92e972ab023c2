"""Depth Anything V2 (Yang et al., 2024, arXiv 2406.09414): a DINOv2 backbone and a DPT head."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.depth_anything.config import DepthAnythingConfig
from reangle_jax.models.depth_anything.dpt import DPTHead
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.vit import VisionTransformer


class DepthAnything(nnx.Module):
    """Normalised images to depth."""

    def __init__(self, config: DepthAnythingConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        self.backbone = VisionTransformer(config.backbone, execution=execution, rngs=rngs)
        self.head = DPTHead(config, execution, rngs=rngs)
        self.config = config

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B H W"]:
        """Estimates depth from images of ImageNet's mean 0 and deviation 1 (see `preprocess`), in float32.

        Relative models give inverse depth up to an unknown scale and shift, at least 0, larger is nearer; metric ones
        metres.

        Raises:
            ValueError: a side is no multiple of the patch size.
        """
        size = self.config.patch_size
        taps = self.backbone.taps(images, self.config.taps)
        depth = self.head(taps, images.shape[1] // size, images.shape[2] // size)
        if self.config.max_depth is None:
            return jax.nn.relu(depth)
        return jax.nn.sigmoid(depth) * self.config.max_depth
