"""Which layers LPIPS's networks have: torchvision's classifiers, cut where LPIPS taps them."""

import dataclasses
from typing import NamedTuple


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

    Raises:
        ValueError: there is no such backbone, or the divisor does not divide its widths.
    """

    # ``alex`` (AlexNet; the authors' choice for comparing images), ``vgg`` (VGG16) or ``squeeze`` (SqueezeNet 1.1).
    backbone: str = "alex"
    divisor: int = 1  # of every layer's width; 1 is as published, 16 the smallest network there is
    param_dtype: str = "float32"  # what is stored

    def __post_init__(self):
        if self.backbone not in _BACKBONES:
            raise ValueError(f"backbone={self.backbone!r}: there are {', '.join(_BACKBONES)}")
        if self.divisor < 1 or 16 % self.divisor:
            raise ValueError(f"divisor={self.divisor}: must divide 16")

    @property
    def stages(self) -> Stages:
        """The layers from each tap to the next."""
        return tuple(tuple(_narrowed(layer, self.divisor) for layer in stage) for stage in _BACKBONES[self.backbone])

    @property
    def smallest_side(self) -> int:
        """Pixels per side below which the last tap sees nothing."""
        side = 1
        for layer in (layer for stage in reversed(self.stages) for layer in reversed(stage)):
            if isinstance(layer, Convolution):
                side = max(1, (side - 1) * layer.stride + layer.kernel - 2 * layer.padding)
            elif isinstance(layer, Pooling):
                side = 2 * (side - 1) + layer.window - layer.ceil
        return side


def _narrowed(layer: Layer, divisor: int) -> Layer:
    if isinstance(layer, Convolution):
        return layer._replace(width=layer.width // divisor)
    if isinstance(layer, Squeezing):
        return Squeezing(layer.squeezed // divisor, layer.expanded // divisor)
    return layer


def windows(side: int, layer: Pooling) -> int:
    """How many windows of a pooling fit along a side."""
    return (side - layer.window + (1 if layer.ceil else 0)) // 2 + 1
