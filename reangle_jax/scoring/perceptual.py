"""LPIPS, the perceptual distance of two images (Zhang et al., 2018, arXiv 1801.03924), version 0.1.

Both images go through a classifier's convolutions; at five to seven depths the features are normalised over channels,
and the squared differences are weighted by a learned, non-negative factor a channel, averaged over the image and added.

It is written here because the ports on PyPI (jaxlpips 1.2.0 and lpips-nnx 0.1.0, both MIT) download their weights when
they are built and take none from a folder, have two of the three backbones or one, and would add a download client to
what every installation needs.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, UInt8

from reangle_jax import checkpoints, weights
from reangle_jax.errors import InputError
from reangle_jax.nn.conv import Conv2D
from reangle_jax.scoring.image import TooSmallError

FOLDER = "lpips"  # under the weights, as the converter names it
# What the published heads were trained with: colours of -1 to 1, less this mean, over this deviation.
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_TINY = 1e-30  # of a squared length: far below what _EPSILON lets through

Measure = Callable[[UInt8[np.ndarray, "B H W 3"], UInt8[np.ndarray, "B H W 3"]], Float[np.ndarray, " B"]]


class Convolution(NamedTuple):
    """A convolution and its ReLU."""

    width: int
    kernel: int
    stride: int = 1
    padding: int = 0


class Squeezing(NamedTuple):
    """SqueezeNet's module: to ``squeezed`` channels, then to ``expanded`` ones twice, by 1x1 and by 3x3."""

    squeezed: int
    expanded: int


class Pooling(NamedTuple):
    """The maximum of a window at every second pixel; with ``ceil`` a last window may reach over the edge."""

    window: int
    ceil: bool = False


Layer = Convolution | Squeezing | Pooling
Stages = tuple[tuple[Layer, ...], ...]  # a tap after each stage

_OVERLAPPING, _HALVING, _CEILED = Pooling(3), Pooling(2), Pooling(3, ceil=True)


def _vgg_convolutions(width: int, count: int) -> tuple[Layer, ...]:
    return (Convolution(width, 3, padding=1),) * count


# torchvision's `features`, cut where LPIPS taps them; what follows the last tap is left out.
_BACKBONES: dict[str, Stages] = {
    "alex": (
        (Convolution(64, 11, stride=4, padding=2),),
        (_OVERLAPPING, Convolution(192, 5, padding=2)),
        (_OVERLAPPING, Convolution(384, 3, padding=1)),
        (Convolution(256, 3, padding=1),),
        (Convolution(256, 3, padding=1),),
    ),
    "vgg": (
        _vgg_convolutions(64, 2),
        (_HALVING, *_vgg_convolutions(128, 2)),
        (_HALVING, *_vgg_convolutions(256, 3)),
        (_HALVING, *_vgg_convolutions(512, 3)),
        (_HALVING, *_vgg_convolutions(512, 3)),
    ),
    "squeeze": (
        (Convolution(64, 3, stride=2),),
        (_CEILED, Squeezing(16, 64), Squeezing(16, 64)),
        (_CEILED, Squeezing(32, 128), Squeezing(32, 128)),
        (_CEILED, Squeezing(48, 192)),
        (Squeezing(48, 192),),
        (Squeezing(64, 256),),
        (Squeezing(64, 256),),
    ),
}


@dataclasses.dataclass(frozen=True)
class LpipsConfig:
    """Which network, and how wide.

    Attributes:
        backbone: ``alex`` (AlexNet; the authors' choice for comparing images), ``vgg`` (VGG16) or ``squeeze``
            (SqueezeNet 1.1).
        divisor: of every layer's width; 1 is as published, 16 the smallest network there is.
        dtype: what the convolutions are computed in; distances are always taken in float32.
        param_dtype: what is stored.

    Raises:
        ValueError: there is no such backbone, or the divisor does not divide its widths.
    """

    backbone: str = "alex"
    divisor: int = 1
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.backbone not in _BACKBONES:
            raise ValueError(f"backbone={self.backbone!r}: there are {', '.join(_BACKBONES)}")
        if self.divisor < 1 or 16 % self.divisor:
            raise ValueError(f"divisor={self.divisor}: must divide 16")

    @classmethod
    def small(cls, backbone: str = "alex") -> "LpipsConfig":
        """For tests: a sixteenth of the published widths."""
        return cls(backbone, divisor=16)

    @property
    def stages(self) -> Stages:
        """The layers from each tap to the next."""
        return tuple(tuple(_narrowed(layer, self.divisor) for layer in stage) for stage in _BACKBONES[self.backbone])

    @property
    def smallest_side(self) -> int:
        """Pixels per side below which the last tap sees nothing."""
        layers = [layer for stage in self.stages for layer in stage]
        side = 1
        while not _reaches_the_end(side, layers):
            side += 1
        return side


def _narrowed(layer: Layer, divisor: int) -> Layer:
    if isinstance(layer, Convolution):
        return layer._replace(width=layer.width // divisor)
    if isinstance(layer, Squeezing):
        return Squeezing(layer.squeezed // divisor, layer.expanded // divisor)
    return layer


def _reaches_the_end(side: int, layers: list[Layer]) -> bool:
    for layer in layers:
        if isinstance(layer, Convolution):
            side = (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        elif isinstance(layer, Pooling):
            side = _windows(side, layer)
        if side < 1:
            return False
    return True


def _windows(side: int, layer: Pooling) -> int:
    return (side - layer.window + (1 if layer.ceil else 0)) // 2 + 1


def _pooled(x: Array, layer: Pooling) -> Array:
    over = [max(0, 2 * (_windows(side, layer) - 1) + layer.window - side) for side in x.shape[1:3]]
    padding = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
    window = (1, layer.window, layer.window, 1)
    return lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, window, (1, 2, 2, 1), padding)


class Fire(nnx.Module):
    """SqueezeNet's module (Iandola et al., 2016, arXiv 1602.07360): a narrow 1x1 layer, then 1x1 and 3x3 side by side.

    Args:
        in_features: input channels.
        layer: the widths; the output has twice ``layer.expanded`` channels.
        rngs: source of the initial values.
        dtypes: `dtype` and `param_dtype` of the convolutions.
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

    Args:
        config: which network.
        rngs: source of the initial values.
    """

    def __init__(self, config: LpipsConfig, *, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
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

    def features(self, images: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
        """What the backbone sees at every tap, after its ReLU, in images of values 0 to 1."""
        mean, deviation = (jnp.asarray(x, images.dtype).reshape(1, 1, 1, 3) for x in (_MEAN, _DEVIATION))
        x = (2.0 * images - 1.0 - mean) / deviation
        modules = iter(self.layers)
        taps = []
        # Published figures are float32's: an accelerator's default would round the factors to fewer bits.
        with jax.default_matmul_precision("highest"):
            for stage in self.config.stages:
                for layer in stage:
                    x = _pooled(x, layer) if isinstance(layer, Pooling) else jax.nn.relu(next(modules)(x))
                taps.append(x)
        return taps

    def __call__(self, images1: Float[Array, "B H W 3"], images2: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
        """The distance of each pair.

        Args:
            images1: RGB of values 0 to 1, float32.
            images2: of the same shape.

        Returns:
            0 for equal images, within round-off; larger the less they are alike; float32.

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


def measure(model: Lpips) -> Measure:
    """The distance as a compiled function of uint8 images, one compilation a shape."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any, images: Array, references: Array) -> Array:
        first, second = (x.astype(jnp.float32) / 255.0 for x in (images, references))
        return nnx.merge(graphdef, state)(first, second)

    return lambda images, references: np.asarray(run(state, images, references))


def load(folder: str | Path, *, key: str = "--weights") -> Measure:
    """The distance with converted weights.

    Args:
        folder: of the part (WEIGHTS/lpips), in either form of `checkpoints`.
        key: the setting or flag that names it, for messages.

    Raises:
        InputError: it is missing, damaged or of another kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{key}: {folder} is missing: convert it with --out of its parent (python -m converters)")
    weights.check_whole(folder, key)
    try:
        config = checkpoints.load_config(folder, LpipsConfig)
        model = checkpoints.load_into(checkpoints.abstract(lambda: Lpips(config, rngs=nnx.Rngs(0))), folder)
    except InputError as error:
        raise InputError(str(error).replace("config.weights:", f"{key}:", 1)) from None
    except ValueError as error:  # of the config itself
        raise InputError(f"{key}: {folder} describes another network ({error}); convert the weights again") from None
    return measure(model)
