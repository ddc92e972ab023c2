"""Finds a part's weights, config.json and side files under a folder, and opens them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.registry import INDEX_SUFFIX, Part
from converters.sources.pickled import PickleSource
from converters.sources.safetensors import SafetensorsSource, read_index
from converters.sources.tensors import JoinedSource, Source
from converters.sources.torch_file import TorchSource
from reangle_jax.errors import InputError

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
MAX_CONFIG = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Opened:
    """One part of a published checkpoint: its tensors, the published config.json if there is one, and files to copy.

    Of those the name in our folder, and where it lies.
    """

    source: Source
    config: Mapping[str, Any] | None
    extras: Mapping[str, Path]


def open_part(path: Path, part: Part, *, alone: bool) -> Opened:
    """Opens one part, from the whole pipeline's folder; asked for `alone`, from its own, or a file of weights.

    Raises:
        InputError: it is not there, or its header is unsound.
    """
    if path.is_file():
        if not alone:
            raise InputError(f"{path}: is one file; give the pipeline's folder, or name one part (NAME/{part.name})")
        return Opened(_open_file(path, path.parent, part), _read_config(path.parent / "config.json", path.parent), {})
    if not path.is_dir():
        raise InputError(f"{path}: is neither a file nor a folder; check --source")
    inner = path / part.folder
    if not inner.is_dir():
        if not alone:
            raise InputError(f"{path}: has no {part.folder}/; download it too, or convert the other parts one by one")
        inner = path
    source = _open_together(inner, part, path) or _open_file(_weights(inner, part, path), path, part)
    extras = {}
    for name, target in part.extras.items():
        # The part's own folder first: then its siblings, where a pipeline keeps them.
        for candidate in (inner / name, inner.parent / name, inner / Path(name).name):
            if candidate.is_file():
                _check_inside(candidate, path if inner != path else path.parent)
                extras[target] = candidate
                break
    return Opened(source, _read_config(inner / "config.json", path), extras)


def _open_together(folder: Path, part: Part, root: Path) -> Source | None:
    """The files that hold the part only together; None where none of them is there, so that one may hold it whole."""
    candidates = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", *TORCH_SUFFIXES))
    found = {
        name: [file for file in candidates if file.stem == name or file.stem.startswith(f"{name}-")]
        for name in part.together
    }
    if not any(found.values()):
        return None
    for name, files in found.items():
        if not files:
            present = ", ".join(file.name for other in found.values() for file in other)
            raise InputError(f"{folder}: holds {present}, but no {name}.pth to go with it; put it there (see --list)")
        if len(files) > 1:
            raise InputError(f"{folder}: holds {', '.join(file.name for file in files)}; leave one of them")
        _check_inside(files[0], root)
    return JoinedSource([_open_file(files[0], root, part) for files in found.values()])


def _open_file(path: Path, root: Path, part: Part) -> Source:
    """A file of weights, or what an index lists, which lies in `root`."""
    if part.pickled and path.suffix == ".ckpt":
        return PickleSource(path)
    if path.suffix in TORCH_SUFFIXES:
        return TorchSource(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return SafetensorsSource([path])
    expected = read_index(path)
    shards = [path.parent / shard for shard in sorted(set(expected.values()))]
    for shard in shards:
        _check_inside(shard, root)
    return SafetensorsSource(shards, expected)


def _weights(folder: Path, part: Part, root: Path) -> Path:
    """The file of a part's weights, or their index."""
    for name in (stem + suffix for stem in part.stems for suffix in (INDEX_SUFFIX, ".safetensors")):
        file = folder / name
        if file.exists() or file.is_symlink():
            _check_inside(file, root)
            return file
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        found = sorted(file for file in folder.iterdir() if file.suffix in suffixes)
        if len(found) > 1:
            names = ", ".join(file.name for file in found[:4])
            raise InputError(f"{folder}: holds several files of weights ({names}); give one of them as --source")
        if found:
            _check_inside(found[0], root)
            return found[0]
    raise InputError(f"{folder}: holds no {part.stems[0]}.safetensors, nor its index, nor a .pth; check --source")


def _check_inside(file: Path, folder: Path) -> None:
    """Refuses a link that leaves the folder, but for the cache of the Hub, whose snapshots link to their blobs."""
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError):
        raise InputError(f"{file}: no such file; download it again") from None
    if not real.is_file():
        raise InputError(f"{file}: is no file")
    allowed = [folder.resolve()]
    for ancestor in (folder.absolute(), *folder.absolute().parents):
        if ancestor.parent.name == "snapshots":
            allowed.append((ancestor.parent.parent / "blobs").resolve())
    if not any(real.is_relative_to(root) for root in allowed):
        raise InputError(f"{file}: is a link out of the folder, to {real}; put the file itself there")


def _read_config(file: Path, folder: Path) -> Mapping[str, Any] | None:
    if not file.exists():
        return None
    _check_inside(file, folder)
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise InputError(f"{file}: is too large for a config.json; download it again")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}); download it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: is no JSON object; download it again")
    return found
