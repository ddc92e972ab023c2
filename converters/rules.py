"""The rule engine: published tensor names to parameter paths and back, checked whole before anything is used.

A table is a list of rules. A rule is a pair of name templates with placeholders such as ``{i}`` for numbers, and a
transform. A placeholder that the target lacks is an index into the leading axis of a stacked parameter.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np


class ConversionError(ValueError):
    """Everything that does not fit, together: one line for each tensor."""


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
    """One line of a table.

    Attributes:
        source: template of the published name.
        target: template of the parameter's path.
        transform: the change of layout.
        part: a fixed index after the placeholders' own, where several source tensors fill one stacked parameter.
    """

    source: str
    target: str
    transform: Transform = IDENTITY
    part: tuple[int, ...] = ()

    @functools.cached_property
    def stacked(self) -> tuple[str, ...]:
        """Placeholders of the source that index a stacked parameter's leading axes."""
        placeholders = re.findall(r"{(\w+)}", self.source)
        return tuple(p for p in placeholders if f"{{{p}}}" not in self.target)

    def match_target(self, path: str) -> dict[str, str] | None:
        """The numbers of a parameter's path, by placeholder; None if the rule does not fill it."""
        match = _fullmatch(self.target, path)
        return match.groupdict() if match else None


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of one checkpoint, and which source tensors may be left over (never used in a forward pass)."""

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()


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


def _fullmatch(template: str, name: str) -> re.Match[str] | None:
    """The match of a whole name; most names differ from most templates before the first number, which costs little."""
    return _pattern(template).fullmatch(name) if name.startswith(_prefix(template)) else None


@functools.cache
def _prefix(template: str) -> str:
    return template.partition("{")[0]


def place(name: str, table: Table) -> tuple[Rule, str, tuple[int, ...]] | None:
    """Where a source tensor goes: its rule, the target's path and its index in the stack; None if no rule fits."""
    for rule in table.rules:
        match = _fullmatch(rule.source, name)
        if match:
            groups = match.groupdict()
            return rule, rule.target.format(**groups), tuple(int(groups[p]) for p in rule.stacked) + rule.part
    return None


def is_ignored(name: str, table: Table) -> bool:
    """Whether a source tensor may be left over."""
    return any(_fullmatch(template, name) for template in table.ignored)


def convert(
    source: Mapping[str, np.ndarray], table: Table, targets: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Converts published tensors to parameters.

    Args:
        source: published names and arrays.
        table: the checkpoint's rules.
        targets: path and shape of every parameter of the model.

    Returns:
        Path and array of every parameter; dtypes are the source's.

    Raises:
        ConversionError: a tensor has no rule, a parameter stays unfilled, or a shape differs. All faults are listed.
    """
    pieces: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    faults: list[str] = []
    for name, array in source.items():
        placed = place(name, table)
        if placed is None:
            if not is_ignored(name, table):
                faults.append(f"{name}: no rule takes it")
            continue
        rule, path, index = placed
        if path not in targets:
            faults.append(f"{name}: the model has no parameter {path}")
        elif index in pieces.setdefault(path, {}):
            faults.append(f"{name}: {path}{list(index)} is filled twice")
        else:
            pieces[path][index] = rule.transform.forward(array)
    result = {}
    for path, shape in targets.items():
        array = _assemble(path, shape, pieces.get(path, {}), faults)
        if array is not None:
            result[path] = array
    if faults:
        raise ConversionError("\n".join(faults))
    return result


def _assemble(
    path: str, shape: tuple[int, ...], parts: dict[tuple[int, ...], np.ndarray], faults: list[str]
) -> np.ndarray | None:
    if not parts:
        faults.append(f"{path}: no tensor fills it")
        return None
    depth = len(next(iter(parts)))
    missing = [index for index in np.ndindex(*shape[:depth]) if index not in parts]
    extra = [index for index in parts if any(i >= n for i, n in zip(index, shape[:depth], strict=True))]
    wrong = [(index, part.shape) for index, part in parts.items() if part.shape != tuple(shape[depth:])]
    faults += [f"{path}{list(index)}: no tensor fills it" for index in missing]
    faults += [f"{path}{list(index)}: the model has only {shape[:depth]} layers" for index in extra]
    faults += [f"{path}{list(index)}: shape {got}, the model has {tuple(shape[depth:])}" for index, got in wrong]
    if missing or extra or wrong:
        return None
    if depth == 0:
        return parts[()]
    return np.stack([parts[index] for index in np.ndindex(*shape[:depth])]).reshape(shape)


def revert(parameters: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """The way back: parameters under their published names and layout.

    Raises:
        ConversionError: a parameter has no rule.
    """
    result: dict[str, np.ndarray] = {}
    faults = []
    for path, array in parameters.items():
        matches = [(rule, match) for rule in table.rules if (match := _fullmatch(rule.target, path))]
        if not matches:
            faults.append(f"{path}: no rule gives it a published name")
        # One rule, or the rules of all parts of one parameter.
        for rule, match in [m for m in matches if m[0].part] or matches[:1]:
            for index in np.ndindex(*array.shape[: len(rule.stacked)]):
                numbers = {**match.groupdict(), **dict(zip(rule.stacked, map(str, index), strict=True))}
                piece = rule.transform.inverse(array[index + rule.part])
                # ascontiguousarray alone would give a scalar an axis.
                result[rule.source.format(**numbers)] = np.ascontiguousarray(piece).reshape(piece.shape)
    if faults:
        raise ConversionError("\n".join(faults))
    return result
