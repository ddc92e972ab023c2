"""A folder of converted weights, written and read here alone.

It holds config.json (a frozen dataclass: its name and fields) and the arrays by parameter path, in one of two forms:
``model.safetensors`` for small networks, or ``params/``, an Orbax checkpoint of a flat dict (Zarr 2), with
manifest.json, which says how long each of its files is and, after a conversion, what was converted.
"""

import collections
import dataclasses
import json
import math
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.data import chunks, files, safetensors
from reangle_jax.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PARAMS = "params"
MANIFEST = "manifest.json"
# Fields that config.json had when it also said how a network is computed (`reangle_jax.nn.execution`).
_EXECUTION = {"attention_impl", "remat", "dtype"}
MAX_SIZE = 1_000_000  # of any number in a config.json
GATHER_BYTES = 4 << 20  # stacks up to this are one file, not one a layer
IN_FLIGHT_BYTES = 64 << 20  # on their way to the disk, beside the newest
REPORT_BYTES = 256 << 20  # what an interruption costs at most


def config_fields(config: Any) -> dict[str, Any]:
    """What config.json says of a frozen dataclass."""
    return json.loads(json.dumps({"class": type(config).__name__, **dataclasses.asdict(config)}, default=str))


def architecture(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json's fields without those that say how the network is computed, which older ones have."""
    return {name: value for name, value in fields.items() if name not in _EXECUTION}


def save_config(folder: str | os.PathLike, config: Any) -> None:
    """Writes ``config.json``: the name of a frozen dataclass and every field of it."""
    files.atomic_write_json(Path(folder) / CONFIG, config_fields(config))


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The fields of a config.json, and the name of what they describe under ``class``.

    Raises:
        InputError: the folder or file is missing or unreadable.
    """
    path = Path(folder) / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing; give a folder of converted weights") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); convert the weights again") from None
    return architecture(fields) if isinstance(fields, dict) else {}


def load_config(folder: str | os.PathLike, config_class: type) -> Any:
    """Reads a config.json into its dataclass.

    Raises:
        InputError: the folder or file is missing or unreadable, or describes another model.
    """
    path, fields = Path(folder) / CONFIG, read_config(folder)
    found = fields.pop("class", None)
    if found != config_class.__name__:
        raise InputError(f"{path} describes {found}, not {config_class.__name__}: give its folder")
    known = {f.name for f in dataclasses.fields(config_class)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InputError(f"{path} has unknown fields {', '.join(unknown)}; convert the weights again")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    hints = typing.get_type_hints(config_class)
    signed = {f.name for f in dataclasses.fields(config_class) if f.metadata.get("signed")}
    wrong = [f"{k} is {v!r}" for k, v in fields.items() if not fits(v, hints[k], least=-math.inf if k in signed else 0)]
    if wrong:
        raise InputError(f"{path} describes no such network ({', '.join(wrong)}); convert the weights again")
    try:
        return config_class(**fields)
    except ValueError as error:
        raise InputError(f"{path} describes no such network ({error}); convert the weights again") from None


def fits(value: Any, hint: Any, *, least: float) -> bool:
    """Whether a value of a config.json, lists made tuples, may stand where ``hint`` says; numbers from ``least`` on."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    allowed = tuple(typing.get_origin(kind) or kind for kind in kinds)
    allowed += (int,) if float in allowed else ()
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        return False
    if isinstance(value, tuple):
        return all(isinstance(item, list | tuple) or fits(item, float, least=least) for item in value)
    return isinstance(value, bool) or not isinstance(value, int | float) or least <= value <= MAX_SIZE


def check_whole(folder: Path) -> None:
    """Refuses a folder whose arrays are missing or cut short, by the sizes of its files alone.

    Raises:
        InputError: a file is missing, or has another size than its header or manifest.json says.
    """
    path = folder / WEIGHTS
    if (folder / PARAMS).is_dir():
        fault = _fault_of_params(folder)
        if fault:
            raise InputError(f"{folder} is damaged ({fault}): convert the weights again")
    elif not path.is_file():
        raise InputError(f"{path} is missing, and so is {PARAMS}/: give a folder of converted weights")
    else:
        try:
            safetensors.read_header(path)
        except InputError as error:
            fault = str(error).removeprefix(f"{path}: ").rpartition(";")[0]
            raise InputError(f"{path} is damaged ({fault}): copy or convert it again") from None


def _fault_of_params(folder: Path) -> str | None:
    try:
        json.loads((folder / PARAMS / "_METADATA").read_bytes())
        sizes = dict(json.loads((folder / MANIFEST).read_bytes())["files"])
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"its manifest or metadata cannot be read: {error}"
    for name, expected in sizes.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != expected:
            return f"{name} has {size} bytes, {expected} expected"
    return None


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array on the disk; ``read`` gives what lies at an index, numbers and slices, all of it at ``()``."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[Any, ...]], np.ndarray]


def open_arrays(folder: str | os.PathLike) -> dict[str, Stored]:
    """The arrays of a folder of either form by parameter path; no value is read yet.

    Raises:
        InputError: they are missing or damaged; later, a file cannot be read.
    """
    folder = Path(folder)
    check_whole(folder)
    if (folder / PARAMS).is_dir():
        return _open_params((folder / PARAMS).absolute())

    def stored(tensor: safetensors.Tensor) -> Stored:
        return Stored(tensor.shape, tensor.dtype, lambda index: safetensors.read(tensor, index))

    return {name: stored(tensor) for name, tensor in safetensors.read_header(folder / WEIGHTS)[0].items()}


def _open_params(params: Path) -> dict[str, Stored]:
    import tensorstore as ts

    store, root = {"driver": "file"}, f"{params}/"
    if (params / "manifest.ocdbt").exists():  # as Orbax writes by default
        store, root = {"driver": "ocdbt", "base": f"file://{params}/"}, ""

    def damaged(error: ValueError) -> InputError:
        return InputError(f"{params} is damaged ({str(error)[:160]}); convert the weights again")

    def stored(array: Any) -> Stored:
        def read(index: tuple[Any, ...]) -> np.ndarray:
            try:
                return array[index].read().result()
            except ValueError as error:
                raise damaged(error) from None

        return Stored(tuple(array.shape), np.dtype(array.dtype.numpy_dtype), read)

    try:
        keys = ts.KvStore.open({**store, "path": root}).result().list().result()
        names = sorted(key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray"))
        opened = {
            name: ts.open(
                {
                    "driver": "zarr",
                    "kvstore": {**store, "path": f"{root}{name}/"},
                    "fill_missing_data_reads": False,  # a chunk that is gone is no zeros
                },
                open=True,
                read=True,
            )
            for name in names
        }
        return {name: stored(array.result()) for name, array in opened.items()}
    except ValueError as error:
        raise damaged(error) from None


def save_arrays(folder: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``model.safetensors``, whole or not at all."""
    files.atomic_write_bytes(Path(folder) / WEIGHTS, safetensors.to_bytes(arrays))


def save_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes ``manifest.json`` beside a finished ``params/``: `fields`, and how long each file is."""
    written = sorted(path for path in (folder / PARAMS).rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in written}
    files.atomic_write_json(folder / MANIFEST, {**fields, "files": sizes})


class ParamsWriter:
    """Writes the arrays of ``params/``, several entries of their stacks at a time; a `with` block waits for all.

    A chunk never spans two entries, so that a layer can be written as soon as it is there; memory stays near the
    largest entry. Small stacks are kept until they are whole. Arrays that are in the folder are written on.

    Args:
        folder: that will be ``params/``.
        arrays: shape and dtype of every one by parameter path.
        depths: how many leading axes of an array the index of `put` counts through; 0 where nothing is said.
        landed: is told the tags of entries that have reached the disk for good.
    """

    def __init__(
        self,
        folder: Path,
        arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        depths: Mapping[str, int] | None = None,
        landed: Callable[[Sequence[str]], None] = lambda tags: None,
    ):
        self._folder, self._arrays, self._landed = folder, arrays, landed
        folder.mkdir(parents=True, exist_ok=True)
        self._synced = files.fsync(folder)
        self._whole: dict[str, int] = {}
        opening = {}
        for path, (shape, dtype) in arrays.items():
            depth = (depths or {}).get(path, 0)
            small = depth and math.prod(shape) * dtype.itemsize <= GATHER_BYTES
            self._whole[path] = math.prod(shape[:depth]) if small else 0
            cells = chunks.chunk_shape(shape, 0 if small else depth, dtype.itemsize)
            opening[path] = _create(folder / path, shape, cells, dtype, synced=self._synced)
        self._stores = {path: future.result() for path, future in opening.items()}
        self._waiting: dict[str, dict[tuple[int, ...], tuple[str, np.ndarray]]] = {}
        self._pending: collections.deque[tuple[Any, list[str], int]] = collections.deque()
        self._done: list[str] = []
        self._done_bytes = 0

    def put(self, path: str, index: tuple[int, ...], values: np.ndarray, tag: str = "") -> None:
        """Hands an entry over; its memory may be used until it has landed.

        Raises:
            OSError: this or an earlier one cannot be written.
        """
        shape, dtype = self._arrays[path]
        tags = [tag]
        if self._whole[path]:
            waiting = self._waiting.setdefault(path, {})
            waiting[index] = tag, np.array(values)
            if len(waiting) < self._whole[path]:
                return
            values = np.stack([waiting[index][1] for index in sorted(waiting)]).reshape(shape)
            index, tags = (), [tag for tag, _ in waiting.values()]
            del self._waiting[path]
        values = chunks.contiguous(values).view(dtype)
        future = self._stores[path][index].write(values, can_reference_source_data_indefinitely=True)
        self._pending.append((future, tags, values.nbytes))
        while len(self._pending) > 1 and sum(size for _, _, size in self._pending) > IN_FLIGHT_BYTES:
            self._wait()

    def __enter__(self) -> "ParamsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            while self._pending:
                try:
                    self._wait()
                except OSError:
                    if kind is None:
                        raise
        finally:
            self._report()  # also on the way out of an error: what is there is kept

    def _wait(self) -> None:
        future, tags, size = self._pending.popleft()
        try:
            future.result()
        except ValueError as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(self._folder)) from None
        self._done += tags
        self._done_bytes += size
        if self._done_bytes >= REPORT_BYTES:
            self._report()

    def _report(self) -> None:
        if not self._synced:
            os.sync()
        self._landed(self._done)
        self._done, self._done_bytes = [], 0


def describe_to_orbax(folder: Path, paths: Sequence[str]) -> None:
    """Puts Orbax's own metadata beside finished arrays: that of a checkpoint of the same tree, which Orbax writes."""
    import orbax.checkpoint as ocp  # late: it takes seconds

    skeleton = folder.with_name(f"{folder.name}.skeleton")
    shutil.rmtree(skeleton, ignore_errors=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(
            skeleton.absolute(), args=ocp.args.PyTreeSave({path: np.zeros(1, np.uint8) for path in paths})
        )
    for entry in skeleton.iterdir():
        if entry.name not in paths:
            os.replace(entry, folder / entry.name)
    shutil.rmtree(skeleton)
    files.fsync(folder)


def _create(folder: Path, shape: tuple[int, ...], cells: tuple[int, ...], dtype: np.dtype, *, synced: bool) -> Any:
    """An array about to be opened or made; files and folders are synced as they are written, where that can be."""
    import tensorstore as ts

    return ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
            "metadata": {
                "shape": list(shape),
                "chunks": list(cells),
                "dtype": "bfloat16" if dtype.name == "bfloat16" else dtype.newbyteorder("<").str,
                "compressor": None,
                "fill_value": None,
                "dimension_separator": ".",
            },
        },
        open=True,
        create=True,
        context=ts.Context({"file_io_sync": synced}),
    )
