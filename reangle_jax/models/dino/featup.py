"""FeatUp's joint bilateral upsampler (Fu et al., 2024, arXiv 2403.10516): features at the image's own resolution."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.models.dino.config import FeatUpConfig
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear
from reangle_jax.nn.norms import LayerNorm
from reangle_jax.nn.resize import adaptive_mean_matrix, apply_separable, bicubic_matrix
from reangle_jax.nn.vit import VisionTransformer

FIXUP = 0.1  # share of the learned corrections


def _reflect(x: Array, radius: int) -> Array:
    return jnp.pad(x, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect")


class JBUStage(nnx.Module):
    """Doubles the resolution: bicubic, then an average over each pixel's neighbours that look alike in the image.

    Colours are compared in ``key_width`` channels, over a neighbourhood of ``radius`` pixels.
    """

    def __init__(self, key_width: int, radius: int, *, rngs: nnx.Rngs, dtype, param_dtype):
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        taps = (2 * radius + 1) ** 2
        self.range1 = Linear(3, key_width, rngs=rngs, **dtypes)
        self.range2 = Linear(key_width, key_width, rngs=rngs, **dtypes)
        self.log_temperature = nnx.Param(jnp.zeros((1,), param_dtype), axes=(None,))
        self.sigma = nnx.Param(jnp.ones((1,), param_dtype), axes=(None,))
        self.fixup1 = Linear(taps + 3, taps, rngs=rngs, **dtypes)
        self.fixup2 = Linear(taps, taps, rngs=rngs, **dtypes)
        self.radius = radius

    def kernel(self, guidance: Float[Array, "B H W 3"]) -> Float[Array, "B H W K"]:
        """The weights of every pixel's neighbours, row by row, K = (2 radius + 1)^2.

        They come from likeness in colour times nearness, add up to 1, and are then corrected by a learned share.
        """
        keys = self.range2(jax.nn.gelu(self.range1(guidance), approximate=False)).astype(jnp.float32)
        height, width = keys.shape[1:3]
        padded = _reflect(keys, self.radius)
        offsets = jnp.arange(2 * self.radius + 1)

        def row(_, dy):
            band = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=1)
            return None, jnp.stack([jnp.sum(band[:, :, k : k + width] * keys, -1) for k in range(len(offsets))], -1)

        _, likeness = jax.lax.scan(row, None, offsets)  # [rows, B, H, W, columns]
        likeness = jnp.moveaxis(likeness, 0, 3).reshape(*keys.shape[:3], -1)
        temperature = jnp.clip(jnp.exp(self.log_temperature[0].astype(jnp.float32)), 1e-4, 1e4)
        weights = jax.nn.softmax(temperature * likeness, axis=-1)
        place = jnp.square(jnp.linspace(-1.0, 1.0, len(offsets)))
        sigma = self.sigma[0].astype(jnp.float32)
        nearness = jnp.exp(-(place[:, None] + place[None, :]) / (2.0 * jnp.square(sigma))).reshape(1, 1, 1, -1)
        weights = weights * nearness
        weights = weights / jnp.maximum(jnp.sum(weights, -1, keepdims=True), 1e-7)
        joined = jnp.concatenate([weights, guidance.astype(jnp.float32)], axis=-1)
        fixup = self.fixup2(jax.nn.gelu(self.fixup1(joined), approximate=False))
        return weights + FIXUP * fixup.astype(jnp.float32)

    def __call__(self, x: Float[Array, "B h w C"], guidance: Float[Array, "B H W 3"]) -> Float[Array, "B H W C"]:
        """Upsamples to the guidance's resolution."""
        height, width = guidance.shape[1:3]
        weights = self.kernel(guidance)
        large = apply_separable(x, bicubic_matrix(x.shape[1], height), bicubic_matrix(x.shape[2], width))
        padded = _reflect(large, self.radius)
        size = 2 * self.radius + 1
        weights = jnp.moveaxis(weights.reshape(*weights.shape[:3], size, size), 3, 0)

        # One row of the kernel at a time: all neighbours of all pixels at once would be 49 copies of the features.
        def row(total, operands):
            dy, weights = operands
            band = jax.lax.dynamic_slice_in_dim(padded, dy, height, axis=1)
            terms = [band[:, :, k : k + width] * weights[..., k : k + 1] for k in range(size)]
            return total + sum(terms), None

        total, _ = jax.lax.scan(row, jnp.zeros_like(large), (jnp.arange(size), weights))
        return total.astype(x.dtype)


class JBUStack(nnx.Module):
    """Stages that double the resolution, and a learned correction at the end."""

    def __init__(self, config: FeatUpConfig, execution: Execution, *, rngs: nnx.Rngs):
        dtypes = execution.dtypes(config.param_dtype)
        stages = [JBUStage(config.key_width, config.radius, rngs=rngs, **dtypes) for _ in range(config.stages)]
        self.stages = nnx.List(stages)
        self.fixup = Linear(config.width, config.width, rngs=rngs, **dtypes)

    def __call__(self, x: Float[Array, "B h w C"], guidance: Float[Array, "B H W 3"]) -> Float[Array, "B u v C"]:
        """Features of ``2**stages`` times the resolution, guided by the image of any size (MEt3R: values 0 to 1)."""
        for stage in self.stages:
            rows, columns = 2 * x.shape[1], 2 * x.shape[2]
            matrices = adaptive_mean_matrix(guidance.shape[1], rows), adaptive_mean_matrix(guidance.shape[2], columns)
            x = stage(x, apply_separable(guidance, *matrices))
        return x + FIXUP * self.fixup(x)


class FeatUp(nnx.Module):
    """A backbone and its upsampler."""

    def __init__(self, config: FeatUpConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        dtypes = execution.dtypes(config.param_dtype)
        self.backbone = VisionTransformer(config, execution=execution, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=1e-5, **dtypes) if config.use_norm else None
        self.upsampler = JBUStack(config, execution, rngs=rngs)
        self.config = config

    def features(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Features of patches, as the upsampler takes them, of normalised images (see `normalise`)."""
        x = self.backbone.features(images)
        return x if self.norm is None else self.norm(x)

    def __call__(
        self, images: Float[Array, "B H W 3"], guidance: Float[Array, "B H2 W2 3"] | None = None
    ) -> Float[Array, "B u v C"]:
        """Features of pixels.

        Args:
            images: normalised (see `normalise`); sides are multiples of the patch size.
            guidance: what tells the upsampler where edges are; ``images`` by default, as FeatUp does. MEt3R gives the
                images before normalisation.

        Returns:
            Features at ``2**stages`` times the patches' resolution: the image's own for patches of 16 and four stages.
        """
        return self.upsampler(self.features(images), images if guidance is None else guidance)
