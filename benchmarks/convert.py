"""Seconds and memory of converting a published transformer's layout, against copying its files.

    python benchmarks/convert.py [--layers 3] [--folder DIR] [--keep]
    python benchmarks/convert.py --layers 42     # the published size, 11.25 GB: needs 34 GB of disk
    python benchmarks/convert.py --model flux.1-dev/transformer --layers 1 [--single-file]
    python benchmarks/convert.py --model flux.1-dev/transformer --layers 19     # 23.8 GB: needs 72 GB of disk

Writes random shards in the published layout, copies them, converts them, and copies them once more, each synced to the
disk and started with the files out of the page cache, in turn in one run. The conversion is the command itself in a
process of its own, whose peak resident memory the kernel counts.
"""

import dataclasses
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from converters import registry, rules
from reangle_jax import checkpoints, commands
from reangle_jax.data import safetensors
from reangle_jax.errors import InputError
from reangle_jax.models.flux.transformer_config import FluxConfig

MODELS = ("cogvideox-5b-i2v/transformer", "flux.1-dev/transformer")
SHARD_BYTES = 5_000_000_000
BUFFER = 16 << 20


def published_tensors(part: registry.Part, config: Any, layout: registry.Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published transformer of some sizes."""
    model = checkpoints.abstract(lambda: part.build(config))
    table = layout.table(config)
    tensors = {}
    for path, variable in checkpoints.parameter_paths(model).items():
        for index, (rule, name) in rules.pieces(path, tuple(variable.shape), table).items():
            shape = rules.published_shape(rule, tuple(variable.shape)[len(index) :])
            assert shape is not None
            tensors[name] = shape
    return tensors


def write_published(folder: Path, name: str, layers: int, *, single_file: bool) -> int:
    """Random bfloat16 shards, their index and config.json, or one file of the other layout; the bytes of the tensors.

    Fewer layers than published are of every kind in the published proportion.
    """
    (part,) = registry.find(name)[1]
    config = dataclasses.replace(part.config, num_layers=layers)
    if isinstance(config, FluxConfig):
        config = dataclasses.replace(config, num_single_layers=2 * layers)
    tensors = published_tensors(part, config, part.layouts[single_file])
    shard_bytes = math.inf if single_file else SHARD_BYTES
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in tensors.items():
        nbytes = 2 * math.prod(shape)
        if size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    noise = np.random.default_rng(0).integers(0x3C00, 0x3F00, 32 << 20, np.uint16)  # small positive bfloat16 numbers
    places = {}
    for k, names in enumerate(shards, start=1):
        file = "one.safetensors" if single_file else f"diffusion_pytorch_model-{k:05d}-of-{len(shards):05d}.safetensors"
        with open(folder / file, "wb") as handle:
            handle.write(safetensors.header({name: (safetensors.DTYPES["BF16"], tensors[name]) for name in names}))
            left = sum(math.prod(tensors[name]) for name in names)
            while left:
                part_of = noise[:left]
                handle.write(part_of.data)
                left -= len(part_of)
            handle.flush()
            os.fsync(handle.fileno())
        places |= dict.fromkeys(names, file)
    if not single_file:
        index = {"metadata": {}, "weight_map": places}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert part.write_config is not None
    (folder / "config.json").write_text(json.dumps(part.write_config(config)))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def forget(folder: Path) -> None:
    """Drops a folder's files from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: Path, target: Path) -> float:
    """Seconds to copy a folder's shards and sync them."""
    forget(source)
    target.mkdir()
    start = time.perf_counter()
    for file in sorted(source.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as read, open(target / file.name, "wb", buffering=0) as write:
            while block := read.read(BUFFER):
                write.write(block)
            os.fsync(write.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def convert(name: str, source: Path, target: Path) -> tuple[float, float, float]:
    """Seconds to convert the folder (imports included), processor seconds, and the process's peak resident bytes."""
    forget(source)
    command = [sys.executable, "-m", "converters", name, "--source", str(source), "--out", str(target)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[1])
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor, after.ru_maxrss * 1024.0


def main() -> None:
    parser = commands.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument(
        "--layers", type=commands.positive, default=3, help="42 is CogVideoX, of which 3 make about a gigabyte"
    )
    parser.add_argument("--single-file", action="store_true", help="the authors' own layout, of FLUX")
    parser.add_argument("--folder", help="on the disk to measure (default: the temporary folder)")
    parser.add_argument("--once", action="store_true", help="copy before the conversion only, not after it too")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    options = parser.parse_args()
    if options.single_file and len(registry.find(options.model)[1][0].layouts) < 2:
        raise InputError(f"--single-file: {options.model} is published as a folder only")
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="convert", dir=options.folder))
    try:
        source = folder / "transformer"
        source.mkdir()
        size = write_published(source, options.model, options.layers, single_file=options.single_file)
        print(f"{options.layers} layers, {size / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} files")
        copies = [copy(source, folder / "copy")]
        seconds, processor, peak = convert(options.model, source, folder / "out")
        if not options.once:
            copies.append(copy(source, folder / "copy"))
        copied = sum(copies) / len(copies)
        print(f"copy     {', '.join(f'{each:.1f}' for each in copies)} s, {size / copied / 1e6:.0f} MB/s")
        print(f"convert  {seconds:7.1f} s, {size / seconds / 1e6:.0f} MB/s, {processor:.1f} s of processor time")
        print(f"ratio    {seconds / copied:7.2f} times the copy's time")
        print(f"memory   {peak / 2**30:7.2f} GiB resident at most")
    finally:
        if not options.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    commands.run(main, stopped="it begins anew")
