"""Files that appear whole or not at all, and hashes of what they hold.

Everything is written to a temporary neighbour (``.NAME.PID.tmp``, in the same folder so that the last step is a
rename), flushed to the disk, and renamed. A process that dies, or a disk that fills up, leaves at most a ``.tmp``
behind, which ``remove_leftovers`` clears and which nobody takes for a result.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.errors import InputError

LOCK = ".lock"  # in a folder that one process holds
_TEMPORARY = re.compile(r"\..+\.[0-9]+(\.old)?\.tmp")

_log = logging.getLogger(__name__)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def fsync(path: str | os.PathLike[str]) -> bool:
    """Flushes a file, or the names in a folder, to the disk; False where the file system cannot do that for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return True
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP) or not os.path.isdir(path):
            raise
        return False
    finally:
        os.close(descriptor)


def stand_in(path: str | os.PathLike[str]) -> str | None:
    """What lies in the place of a file that was not really downloaded, with the mend; None: nothing that is known."""
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return None
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the file itself; run git lfs pull, or download it from its page"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page and not the file itself; download it again by its own link"
    return None


def check_no_pipe(path: str | os.PathLike[str]) -> None:
    """Refuses what would be waited for without an end, or read without one.

    Raises:
        InputError: there is something at `path` that is neither a file nor a folder; the line begins with the path.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: is a pipe or a device: write it to a file first")


@contextlib.contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a lock on a file, which is made if need be; where the file system knows no locks, goes on with a warning.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise
            words = "%s cannot be locked (%s): see to it that no other process works in this folder"
            _log.warning(words, path, error.strerror)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


@contextlib.contextmanager
def own_folder(folder: Path, flag: str) -> Iterator[None]:
    """Makes a folder, which a flag named, and holds it for this process alone.

    Raises:
        InputError: it cannot be written, or another process works in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(folder / LOCK))
        except BlockingIOError:
            words = "is in use by another process: wait for it, or choose another folder"
            raise InputError(f"{flag} {folder} {words}") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            why = _why_no_folder(folder) or error.strerror
            raise InputError(f"{flag} {folder} cannot be written ({why}): choose another folder") from None
        yield


def _why_no_folder(folder: Path) -> str | None:
    for path in reversed((folder, *folder.parents)):
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to {os.readlink(path)}, which does not exist"
        if path.exists() and not path.is_dir():
            return f"{path} is no folder"
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary file name, in the same folder, to write to; renames it to `path` when the block ends well.

    The folder is made if need be, an old file of that name is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise
    fsync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty temporary folder to fill; it takes the place of `path`, as a whole, when the block ends well.

    A link to a folder stays one. What a writer of the same folder left when it was killed is removed: nobody holds its
    lock.
    """
    path = Path(os.path.realpath(path))  # for "." and "a/.." have no neighbour either
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    _remove(temporary)
    _remove_abandoned(path)
    temporary.mkdir()
    held = os.open(temporary, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            fsync(file)
        fsync(temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise
    finally:
        os.close(held)
    if path.exists():
        # A folder cannot be renamed onto a full one: the old one steps aside first. A kill in between leaves neither
        # name, which reads as "missing" and is redone.
        old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        os.replace(path, old)
        os.replace(temporary, path)
        _remove(old)
    else:
        os.replace(temporary, path)
    fsync(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary folders of dead writers of `path`: of no process here, and locked by none elsewhere."""
    for found in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = found.name[len(path.name) + 2 : -len(".tmp")]
        if not process.isdecimal() or Path(f"/proc/{process}").exists():
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(found, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(found)
            finally:
                os.close(descriptor)


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
    """Reads every array of an .npz (no pickles).

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or no .npz.
    """
    # NumPy would leave a broken archive open. What zipfile raises of damage has many names: an unknown compression is
    # NotImplementedError, a header that is none AttributeError.
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, AttributeError) as error:
        raise ValueError(f"{Path(path).name}: {error}") from error


def hash_bytes(content: bytes) -> str:
    """Content hash, ``"sha256:..."``."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def hash_file(path: str | os.PathLike[str]) -> str:
    """Content hash of a file."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def hash_path(
    path: str | os.PathLike[str], hash_file: Callable[[Path], str] = hash_file, without: Collection[Path] = ()
) -> str | None:
    """Content hash ``"sha256:..."`` of a file or of a folder (all files below it, with their names); None of nothing.

    ``hash_file`` gives a file's; those in ``without`` do not count.
    """
    path = Path(path)
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        return None
    below = sorted(file for file in path.rglob("*") if file.is_file() and file not in without)
    entries = (f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\0" for file in below)
    return hash_bytes(b"folder\0" + "".join(entries).encode())


def hash_json(value: Any) -> str:
    """Content hash of a JSON value; the order of keys does not count."""
    return hash_bytes(json.dumps(value, sort_keys=True, allow_nan=False).encode())


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes the temporary files and folders that killed writers left in `folder` (not below it).

    Only for a folder that no other process is writing to. Returns what was removed.
    """
    folder = Path(folder)
    leftovers = sorted(path for path in folder.glob(".*.tmp") if _TEMPORARY.fullmatch(path.name))
    for path in leftovers:
        _remove(path)
    return leftovers
