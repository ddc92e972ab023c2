"""The rule engine: published tensor names to parameter paths and back, checked whole before a value is read.

A table is a list of rules. A rule is a pair of name templates with placeholders such as ``{i}`` for numbers, and a
transform. A placeholder that the target lacks is an index into the leading axis of a stacked parameter.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from reangle_jax.data.safetensors import Tensor

MAX_PIECES = 10_000  # tensors that fill one parameter


@dataclasses.dataclass(frozen=True)
class Transform:
    """A layout change and its inverse. It only moves values: the arrays may hold them as integers of the same width."""

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def permute(name: str, *axes: int) -> Transform:
    """A transposition: axis ``k`` of the target is axis ``axes[k]`` of the source."""
    return Transform(name, lambda x: x.transpose(axes), lambda x: x.transpose(tuple(np.argsort(axes))))


IDENTITY = Transform("identity", lambda x: x, lambda x: x)
LINEAR = permute("linear", 1, 0)  # [out, in] -> [in, out]
CONV2D = permute("conv2d", 2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
CONV3D = permute("conv3d", 2, 3, 4, 1, 0)  # [out, in, t, h, w] -> [t, h, w, in, out]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table."""

    source: str  # template of the published name
    target: str  # template of the parameter's path
    transform: Transform = IDENTITY  # the change of layout
    # A fixed index after the placeholders' own, where several source tensors fill one stacked parameter.
    part: tuple[int, ...] = ()
    # The first, the one past the last, and how many the source has, where several parameters share a source tensor:
    # each has a rule with the same template. The first layout of a part has none: it is also written.
    rows: tuple[int, int, int] | None = None

    @functools.cached_property
    def stacked(self) -> tuple[str, ...]:
        """Placeholders of the source that index a stacked parameter's leading axes."""
        placeholders = re.findall(r"{(\w+)}", self.source)
        return tuple(p for p in placeholders if f"{{{p}}}" not in self.target)

    @functools.cached_property
    def heads(self) -> tuple[str, str]:
        """What source and target begin with, before their first number."""
        return self.source.partition("{")[0], self.target.partition("{")[0]

    def match_target(self, path: str) -> dict[str, str] | None:
        """The numbers of a parameter's path, by placeholder; None if the rule does not fill it."""
        match = _pattern(self.target).fullmatch(path)
        return match.groupdict() if match else None

    def forward(self, values: np.ndarray) -> np.ndarray:
        """A source tensor's values, or the rows that are meant, as the parameter has them."""
        return self.transform.forward(values[slice(*self.rows[:2])] if self.rows else values)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of one checkpoint, and which source tensors may be left over (never used in a forward pass)."""

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()

    @functools.cached_property
    def sharing(self) -> dict[str, list[Rule]]:
        """The rules of each template that several share."""
        found: dict[str, list[Rule]] = {}
        for rule in self.rules:
            if rule.rows:
                found.setdefault(rule.source, []).append(rule)
        return found


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", template)
    seen: set[str] = set()
    text = ""
    for k, part in enumerate(parts):
        if k % 2 == 0:
            text += re.escape(part)
        else:
            text += f"(?P={part})" if part in seen else rf"(?P<{part}>\d+)"
            seen.add(part)
    return re.compile(text)


def places(name: str, table: Table) -> list[tuple[Rule, str, tuple[int, ...]]]:
    """Where a source tensor goes: the rule, the target's path and its index in the stack; several if it is shared.

    Empty if no rule fits.
    """
    for first in table.rules:
        # Most names differ from most templates before the first number: a comparison spares the search.
        match = _pattern(first.source).fullmatch(name) if name.startswith(first.heads[0]) else None
        if match:
            groups = match.groupdict()
            return [
                (rule, rule.target.format(**groups), tuple(int(groups[p]) for p in rule.stacked) + rule.part)
                for rule in table.sharing.get(first.source, [first])
            ]
    return []


def is_ignored(name: str, table: Table) -> bool:
    """Whether a source tensor may be left over."""
    return any(_pattern(template).fullmatch(name) for template in table.ignored)


@dataclasses.dataclass(frozen=True)
class Move:
    """One tensor's way into the model, or that of some of its rows: to an index into its parameter's leading axes."""

    tensor: Tensor
    rule: Rule
    path: str
    index: tuple[int, ...]

    @property
    def name(self) -> str:
        """What is moved: the tensor, and its rows if they are not all."""
        return self.tensor.name + (f"[{self.rule.rows[0]}:{self.rule.rows[1]}]" if self.rule.rows else "")


def match(
    tensors: Mapping[str, Tensor], table: Table, targets: Mapping[str, tuple[int, ...]]
) -> tuple[list[Move], list[str], list[str]]:
    """Every tensor's way into a model, by names and shapes alone; ``targets`` has path and shape of each parameter.

    Returns:
        The ways; names of tensors that are left over and may be; one fault for each tensor without a place, or with a
        wrong shape, and for each that is missing. Without faults every parameter is filled exactly once.
    """
    moves, ignored, faults = [], [], []
    filled: dict[str, dict[tuple[int, ...], str]] = {path: {} for path in targets}
    for tensor in tensors.values():
        placed = places(tensor.name, table)
        if not placed and is_ignored(tensor.name, table):
            ignored.append(tensor.name)
        elif not placed:
            faults.append(f"{tensor.name}: the model knows no such tensor")
        for rule, path, index in placed:
            depth = len(index)
            if path not in targets:
                faults.append(f"{tensor.name}: this model has no such tensor ({path})")
            elif any(i >= n for i, n in zip(index, targets[path], strict=False)):
                faults.append(f"{tensor.name}: the model has {targets[path][0]} layers only")
            elif index in filled[path]:
                faults.append(f"{tensor.name}: is the same parameter as {filled[path][index]}")
            else:
                filled[path][index] = tensor.name
                want = published_shape(rule, targets[path][depth:])
                if want is not None and want != tensor.shape:
                    faults.append(f"{tensor.name}: shape {list(tensor.shape)}, the model has {list(want)}")
                elif _moved(rule, tensor.shape) != targets[path][depth:]:
                    shapes = f"{list(tensor.shape)} does not fit {list(targets[path][depth:])}"
                    faults.append(f"{tensor.name}: shape {shapes}")
                moves.append(Move(tensor, rule, path, index))
    for path, indices in filled.items():
        if math.prod(targets[path][: len(next(iter(indices), ()))]) > MAX_PIECES:
            return moves, ignored, [*faults, f"config.json: {path} would have {targets[path][0]} layers"]
        expected = pieces(path, targets[path], table)
        faults += [f"{name}: missing" for index, (_, name) in expected.items() if index not in indices]
        faults += [] if expected else [f"{path}: no rule of the table fills it"]
    return moves, ignored, list(dict.fromkeys(faults))  # parameters that share a tensor share its faults


def _moved(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape after a rule's transform, from an array that takes no memory."""
    try:
        return rule.forward(np.broadcast_to(np.uint8(0), shape)).shape
    except (ValueError, IndexError):
        return None


def published_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape before it, of the whole source tensor; None where that cannot be said."""
    try:
        found = rule.transform.inverse(np.broadcast_to(np.uint8(0), shape)).shape
        return (rule.rows[2], *found[1:]) if rule.rows else found
    except (ValueError, IndexError):
        return None


def pieces(path: str, shape: tuple[int, ...], table: Table) -> dict[tuple[int, ...], tuple[Rule, str]]:
    """Rule and published name of every piece of a parameter, by its index; empty where no rule fills it."""
    found: dict[tuple[int, ...], tuple[Rule, str]] = {}
    for rule in table.rules:
        numbers = rule.match_target(path) if path.startswith(rule.heads[1]) else None
        if numbers is not None:
            for index in np.ndindex(*shape[: len(rule.stacked)]):
                values = {**numbers, **dict(zip(rule.stacked, map(str, index), strict=True))}
                found.setdefault(index + rule.part, (rule, rule.source.format(**values)))
    return found
