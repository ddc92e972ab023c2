"""Facts about published checkpoints, in facts/: tensor names and shapes, configs, golden numbers."""

import functools
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.rules import Table, is_ignored, place

FOLDER = Path(__file__).parent / "facts"


@functools.cache
def _text(name: str) -> bytes:
    return lzma.decompress((FOLDER / f"{name}.json.xz").read_bytes())


def manifest(name: str) -> dict[str, Any]:
    """The parsed ``facts/NAME.json.xz``, the caller's own to change."""
    return json.loads(_text(name))


def table_faults(tensors: Mapping[str, Any], table: Table, targets: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What ``converters.rules.convert`` would complain of, from shapes alone (a full-size model costs no memory).

    Args:
        tensors: a manifest's ``tensors``.
        table: the rules.
        targets: path and shape of every parameter of the model.

    Returns:
        One line for each fault; empty if every tensor has its place and every parameter is filled.
    """
    faults, filled = [], {path: set() for path in targets}
    for name, entry in tensors.items():
        placed = place(name, table)
        if placed is None:
            if not is_ignored(name, table):
                faults.append(f"{name}: no rule takes it")
            continue
        rule, path, index = placed
        if path not in targets:
            faults.append(f"{name}: the model has no parameter {path}")
            continue
        depth = len(index)
        shape = rule.transform.forward(np.broadcast_to(np.float32(0), entry["shape"])).shape
        if shape != tuple(targets[path][depth:]) or index in filled[path]:
            faults.append(f"{name}: {shape} does not go to {path}{list(index)} {targets[path]}")
        filled[path].add(index)
    for path, shape in targets.items():
        depth = len(next(iter(filled[path]), ()))
        if filled[path] != set(np.ndindex(*shape[:depth])):
            faults.append(f"{path}: not filled")
    return faults
