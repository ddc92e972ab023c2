"""Examples on disk: TensorFlow Datasets in array_record files, written and read without TensorFlow.

A folder holds parts, ``FOLDER/0000032/clip/1.0.0`` and so on, each a data set of its own that is there whole or not at
all: work that was stopped goes on with the next part, and several commands may fill one folder. What is read is a
sequence that fetches an example when it is asked for, as many of them as there are.
"""

import contextlib
import itertools
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import grain
import tensorflow_datasets as tfds

from reangle_jax.errors import InputError

Example = TypeVar("Example", bound=tuple)  # a NamedTuple of arrays and strings
VERSION = "1.0.0"


class _Part(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes examples in the order they come; their shapes and dtypes are the first one's."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, examples: Iterable[Any], kind: str, **rest: Any):
        first = next(examples := iter(examples))
        self.name = kind  # type: ignore[misc] (one class for all kinds)
        self.features = {name: _feature(value) for name, value in first._asdict().items()}
        self.examples = itertools.chain([first], examples)
        super().__init__(file_format="array_record", **rest)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(example._asdict() for example in self.examples)


def _feature(value: Any) -> Any:
    if isinstance(value, str):
        return tfds.features.Text()
    return tfds.features.Tensor(shape=value.shape, dtype=value.dtype, encoding="zlib")


class Stored(Sequence[Example]):
    """Examples on disk, in order; each is read when it is asked for.

    Args:
        data: the examples.
        way: how they were come by, a function and its arguments: another process does the same.
    """

    def __init__(self, data: grain.MapDataset[Example], way: tuple[Callable, tuple]):
        self._data, self._way = data, way

    def __reduce__(self) -> tuple:
        return self._way

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Stored[Example]": ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Stored(self._data[index], (operator.getitem, (self, index)))
        return self._data[range(len(self))[index]]

    def map(self, function: Callable[[Example], Example]) -> "Stored[Example]":
        """The same with a function applied to each when it is read."""
        return Stored(self._data.map(function), (Stored.map, (self, function)))


def _name(kind: type) -> str:
    return kind.__name__.lower()


def write(root: str | os.PathLike, kind: type[Example], part: int, examples: Iterable[Example]) -> bool:
    """Writes a part, unless it is there already; examples are made while it is written.

    Args:
        root: the folder.
        kind: of the examples.
        part: its number, which orders the parts.
        examples: at least one; all of the same shapes and dtypes.

    Returns:
        Whether it was written.
    """
    home = Path(root) / f"{part:07d}" / _name(kind)
    if (home / VERSION).exists():
        return False
    shutil.rmtree(home, ignore_errors=True)  # what a killed process left
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(None):  # it speaks of a download
        _Part(examples, _name(kind), data_dir=home.parent).download_and_prepare(download_dir=unused)
    return True


def read(root: str | os.PathLike, kind: type[Example], command: str, fields: Sequence[str] = ()) -> Stored[Example]:
    """All parts' examples in order.

    Args:
        root: the folder.
        kind: of the examples.
        command: that makes them, for the error.
        fields: decode these alone; the others are None. All of them if none is named.

    Raises:
        InputError: there are none.
    """
    parts = sorted(Path(root).glob(f"*/{_name(kind)}/{VERSION}"))
    if not parts:
        raise InputError(f"{root} has no {_name(kind)} records: run {command}")
    build: Any = kind
    left = {name: tfds.decode.SkipDecoding() for name in build._fields if fields and name not in fields}
    how: Any = {"split": "train", "decoders": left or None}
    sources: list[Any] = [tfds.builder_from_directory(part).as_data_source(**how) for part in parts]

    def example(found: dict[str, Any]) -> Example:
        found |= dict.fromkeys(left)
        return build(**{name: x.decode() if isinstance(x, bytes) else x for name, x in found.items()})

    data = grain.MapDataset.concatenate([grain.MapDataset.source(source) for source in sources]).map(example)
    return Stored(data, (read, (str(Path(root).absolute()), kind, command, tuple(fields))))
