"""Hashing what is read, in a thread whose errors come back to the caller."""

import hashlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from converters.sources.tensors import Source
from reangle_jax.data.safetensors import Tensor

Item = TypeVar("Item")
_END = object()


class Worker(Generic[Item]):
    """A thread that takes items one by one.

    What goes wrong in it is raised by the next `put`, or at the end of the `with` block.
    """

    def __init__(self, name: str, take: Callable[[Item], None], depth: int):
        self._take = take
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def put(self, item: Item) -> None:
        """Gives it an item; waits where it has enough to do."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __enter__(self) -> "Worker[Item]":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._queue.put(_END)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not _END:
            if self._error is None:  # after an error the rest is dropped, so that nobody waits for room
                try:
                    self._take(item)
                except BaseException as error:
                    self._error = error
            del item


def hash_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Hasher:
    """SHA-256 of every file of a source.

    Where its tensors follow one another without a gap, every byte is read only once: give `take` all of them, as they
    lie. Otherwise each file is read on its own at the end.
    """

    def __init__(self, source: Source):
        self._source = source
        self._digests = {file: hashlib.sha256() for file in source.files}
        self._ends = dict.fromkeys(source.files, 0)

    def take(self, item: tuple[Tensor, np.ndarray]) -> None:
        """The next tensor and its values."""
        tensor, values = item
        digest = self._digests[tensor.file]
        if not self._ends[tensor.file]:  # the header lies before the first tensor
            with open(tensor.file, "rb") as handle:
                digest.update(handle.read(tensor.offset))
        digest.update(values.reshape(-1).view(np.uint8).data)
        self._ends[tensor.file] = tensor.offset + tensor.nbytes

    def result(self) -> dict[Path, str]:
        """The hashes, in hexadecimal."""
        return {
            file: digest.hexdigest() if self._ends[file] == os.stat(file).st_size else hash_file(file)
            for file, digest in self._digests.items()
        }
