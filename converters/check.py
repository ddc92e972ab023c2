"""Compares a published checkpoint's header with a model: every tensor's place, shape and dtype, all faults together.

Nothing but headers is read and nothing is allocated: the model is abstract.
"""

import collections
import dataclasses
import functools
import math
import sys
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from converters.registry import Layout, Part, relatives
from converters.rules import Move, match, places
from converters.sources.folder import Opened
from reangle_jax import checkpoints
from reangle_jax.data.safetensors import DTYPES, Tensor
from reangle_jax.data.weights_folder import fits
from reangle_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversion that fits.

    The moves are of every tensor that is used, in the order of the files; the targets path and shape of every
    parameter; the dtype is the published tensors'. Ignored are tensors that no forward pass uses; notes say what is
    unusual and no fault.
    """

    part: Part
    layout: Layout
    config: Any
    moves: tuple[Move, ...]
    targets: Mapping[str, tuple[int, ...]]
    dtype: np.dtype
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def plan(name: str, part: Part, opened: Opened) -> Plan:
    """Finds every tensor's place.

    Raises:
        InputError: it is something else than the part, or not whole (`report` has one line a fault), or what goes along
            with it is damaged.
    """
    tensors = opened.source.tensors
    where = opened.source.files[0].parent
    layout = _layout(part, tensors)
    config, faults = _config(part, opened.config)
    if layout is None:
        marks = " or ".join(layout.mark for layout in part.layouts)
        guess = _looks_like(name, part, opened, None) or f" is no {part.name} of {name}"
        raise InputError(f"{where}:{guess}: it has no tensor {marks}", tuple(faults))
    targets = parameter_shapes(part.network, config)
    moves, ignored, misplaced = match(tensors, layout.table(config), targets)
    used = {move.tensor.name: move.tensor for move in moves}
    dtype, notes, dtype_faults = _dtypes(list(used.values()), layout)
    own = len(faults) + len(misplaced) if layout.mark in tensors else None
    faults = [*faults, *misplaced, *dtype_faults]
    if not faults:
        part.check_extras(opened.extras, config)
    if faults:
        guess = _looks_like(name, part, opened, own) or f" does not fit {name}/{part.name}"
        first = next((fault for fault in faults if ": shape " in fault), faults[0])
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{where}:{guess}: {first}{more}; give the right folder, or download it again", tuple(faults))
    moves.sort(key=lambda move: (opened.source.files.index(move.tensor.file), move.tensor.offset))
    if opened.config is None:
        notes.append(f"there is no config.json: taken to be of {name}'s published size")
    return Plan(part, layout, config, tuple(moves), targets, dtype, tuple(ignored), tuple(notes))


def _layout(part: Part, tensors: Mapping[str, Tensor]) -> Layout | None:
    marked = [layout for layout in part.layouts if layout.mark in tensors]
    if marked:
        return marked[0]
    # The mark itself may be what is missing: the layout that knows most of the names, if it knows most of them.
    known = {
        layout.name: sum(bool(places(name, layout.table(part.config))) for name in tensors) for layout in part.layouts
    }
    best = max(part.layouts, key=lambda layout: known[layout.name])
    return best if 2 * known[best.name] > len(tensors) else None


def _config(part: Part, published: Mapping[str, Any] | None) -> tuple[Any, list[str]]:
    """The model's config, and what about the published one is another model's."""
    if published is None:
        return part.config, []
    try:
        fields = part.read_config(published)
        hints = typing.get_type_hints(type(part.config))
        signed = {field.name for field in dataclasses.fields(part.config) if field.metadata.get("signed")}
        for key, value in fields.items():
            if not fits(value, hints[key], least=-math.inf if key in signed else sys.float_info.min):
                raise ValueError(f"{key} is {str(value)[:40]!r}")  # it would be met again deep in the network
        config = dataclasses.replace(part.config, **fields)
    except KeyError as error:
        raise InputError(f"config.json of {part.name} lacks {error}; download it again") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"config.json of {part.name} describes another network: {error}") from None
    want, got = part.kind(part.config), part.kind(config)
    return config, [f"config.json: {key} is {got[key]}, not {want[key]}" for key in want if got[key] != want[key]]


@functools.lru_cache(maxsize=16)
def parameter_shapes(network: Any, config: Any) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of the model that `network` makes."""
    return {path: shape for path, (shape, _) in parameter_types(network, config).items()}


def parameter_types(network: Any, config: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Path, shape and dtype of every parameter."""
    model = checkpoints.abstract(lambda: network(config, rngs=nnx.Rngs(0)))
    found = checkpoints.parameter_paths(checkpoints.base_parameters(model))
    return {path: (tuple(variable.shape), np.dtype(variable.dtype)) for path, variable in found.items()}


def _dtypes(tensors: list[Tensor], layout: Layout) -> tuple[np.dtype, list[str], list[str]]:
    """The published dtype, a note if it is not the usual one, a fault for each tensor that differs from the rest."""
    usual = next(dtype for dtype in DTYPES.values() if dtype.name == layout.dtype)
    counts = collections.Counter(tensor.dtype for tensor in tensors)
    if not counts:
        return usual, [], []
    common = max(counts, key=lambda dtype: (counts[dtype], dtype == usual))
    faults = [
        f"{tensor.name}: is {tensor.dtype.name}, the others are {common.name}"
        for tensor in tensors
        if tensor.dtype != common
    ]
    if common.kind not in "fV" or common.itemsize < 2:
        faults.append(f"the tensors are {common.name}: quantised or foreign weights cannot be converted")
    notes = [f"published as {usual.name}, this file is {common.name}"] if common != usual else []
    return common, notes, faults


def _looks_like(name: str, part: Part, opened: Opened, own: int | None) -> str:
    """`` this looks like X, not Y`` where another model of the registry has fewer faults than `own`; else empty."""
    if own == 0:
        return ""
    tensors = opened.source.tensors

    def faults(other: Part) -> int | None:
        layout = next((layout for layout in other.layouts if layout.mark in tensors), None)
        if layout is None:
            return None
        try:
            config, wrong = _config(other, opened.config)
            return len(wrong) + len(match(tensors, layout.table(config), parameter_shapes(other.network, config))[2])
        except (InputError, ValueError):
            return None

    best = None
    for model, other in relatives(part):
        count = faults(other)
        if count is not None and (own is None or count < own) and (best is None or count < best[1]):
            best = model, count
    return f" this looks like {best[0]}, not {name}" if best else ""
