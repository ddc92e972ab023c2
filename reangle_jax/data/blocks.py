"""Files as a row of blocks of bytes, as they travel from one process to others."""

from collections.abc import Iterator, Mapping
from pathlib import Path


def read(root: Path, sizes: Mapping[str, int], length: int) -> Iterator[bytes]:
    """Files below a folder one after the other, in blocks of a length that do not end with them.

    ``sizes`` are theirs in bytes, by their names relative to ``root``.
    """
    left = b""
    for name, size in sizes.items():
        with (root / name).open("rb") as file:
            while size > 0:
                part = file.read(min(length - len(left), size))
                if not part:
                    raise RuntimeError(f"{root / name} has become shorter while it was read")
                left, size = left + part, size - len(part)
                if len(left) == length:
                    yield left
                    left = b""
    if left:
        yield left


def write(root: Path, sizes: Mapping[str, int], blocks: Iterator[bytes]) -> None:
    """The other way: blocks of any length to files below a folder."""
    left = b""
    for name, size in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while size > 0:
                left = left or next(blocks)
                part, left = left[:size], left[size:]
                file.write(part)
                size -= len(part)
