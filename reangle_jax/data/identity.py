"""What tells whether files are still the ones that they were."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from reangle_jax.data import files
from reangle_jax.data.weights_folder import MANIFEST, PARAMS

_SMALL = 64 << 20  # bytes of a weights folder that is read whole
_STRIDE, _BLOCK = 16 << 20, 16 << 10  # of a larger one: a block in every stride
_Status = tuple[int, ...]


class Identities:
    """Identities of files and folders, each taken once while what it is of is untouched.

    A file is untouched while its place on the disk, its size and both of its times are the same.

    Args:
        index: where the hashes of files are kept for the next process, or None.
    """

    def __init__(self, index: Path | None = None) -> None:
        self._index = index
        self._hashes: dict[Path, tuple[_Status, str]] = _read_index(index) if index else {}
        self._weights: dict[Path, tuple[dict[str, _Status], str]] = {}

    def save(self) -> None:
        """Writes the index. It is lost without harm, so that no disk need be waited for."""
        if self._index:
            found = {str(path): known for path, known in self._hashes.items() if path.exists()}
            temporary = self._index.with_name(f"{self._index.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(found), encoding="utf-8")
            os.replace(temporary, self._index)

    def content(self, path: Path, without: Collection[Path] = ()) -> str | None:
        """`files.hash_path` of a file or folder; None if there is nothing."""
        return files.hash_path(path, self._of_file, without)

    def weights(self, folder: Path) -> str | None:
        """Identity of a folder of weights; None if there is none.

        Where a conversion's manifest holds the hashes of its sources: that manifest, the sizes of the arrays' files and
        the content of what lies beside them, so that kilobytes are read. Elsewhere the content; of a folder above 64
        MiB the sizes of the files and 16 KiB in every 16 MiB of them. It is taken once while the folder's own entries
        are untouched.
        """
        if not folder.is_dir():
            return None
        state = {entry.name: _status(entry.stat()) for entry in os.scandir(folder)}
        if self._weights.get(folder, (None, ""))[0] != state:
            self._weights[folder] = state, self._of_weights(folder)
        return self._weights[folder][1]

    def _of_file(self, path: Path) -> str:
        state = _status(path.stat())
        if self._hashes.get(path, (None, ""))[0] != state:
            self._hashes[path] = state, files.hash_file(path)
        return self._hashes[path][1]

    def _of_weights(self, folder: Path) -> str:
        manifest = _read_manifest(folder / MANIFEST)
        sizes = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
        small = sum(sizes.values()) <= _SMALL
        identity: dict[str, Any] = {}
        for path, size in sizes.items():
            name = path.relative_to(folder).as_posix()
            if manifest and name == MANIFEST:
                identity[name] = manifest
            elif manifest and name.startswith(f"{PARAMS}/"):
                identity[name] = size
            else:
                identity[name] = self._of_file(path) if small or size <= _STRIDE // 4 else _sample(path, size)
        return files.hash_json(identity)


def _status(status: os.stat_result) -> _Status:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_index(path: Path) -> dict[Path, tuple[_Status, str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {Path(name): (tuple(map(int, status)), str(known)) for name, (status, known) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest that holds the hashes of all sources, without their times; None if it does not."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sources = [{"sha256": source["sha256"], "size": source["size"]} for source in manifest["sources"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return {**manifest, "sources": sources} if sources else None


def _sample(path: Path, size: int) -> list[Any]:
    """Size, and the hash of a block in every stride and of the end."""
    with path.open("rb", buffering=0) as file:
        blocks = b"".join(
            os.pread(file.fileno(), _BLOCK, at) for at in (*range(0, size, _STRIDE), max(0, size - _BLOCK))
        )
    return [size, files.hash_bytes(blocks)]
