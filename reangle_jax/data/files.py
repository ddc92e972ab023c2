"""Files that appear whole or not at all, and hashes of what they hold.

Everything is written to a temporary neighbour (``.NAME.PID.tmp``, in the same folder so that the last step is a
rename), flushed to the disk, and renamed. A process that dies, or a disk that fills up, leaves at most a ``.tmp``
behind, which ``remove_leftovers`` clears and which nobody takes for a result.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 1 << 20
_TEMPORARY = re.compile(r"\..+\.[0-9]+(\.old)?\.tmp")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary file name to write to; renames it to `path` when the block ends well.

    Args:
        path: the file to be; its folder is made if need be, an old file of that name is replaced.

    Yields:
        the temporary path, in the same folder, at which the block must create a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise
    _fsync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty temporary folder to fill; it takes the place of `path` when the block ends well.

    Args:
        path: the folder to be; an old folder of that name is replaced as a whole, never mixed.

    Yields:
        the temporary folder, which exists.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    _remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _fsync(file)
        _fsync(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise
    if path.exists():
        # A folder cannot be renamed onto a full one: the old one steps aside first. A kill in between leaves neither
        # name, which reads as "missing" and is redone.
        old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        os.replace(path, old)
        os.replace(temporary, path)
        _remove(old)
    else:
        os.replace(temporary, path)
    _fsync(path.parent)


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinities are refused, since JSON has none."""
    atomic_write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def atomic_savez(path: str | os.PathLike[str], **arrays: Any) -> None:
    """Writes a compressed .npz; equal arrays give equal bytes (NumPy's zip entries carry no time of writing)."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(array) for name, array in arrays.items()})  # pyright: ignore[reportArgumentType]
    atomic_write_bytes(path, buffer.getvalue())


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of an .npz (no pickles)."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def hash_path(path: str | os.PathLike[str]) -> str | None:
    """Content hash of a file or of a folder (names and contents of all files below it).

    Returns:
        ``"sha256:..."``, or None if there is nothing at `path`.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    elif path.is_dir():
        digest.update(b"folder\0")
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{hash_path(file)}\0".encode())
    else:
        return None
    return f"sha256:{digest.hexdigest()}"


def hash_json(value: Any) -> str:
    """Content hash of a JSON value; the order of keys does not count."""
    return f"sha256:{hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()}"


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes the temporary files and folders that killed writers left in `folder` (not below it).

    Only for a folder that no other process is writing to. Returns what was removed.
    """
    folder = Path(folder)
    leftovers = sorted(path for path in folder.glob(".*.tmp") if _TEMPORARY.fullmatch(path.name))
    for path in leftovers:
        _remove(path)
    return leftovers
