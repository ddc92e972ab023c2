"""Facts about published checkpoints, in facts/: tensor names and shapes, configs, golden numbers."""

import functools
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.rules import Table, match
from tests.conversion import tensor

FOLDER = Path(__file__).parent / "facts"


@functools.cache
def _text(name: str) -> bytes:
    return lzma.decompress((FOLDER / f"{name}.json.xz").read_bytes())


def manifest(name: str) -> dict[str, Any]:
    """The parsed ``facts/NAME.json.xz``, the caller's own to change."""
    return json.loads(_text(name))


def table_faults(tensors: Mapping[str, Any], table: Table, targets: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What the converters would complain of, from shapes alone (a full-size model costs no memory).

    Args:
        tensors: a manifest's ``tensors``.
        table: the rules.
        targets: path and shape of every parameter of the model.
    """
    return match({name: tensor(name, entry["shape"]) for name, entry in tensors.items()}, table, targets)[2]
