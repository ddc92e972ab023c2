"""LPIPS, the perceptual distance of two images (Zhang et al., 2018, arXiv 1801.03924), version 0.1.

Both images go through a classifier's convolutions; at five to seven depths the features are normalised over channels,
and the squared differences are weighted by a learned, non-negative factor a channel, averaged over the image and added.

It is written here because the ports on PyPI (jaxlpips 1.2.0 and lpips-nnx 0.1.0, both MIT) download their weights when
they are built and take none from a folder, have two of the three backbones or one, and would add a download client to
what every installation needs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from reangle_jax.errors import TooSmallError
from reangle_jax.models.lpips.config import Convolution, LpipsConfig, Pooling, Squeezing, windows
from reangle_jax.nn.conv import Conv2D
from reangle_jax.nn.execution import Execution

# What the published heads were trained with: colours of -1 to 1, less this mean, over this deviation.
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_TINY = 1e-30  # of a squared length: far below what _EPSILON lets through


def _pooled(x: Array, layer: Pooling) -> Array:
    over = [max(0, 2 * (windows(side, layer) - 1) + layer.window - side) for side in x.shape[1:3]]
    padding = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
    window = (1, layer.window, layer.window, 1)
    return lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, window, (1, 2, 2, 1), padding)


class Fire(nnx.Module):
    """SqueezeNet's module (Iandola et al., 2016, arXiv 1602.07360): a narrow 1x1 layer, then 1x1 and 3x3 side by side.

    The output has twice ``layer.expanded`` channels.
    """

    def __init__(self, in_features: int, layer: Squeezing, *, rngs: nnx.Rngs, dtypes: dict[str, Any]):
        self.squeeze = Conv2D(in_features, layer.squeezed, 1, rngs=rngs, **dtypes)
        self.expand1 = Conv2D(layer.squeezed, layer.expanded, 1, rngs=rngs, **dtypes)
        self.expand3 = Conv2D(layer.squeezed, layer.expanded, 3, padding=1, rngs=rngs, **dtypes)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W out"]:
        """Applies it, but for the last ReLU."""
        x = jax.nn.relu(self.squeeze(x))
        return jnp.concatenate([self.expand1(x), self.expand3(x)], axis=-1)


class Lpips(nnx.Module):
    """The distance: the backbone's convolutions (``layers``) and a factor a channel at every tap (``heads``).

    The convolutions are computed as the execution says, distances always in float32.
    """

    def __init__(self, config: LpipsConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        dtypes = execution.dtypes(config.param_dtype)
        layers, heads, width = [], [], 3
        for stage in config.stages:
            for layer in stage:
                if isinstance(layer, Convolution):
                    padding, stride = layer.padding, layer.stride
                    layers.append(
                        Conv2D(width, layer.width, layer.kernel, stride=stride, padding=padding, rngs=rngs, **dtypes)
                    )
                    width = layer.width
                elif isinstance(layer, Squeezing):
                    layers.append(Fire(width, layer, rngs=rngs, dtypes=dtypes))
                    width = 2 * layer.expanded
            heads.append(nnx.Param(jnp.full((width,), 1.0 / width, dtypes["param_dtype"]), axes=(None,)))
        self.layers = nnx.List(layers)
        self.heads = nnx.List(heads)
        self.config = config

    def features(self, images: Float[Array, "B H W 3"]) -> list[Float[Array, "B _ _ _"]]:
        """What the backbone sees at every tap, after its ReLU, in images of values 0 to 1."""
        mean, deviation = (jnp.asarray(x, images.dtype).reshape(1, 1, 1, 3) for x in (_MEAN, _DEVIATION))
        x = (2.0 * images - 1.0 - mean) / deviation
        modules = iter(self.layers)
        taps = []
        for stage in self.config.stages:
            for layer in stage:
                x = _pooled(x, layer) if isinstance(layer, Pooling) else jax.nn.relu(next(modules)(x))
            taps.append(x)
        return taps

    def __call__(self, images1: Float[Array, "B H W 3"], images2: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
        """The distance of each pair of RGB images, values 0 to 1: about 0 for equal ones; larger the less alike.

        Raises:
            TooSmallError: a side is below ``config.smallest_side``.
        """
        least = self.config.smallest_side
        if min(images1.shape[1:3]) < least:
            height, width = images1.shape[1:3]
            raise TooSmallError(f"{self.config.backbone} needs sides of {least} pixels or more, not {width}x{height}")
        total = jnp.zeros(images1.shape[:1], jnp.float32)
        for head, x in zip(self.heads, self.features(jnp.concatenate([images1, images2])), strict=True):
            first, second = jnp.split(_unit(x.astype(jnp.float32)), 2)
            factors = head[...].astype(jnp.float32).reshape(1, 1, 1, -1)
            total = total + jnp.mean(jnp.sum(jnp.square(first - second) * factors, axis=-1), axis=(1, 2))
        return total


def _unit(x: Array) -> Array:
    # The root of 0 has no finite slope: the maximum keeps gradients finite where no channel responds.
    length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), _TINY))
    return x / (length + _EPSILON)
