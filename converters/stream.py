"""Writes a converted part: tensor by tensor in the order of the files, so that memory stays near the largest tensor.

Everything is built in OUT/PART.partial, which becomes OUT/PART by one rename. Its journal names the tensors that are on
the disk; the same command again skips them. One thread reads ahead, this one changes the layout, TensorStore's write,
and one more hashes what was read.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from converters import check
from converters.check import Plan
from converters.rules import Move
from converters.sources.folder import Opened
from converters.sources.tensors import Source
from reangle_jax.data import safetensors, weights_folder
from reangle_jax.data.files import LOCK, fsync, hash_file, own_folder
from reangle_jax.data.safetensors import DTYPES, Tensor
from reangle_jax.data.weights_folder import CONFIG, MANIFEST, PARAMS
from reangle_jax.errors import InputError
from reangle_jax.nn import quantised
from reangle_jax.nn.quantised import INT8

VERSION = 2  # of what is written; another one redoes an unfinished conversion
JOURNAL = "journal.jsonl"
ARRAYS = "arrays"
SPARE_BYTES = 64 << 20


class Hasher:
    """SHA-256 of every file of a source.

    Where its tensors follow one another without a gap, every byte is read only once: give `take` all of them, as they
    lie. Otherwise each file is read on its own at the end.
    """

    def __init__(self, source: Source):
        self._source = source
        self._digests = {file: hashlib.sha256() for file in source.files}
        self._ends = dict.fromkeys(source.files, 0)

    def take(self, tensor: Tensor, values: np.ndarray) -> None:
        """The next tensor and its values."""
        digest = self._digests[tensor.file]
        if not self._ends[tensor.file]:  # the header lies before the first tensor
            with open(tensor.file, "rb") as handle:
                digest.update(handle.read(tensor.offset))
        digest.update(values.reshape(-1).view(np.uint8).data)
        self._ends[tensor.file] = tensor.offset + tensor.nbytes

    def result(self) -> dict[Path, str]:
        """The hashes, in hexadecimal."""
        return {
            file: digest.hexdigest() if self._ends[file] == os.stat(file).st_size else _hash(file)
            for file, digest in self._digests.items()
        }


def _hash(file: Path) -> str:
    return hash_file(file).removeprefix("sha256:")


class Writer:
    """One conversion of one part of the model NAME, to OUT/PART.

    int8 is for the blocks of diffusion transformers: the rest of them and other parts are bfloat16 then. ``say`` takes
    one line about what happens, ``advance`` the number of source bytes that were dealt with.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        opened: Opened,
        out: Path,
        dtype: np.dtype,
        *,
        say: Callable[[str], None] = lambda line: None,
        advance: Callable[[int], None] = lambda count: None,
    ):
        self.name, self.plan, self.opened, self.dtype = name, plan, opened, dtype
        if dtype == np.int8:
            self.dtype = stored_dtype("bfloat16")
        kept = {"kernel_dtype": INT8} if dtype == np.int8 and hasattr(plan.config, "kernel_dtype") else {}
        self.config = dataclasses.replace(plan.config, param_dtype=self.dtype.name, **kept)
        self.arrays = {path: (shape, self.dtype) for path, shape in plan.targets.items()}
        if kept:
            self.arrays = check.parameter_types(plan.part.network, self.config)
        self.say, self.advance = say, advance
        self.final = out / plan.part.name
        self.partial = out / f"{plan.part.name}.partial"

    @property
    def stored_as(self) -> str:
        """What the parameters are stored in, in words."""
        kernels = getattr(self.config, "kernel_dtype", "")
        return self.dtype.name + (f", its blocks' kernels {kernels}" if kernels else "")

    @property
    def nbytes(self) -> int:
        """Bytes of the converted parameters."""
        return sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in self.arrays.values())

    def run(self) -> bool:
        """Converts, or continues; False where the part was there already.

        Raises:
            InputError: OUT/PART is something else, the disk is full, another process is at work on it, or the source is
                damaged or changed meanwhile.
        """
        if self.final.exists():
            self._check_final()
            return False
        sources = self._sources()
        with own_folder(self.partial, "--out"):
            done = self._resume(sources)
            self._check_room(done)
            hashes = self._write(done)
            self._check_hashes(hashes)
            if self._sources() != sources:
                raise InputError(f"{self.opened.source.files[0].parent}: changed while it was read; start again")
            self._finish(sources, hashes)
        return True

    # What there is already.

    def _identity(self, sources: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "version": VERSION,
            "name": self.name,
            "layout": self.plan.layout.name,
            "dtype": self.dtype.name,
            "config": weights_folder.config_fields(self.config),
            "sources": sources,
        }

    def _sources(self) -> list[dict[str, Any]]:
        found = []
        for file in self.opened.source.files:
            try:
                status = os.stat(file)
            except OSError as error:
                raise InputError(f"{file}: cannot be read ({error.strerror}); download it again") from None
            found.append({"file": file.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns})
        return found

    def _check_final(self) -> None:
        try:
            manifest = json.loads((self.final / MANIFEST).read_text(encoding="utf-8"))
            config = json.loads((self.final / CONFIG).read_text(encoding="utf-8"))
            recorded = [(entry["file"], entry["size"], entry["sha256"]) for entry in manifest["sources"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"--out: {self.final} exists and is no finished conversion; move it away, or give another folder"
            ) from None
        sources = self._sources()
        same = weights_folder.architecture(config) == weights_folder.config_fields(self.config)
        same = same and [(name, size) for name, size, _ in recorded] == [(s["file"], s["size"]) for s in sources]
        if same and [entry.get("mtime_ns") for entry in manifest["sources"]] != [s["mtime_ns"] for s in sources]:
            same = [sha for _, _, sha in recorded] == [_hash(file) for file in self.opened.source.files]
        if not same:
            raise InputError(
                f"--out: {self.final} is of another source, model or dtype; move it away, or give another folder"
            )
        self.say(f"{self.final} is finished already")

    def _resume(self, sources: list[dict[str, Any]]) -> set[str]:
        """Names of the tensors that are on the disk; an unfinished conversion of anything else is removed."""
        journal = self.partial / JOURNAL
        identity = self._identity(sources)
        lines = []
        if journal.exists():
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:  # the last line of a process that was killed
                    break
            if lines and lines[0] == identity and all(isinstance(name, str) for name in lines[1:]):
                # Without a line that was cut off: the next one would be joined to it.
                journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
                self.say(f"continuing: {len(lines) - 1} of {len(self.plan.moves)} tensors are there")
                return set(lines[1:])
            self.say("the source, model or dtype is another one than before: starting again")
        for entry in self.partial.iterdir():
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        journal.write_text(json.dumps(identity) + "\n", encoding="utf-8")
        return set()

    def _check_room(self, done: set[str]) -> None:
        need = sum(
            math.prod(self.plan.targets[move.path][len(move.index) :]) * self.arrays[move.path][1].itemsize
            for move in self.plan.moves
            if move.name not in done
        )
        free = shutil.disk_usage(self.partial).free
        if need + SPARE_BYTES > free:
            raise InputError(
                f"--out: {self.partial.parent} has {free / 1e9:.2f} GB free and {need / 1e9:.2f} GB more are needed; "
                "free some, or give a folder on another disk"
            )

    # The work.

    def _write(self, done: set[str]) -> dict[Path, str]:
        """Writes every tensor that is not done; gives the hashes of the source's files."""
        source = self.opened.source
        hasher = Hasher(source)
        if (self.partial / PARAMS).exists():  # stopped between the last tensor and the end
            return hasher.result()
        moves: dict[str, list[Move]] = {}
        for move in self.plan.moves:
            if move.name not in done:
                moves.setdefault(move.tensor.name, []).append(move)
        depths = {move.path: len(move.index) for move in self.plan.moves}
        depths |= {_scale_of(path): depth for path, depth in depths.items() if _scale_of(path) in self.arrays}
        with (
            weights_folder.ParamsWriter(self.partial / ARRAYS, self.arrays, depths, self._note) as writing,
            ThreadPoolExecutor(2, "read and hash") as pool,
        ):
            hashed = None
            for tensor, raw in _read_ahead(source, self._to_read(moves), pool):
                if hashed:
                    hashed.result()
                hashed = pool.submit(hasher.take, tensor, raw) if tensor.offset else None
                if tensor.name in moves:
                    self._put(writing, moves[tensor.name], raw)
                self.advance(tensor.nbytes)
                del raw
            if hashed:
                hashed.result()
        return hasher.result()

    def _check_hashes(self, hashes: Mapping[Path, str]) -> None:
        """The Hub's cache names a file after its hash: a download that was damaged since is known by that."""
        for file, digest in hashes.items():
            blob = file.resolve()
            if blob.parent.name == "blobs" and len(blob.name) == len(digest) and blob.name != digest:
                shutil.rmtree(self.partial)
                raise InputError(f"{file}: is damaged (its SHA-256 is not what it was published with); delete {blob}")

    def _to_read(self, moves: Mapping[str, Sequence[Move]]) -> list[Tensor]:
        """Tensors in the order in which they lie; where they have a place in the file all of them, to hash it whole."""
        source = self.opened.source
        place = {file: k for k, file in enumerate(source.files)}
        needed = [t for t in source.tensors.values() if t.offset or t.name in moves]
        return sorted(needed, key=lambda tensor: (place[tensor.file], tensor.offset, tensor.nbytes))

    def _put(self, writing: weights_folder.ParamsWriter, moves: Sequence[Move], raw: np.ndarray) -> None:
        tensor = moves[0].tensor
        if not safetensors.is_finite(raw):
            raise InputError(
                f"{tensor.file}: {tensor.name} holds NaN or infinity, and so would all that is "
                "computed with it; download it again, or take another release"
            )
        cast = raw if raw.dtype == self.dtype else _cast(raw, self.dtype, tensor.name)
        # Layout changes move values only, and NumPy moves integers fastest.
        cast = cast.view(f"u{cast.dtype.itemsize}")
        for move in moves:
            if self.arrays[move.path][1] == np.int8:
                steps, scale = quantised.quantise(move.rule.forward(raw).astype(np.float32))
                writing.put(move.path, move.index, np.asarray(steps))
                # It follows its kernel: the tensor counts as written when both are.
                writing.put(_scale_of(move.path), move.index, np.asarray(scale), move.name)
            else:
                writing.put(move.path, move.index, move.rule.forward(cast), move.name)

    def _note(self, names: Sequence[str]) -> None:
        """Adds tensors that are on the disk to the journal, for good."""
        with open(self.partial / JOURNAL, "a", encoding="utf-8") as journal:
            journal.writelines(json.dumps(name) + "\n" for name in names if name)
            journal.flush()
            os.fsync(journal.fileno())

    def _finish(self, sources: list[dict[str, Any]], hashes: Mapping[Path, str]) -> None:
        """Orbax's own metadata, config and manifest; then the part appears under its name."""
        params, arrays = self.partial / PARAMS, self.partial / ARRAYS
        if not params.exists():
            weights_folder.describe_to_orbax(arrays, list(self.arrays))
            os.rename(arrays, params)
        for entry, file in zip(sources, self.opened.source.files, strict=True):
            entry["sha256"] = hashes[file]
        for target, file in self.opened.extras.items():
            shutil.copyfile(file, self.partial / target)
        weights_folder.save_config(self.partial, self.config)
        weights_folder.save_manifest(self.partial, self._manifest(sources))
        (self.partial / JOURNAL).unlink()
        (self.partial / LOCK).unlink()
        fsync(self.partial)
        os.rename(self.partial, self.final)
        fsync(self.final.parent)

    def _manifest(self, sources: list[dict[str, Any]]) -> dict[str, Any]:
        names: dict[str, dict[tuple[int, ...], str]] = {}
        for move in self.plan.moves:
            for path in {move.path, _scale_of(move.path)} & self.arrays.keys():
                names.setdefault(path, {})[move.index] = move.name
        return {
            "model": self.name,
            "part": self.plan.part.name,
            "layout": self.plan.layout.name,
            "dtype": self.dtype.name,
            "source_dtype": self.plan.dtype.name,
            "converter_version": VERSION,
            "sources": sources,
            "unused": list(self.plan.ignored),
            "tensors": {
                path: {"shape": list(shape), "from": [names[path][index] for index in sorted(names[path])]}
                for path, (shape, _) in self.arrays.items()
            },
        }


def _scale_of(path: str) -> str:
    """Where the scales of a kernel are."""
    return f"{path.rpartition('.')[0]}.{quantised.SCALE}"


def _read_ahead(source: Source, tensors: list[Tensor], reader: Executor) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Tensors and their values, the next one read meanwhile."""
    ahead = reader.submit(source.read, tensors[0]) if tensors else None
    for k, tensor in enumerate(tensors):
        assert ahead is not None
        raw = ahead.result()
        ahead = reader.submit(source.read, tensors[k + 1]) if k + 1 < len(tensors) else None
        yield tensor, raw


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # said in words below
        result = values.astype(dtype)
    if dtype.name == "float16" and bool((np.isinf(result) & np.isfinite(values.astype(np.float32))).any()):
        raise InputError(f"--dtype=float16: {name} has values beyond its range; use bfloat16 or float32")
    return result


def stored_dtype(name: str) -> np.dtype:
    """The dtype of ``--dtype``.

    Raises:
        InputError: it is none that weights are stored in.
    """
    names = ("float32", "bfloat16", "float16", INT8)
    allowed = {dtype.name: dtype for dtype in DTYPES.values() if dtype.name in names}
    if name not in allowed:
        raise InputError(f"--dtype={name}: weights are stored as {', '.join(allowed)}")
    return allowed[name]
