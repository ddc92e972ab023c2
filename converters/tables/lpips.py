"""LPIPS: torchvision's classifiers with the learned factors beside them, and the two together as lpips keeps them.

The names are derived from the layers that `reangle_jax.models.lpips` runs.
"""

from collections.abc import Iterator

from converters.rules import CONV2D, Rule, Table, Transform
from converters.tables.common import affine
from reangle_jax.models.lpips.config import Layer, LpipsConfig, Pooling, Squeezing

HEAD = Transform("head", lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])  # [1, C, 1, 1] -> [C]
# Entries of torchvision's `classifier` with weights; nothing of it is used.
_CLASSIFIERS = {"alex": (1, 4, 6), "vgg": (0, 3, 6), "squeeze": (1,)}


def _convolutions(config: LpipsConfig) -> Iterator[tuple[int, int, Layer]]:
    """Stage, position in torchvision's `features`, and layer, in the order of our ``layers``."""
    position = 0
    for stage, layers in enumerate(config.stages):
        for layer in layers:
            if not isinstance(layer, Pooling):
                yield stage, position, layer
            # A convolution's ReLU is an entry of its own; pools and SqueezeNet's modules are one.
            position += 1 if isinstance(layer, Pooling | Squeezing) else 2


def _layer(source: str, target: str, layer: Layer) -> list[Rule]:
    if not isinstance(layer, Squeezing):
        return affine(source, target, CONV2D)
    names = {"squeeze": "squeeze", "expand1x1": "expand1", "expand3x3": "expand3"}
    return [rule for theirs, ours in names.items() for rule in affine(f"{source}.{theirs}", f"{target}.{ours}", CONV2D)]


def _heads(config: LpipsConfig) -> list[Rule]:
    return [Rule(f"lin{k}.model.1.weight", f"heads.{k}", HEAD) for k in range(len(config.stages))]


def torchvision(config: LpipsConfig) -> Table:
    """Torchvision's file (``alexnet-7be5be79.pth``) and lpips' (``alex.pth``) together."""
    rules = _heads(config)
    for k, (_, position, layer) in enumerate(_convolutions(config)):
        rules += _layer(f"features.{position}", f"layers.{k}", layer)
    classifier = _CLASSIFIERS[config.backbone]
    return Table(rules, tuple(f"classifier.{k}.{name}" for k in classifier for name in ("weight", "bias")))


def whole(config: LpipsConfig) -> Table:
    """The ``state_dict`` of lpips' own module, which has the factors twice, and the constants of its scaling."""
    rules = _heads(config)
    for k, (stage, position, layer) in enumerate(_convolutions(config)):
        rules += _layer(f"net.slice{stage + 1}.{position}", f"layers.{k}", layer)
    return Table(rules, ("lins.{k}.model.1.weight", "scaling_layer.shift", "scaling_layer.scale"))
