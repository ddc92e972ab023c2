"""What is known of each published checkpoint: one entry a model, made of parts, each with a table a layout.

A new model is an entry in a module of ``converters.families`` and its table; nothing else changes.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from converters.rules import Table
from reangle_jax.errors import InputError

INDEX_SUFFIX = ".safetensors.index.json"
# Modules of converters.families, each with MODELS.
FAMILIES = ("cogvideox", "flux", "depth_anything", "dust3r", "dino", "lpips", "clip_image", "i3d")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which a part is published."""

    name: str  # what the report calls it
    table: Callable[[Any], Table]  # the rules, given the model's config
    mark: str  # a tensor that this layout has and no other layout of the part
    dtype: str = "float32"  # of the published tensors


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a checkpoint."""

    name: str  # its folder in our weights, one of `reangle_jax.chosen_models.parts` where a run reads it
    config: Any  # the published model's, which stands in where the source has no config.json
    network: Callable[..., nnx.Module]  # its class, called with a config and `rngs`
    layouts: Sequence[Layout]  # how it is published
    folder: str = ""  # its folder in the published pipeline
    # What the published files are called, without ``.safetensors``.
    stems: tuple[str, ...] = ("diffusion_pytorch_model", "model")
    # Files that hold the part only together, without their endings; a published file may have more behind a hyphen
    # (``alexnet-7be5be79.pth``). Empty where the weights are one publication's.
    together: tuple[str, ...] = ()
    pickled: bool = False  # whether a ``.ckpt`` of it is a pickle of arrays, and not PyTorch's
    # What of a config tells this model from its relatives: a source that differs there is another model. Other fields
    # (widths, layers) may differ, as in the small family.
    kind: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    # The fields of our config that a published config.json gives; it may raise KeyError, TypeError or ValueError.
    read_config: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda published: {}
    # The way back, for ``--to-torch``; None where that is not offered.
    write_config: Callable[[Any], dict[str, Any]] | None = None
    # Files that go along: path under the pipeline's or the part's folder, and name in ours.
    extras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Refuses those that are damaged or do not go with a config, as InputError.
    check_extras: Callable[[Mapping[str, Path], Any], None] = lambda extras, config: None
    dtype: str = "float32"  # stored unless asked otherwise
    size: float = 0.0  # gigabytes of the published files
    licence: str = ""  # of its weights, where it is not the model's

    @property
    def patterns(self) -> list[str]:
        """Which files of a repository the part needs."""
        prefix = f"{self.folder}/" if self.folder else ""
        names = [f"{stem}{end}" for stem in self.stems for end in (".safetensors", "-*.safetensors", INDEX_SUFFIX)]
        names += [] if self.folder else ["*.pth"]
        return [f"{prefix}{name}" for name in (*names, "config.json")] + list(self.extras)


@dataclasses.dataclass(frozen=True)
class Model:
    """A published checkpoint."""

    name: str  # NAME on the command line
    repo: str  # where it is published: a repo id of the Hub, or an address from which no download is offered
    licence: str  # of its weights
    parts: tuple[Part, ...]  # its networks
    source: str = ""  # what ``--source`` is, where the address does not tell

    @property
    def address(self) -> str:
        """Where a person finds it."""
        return self.repo if "://" in self.repo else f"https://huggingface.co/{self.repo}"


def expect(published: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuses, as ValueError, a published config.json that differs in what no field of ours says; absent is well."""
    for name, value in fixed.items():
        if name in published and published[name] != value:
            raise ValueError(f"{name} is {published[name]!r}, and the network here has {value!r}")


def names_of(config_class: type, *others: str) -> dict[str, str]:
    """The fields that are called as they are published: all but those of storage and execution, and some others."""
    own = ("lora_rank", "lora_alpha", "param_dtype", "kernel_dtype", *others)
    return {field.name: field.name for field in dataclasses.fields(config_class) if field.name not in own}


def read_fields(
    published: Mapping[str, Any], names: Mapping[str, str], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Our fields by the published names, ``optional`` ones as it says where they are absent; else KeyError."""
    optional = optional or {}
    return {
        ours: published.get(theirs, optional[ours]) if ours in optional else published[theirs]
        for ours, theirs in names.items()
    }


def write_fields(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The way back."""
    return {theirs: getattr(config, ours) for ours, theirs in names.items()}


def models() -> dict[str, Model]:
    """Every model by its name, in the order of the list."""
    found = {}
    for family in FAMILIES:
        for model in importlib.import_module(f"converters.families.{family}").MODELS:
            found[model.name] = model
    return found


def find(name: str) -> tuple[Model, tuple[Part, ...]]:
    """The model and the parts that ``NAME`` or ``NAME/PART`` means.

    Raises:
        InputError: there is none of that name.
    """
    known = models()
    base, _, wanted = name.partition("/")
    if base not in known:
        raise InputError(f"{base!r} is no model: there are {', '.join(known)} (see --list)")
    model = known[base]
    parts = tuple(part for part in model.parts if not wanted or part.name == wanted)
    if not parts:
        raise InputError(f"{name!r} is no part: {base} has {', '.join(part.name for part in model.parts)}")
    return model, parts


def relatives(part: Part) -> list[tuple[str, Part]]:
    """Parts of other models that a source may be of instead: the same kind of network in another shape, once each."""
    seen = [_shape_of(part)]
    found = []
    for model in models().values():
        for other in model.parts:
            if type(other.config) is type(part.config) and _shape_of(other) not in seen:
                seen.append(_shape_of(other))
                found.append((model.name, other))
    return found


def _shape_of(part: Part) -> tuple[Mapping[str, Any], list[Any]]:
    """What of a config can change the tensors: factors and switches cannot, but for those that the kind names."""
    fields = [value for value in dataclasses.asdict(part.config).values() if not isinstance(value, float | bool)]
    return part.kind(part.config), fields
