"""The way back: our weights as safetensors in the published layout, with the config.json of diffusers or transformers.

Pieces go one at a time from our files to theirs, as on the way in.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.check import parameter_shapes
from converters.registry import INDEX_SUFFIX, Model, Part
from converters.rules import Rule, Table, pieces, published_shape
from converters.stream import stored_dtype
from reangle_jax import checkpoints
from reangle_jax.data import safetensors
from reangle_jax.data.weights_folder import Stored, open_arrays
from reangle_jax.errors import InputError, about
from reangle_jax.nn.quantised import INT8

SHARD_BYTES = 5_000_000_000  # as the Hub's own tools cut


@dataclasses.dataclass(frozen=True)
class _Piece:
    """One published tensor to write: its shape and dtype, and how to get it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    rule: Rule
    read: Callable[[tuple[int, ...]], np.ndarray]
    index: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def run(model: Model, parts: Sequence[Part], source: Path, out: Path, dtype: str | None) -> int:
    """Writes parts of a weights folder in their published layout, each to OUT/FOLDER as a pipeline has it.

    The source has a folder a part, or is the part's own. Tensors are of a dtype; None keeps what is stored.

    Raises:
        InputError: a part is missing or damaged, or has no published layout here, or its target exists.
    """
    if dtype == INT8:
        raise InputError("--dtype=int8: published layouts have no int8: give a dtype of floats, or leave it out")
    cast = stored_dtype(dtype) if dtype else None
    jobs = []
    for part in parts:
        if part.write_config is None:
            raise InputError(f"{model.name}/{part.name}: --to-torch is not offered for it")
        folder = source / part.name if (source / part.name).is_dir() or len(parts) > 1 else source
        target = out / (part.folder or part.name)
        if target.exists():
            raise InputError(f"--out: {target} exists; move it away, or give another folder")
        with about("--source"):
            config = checkpoints.load_config(folder, type(part.config))
        if getattr(config, "kernel_dtype", ""):
            raise InputError(
                f"--source: {folder} was made with --dtype=int8, which has no way back: convert it without"
            )
        jobs.append((part, folder, target, config))
    for part, folder, target, config in jobs:
        _write_part(part, folder, target, config, cast)
        print(f"wrote {target}")
    return 0


def _write_part(part: Part, folder: Path, target: Path, config: Any, dtype: np.dtype | None) -> None:
    table = part.layouts[0].table(config)
    shapes = parameter_shapes(part.network, config)
    with about("--source"):
        stored = open_arrays(folder)
    faults = [path for path, shape in shapes.items() if path not in stored or stored[path].shape != shape]
    faults += [path for path in stored if path not in shapes]
    if faults:
        raise InputError(f"--source: {folder} does not fit its config.json ({faults[0]}); convert the weights again")
    found = _pieces(shapes, table, stored, dtype)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_safetensors(partial, part.stems[0], found)
    assert part.write_config is not None  # `run` has refused it otherwise
    text = json.dumps(part.write_config(config), indent=2, sort_keys=True)
    (partial / "config.json").write_text(text + "\n", encoding="utf-8")
    os.rename(partial, target)
    for name, ours in part.extras.items():
        if (folder / ours).is_file():
            (target.parent / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / ours, target.parent / name)


def _pieces(
    shapes: Mapping[str, tuple[int, ...]],
    table: Table,
    arrays: Mapping[str, Stored],
    dtype: np.dtype | None,
) -> list[_Piece]:
    result = []
    for path, shape in shapes.items():
        places = pieces(path, shape, table)
        if not places:
            raise InputError(f"{path}: no rule gives it a published name")
        for index, (rule, name) in places.items():
            published = published_shape(rule, shape[len(index) :])
            if published is None:
                raise InputError(f"{path}: the rule for {name} has no way back")
            result.append(_Piece(name, published, dtype or arrays[path].dtype, rule, arrays[path].read, index))
    return sorted(result, key=lambda piece: piece.name)


def write_safetensors(folder: Path, stem: str, tensors: Sequence[_Piece]) -> None:
    """Writes ``STEM.safetensors``, or shards and their index, piece by piece."""
    shards: list[list[_Piece]] = [[]]
    for piece in tensors:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + piece.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(piece)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{k:05d}-of-{len(shards):05d}.safetensors" for k in range(1, len(shards) + 1)]
        places = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        index = {"metadata": {"total_size": sum(piece.nbytes for piece in tensors)}, "weight_map": places}
        (folder / (stem + INDEX_SUFFIX)).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        with open(folder / name, "wb") as file:
            file.write(safetensors.header({p.name: (p.dtype, p.shape) for p in shard}, {"format": "pt"}))
            for piece in shard:
                values = piece.rule.transform.inverse(piece.read(piece.index)).astype(piece.dtype)
                file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
