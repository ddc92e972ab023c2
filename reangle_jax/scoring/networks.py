"""The metric's two networks from a folder of converted weights, or the packaged small ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx

from reangle_jax import checkpoints, tiny
from reangle_jax.data.weights_folder import check_whole
from reangle_jax.errors import InputError
from reangle_jax.models.dino import DinoConfig, FeatUp, FeatUpConfig, VisionTransformer
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.scoring.met3r import Met3r

TINY = "tiny"
# Folder of each network under the weights, as the converter names it. FeatUp upsamples by the image's edges, as
# published; the features of the others are upsampled bilinearly.
GEOMETRY, PUBLISHED = "dust3r", "featup"
FEATURES: dict[str, tuple[type, Callable[..., nnx.Module]]] = {
    "featup": (FeatUpConfig, FeatUp),
    "dino": (DinoConfig, VisionTransformer),
    "dinov2": (DinoConfig, VisionTransformer),
}


def resolve(folder: str | Path) -> Path:
    """The folder that a setting names: `tiny` is the packaged small family's."""
    return tiny.WEIGHTS if folder == TINY else Path(folder)


def features_in(folder: Path) -> str | None:
    """Which feature network lies in a folder of weights; the first of `FEATURES` where several do."""
    return next((name for name in FEATURES if (folder / name).is_dir()), None)


def default_size(folder: str | Path) -> int:
    """Pixels per side at which pictures are compared: what the networks were trained for."""
    return 128 if str(folder) == TINY else 256


def load(folder: str | Path, features: str = PUBLISHED) -> tuple[Met3r, tuple[Any, Any]]:
    """The metric and its parameters, from `tiny` or a folder with ``dust3r/`` and one named as the features.

    The features are upsampled by the image's edges, as published (``featup``), or bilinearly (``dino``, ``dinov2``).

    Raises:
        InputError: a part is missing, damaged or of another kind.
    """
    folder = resolve(folder)
    parts = {GEOMETRY: (Dust3rConfig, Dust3r), features: FEATURES[features]}
    for name in parts:  # all of them, before the first is read
        if not (folder / name).is_dir():
            raise InputError(f"{folder / name} is missing: {_mend(folder, name, features)}")
        check_whole(folder / name)
    geometry, semantics = (nnx.split(load_part(folder / name, *part)) for name, part in parts.items())
    return Met3r(geometry[0], semantics[0]), (geometry[1], semantics[1])


def load_part(folder: Path, config_class: type, network: Callable[..., Any], converter: str = "--list") -> Any:
    """A network with its converted weights, WEIGHTS/PART, in either form of `checkpoints`.

    The converter makes it of the model that is named last.

    Raises:
        InputError: it is missing, damaged or of another kind.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: convert it with --out of its parent (python -m converters {converter})")
    return checkpoints.load(folder, config_class, network)


def patch_multiple(metric: Met3r, states: tuple[Any, Any]) -> int:
    """What the sides of images must be multiples of, pixels: DUSt3R's patch size."""
    geometry = nnx.merge(metric.dust3r, states[0])
    return geometry.config.patch_size


def _mend(folder: Path, name: str, features: str) -> str:
    found = features_in(folder)
    other = f"take --features={found}, which is there" if name == features and found else ""
    if folder == tiny.WEIGHTS:
        return other or "this package has no small weights for the score; give the folder of converted weights"
    if other:
        return f"convert it (`python -m converters --list`), or {other}"
    return "convert it with --out of this folder (`python -m converters --list`)"
