"""A bank of examples on disk: parts of plain arrays by kind, which many processes write and trainings read whole."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.errors import InputError


def write_part(folder: Path, name: str, arrays: dict[str, Any]) -> None:
    """Writes one part, whole or not at all."""
    partial = folder / f".{name}.npz"
    np.savez(partial, **arrays)
    os.replace(partial, folder / f"{name}.npz")


def read_bank(folder: str | os.PathLike, kind: str, count: int | None = None) -> dict[str, np.ndarray]:
    """All parts of a kind (``frames``, ``labels``, ``views``, ``holes``), joined.

    Args:
        folder: of the bank.
        kind: of the examples.
        count: so many examples: the newest parts', again and again if there are fewer. A bank that has grown meanwhile
            then needs no other program.

    Raises:
        InputError: there are none, or one is broken.
    """
    parts: list[dict[str, np.ndarray]] = []
    have = 0
    for path in sorted(Path(folder).glob(f"{kind}_*.npz"), key=lambda path: (-path.stat().st_mtime, path)):
        if count and have >= count:
            break
        try:
            with path.open("rb") as file, np.load(file) as part:
                parts.append(dict(part))
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is no whole part ({error}): remove it") from None
        have += len(next(iter(parts[-1].values())))
    if not parts:
        flags = f"--out {folder} --seconds S " + ("--teacher MODULE" if kind == "labels" else f"--kinds {kind}")
        raise InputError(f"{folder} has no {kind}: run python -m training.make_bank {flags}")
    found = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    total = len(next(iter(found.values())))
    print(f"{total} {kind}", flush=True)
    return {name: x[np.arange(count) % total] for name, x in found.items()} if count else found


def stacked(examples: Sequence[Any], fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Some fields of examples, each along a new first axis."""
    return {name: np.stack([getattr(example, name) for example in examples]) for name in fields}
