"""Published checkpoints for tests: header-only files of a full-size manifest, and small whole ones."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from converters import registry
from reangle_jax import checkpoints
from tests import networks
from tests.conversion import revert

CODES = {"bfloat16": ("BF16", 2), "float32": ("F32", 4), "float16": ("F16", 2), "int32": ("I32", 4)}
SMALL = {
    "transformer": networks.TRANSFORMER_SMALL,
    "vae": networks.VAE_SMALL,
    "text_encoder": networks.TEXT_SMALL,
    "depth": networks.DEPTH_SMALL,
}


def header_bytes(header: Mapping[str, Any] | bytes) -> bytes:
    """The first bytes of a safetensors file, whatever the header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def write_sparse(file: Path, tensors: Mapping[str, Mapping[str, Any]]) -> Path:
    """A safetensors file of which only the header takes room on the disk: `tensors` is as in a manifest."""
    header, end = {}, 0
    for name, entry in tensors.items():
        code, itemsize = CODES[entry["dtype"]]
        size = math.prod(entry["shape"]) * itemsize
        header[name] = {"dtype": code, "shape": entry["shape"], "data_offsets": [end, end + size]}
        end += size
    start = header_bytes(header)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as handle:
        handle.write(start)
        handle.truncate(len(start) + end)
    return file


def write_small(
    folder: Path, model: str = "cogvideox-5b-i2v", configs: Mapping[str, Any] = SMALL
) -> dict[str, dict[str, np.ndarray]]:
    """A small pipeline in the published layout, and what its parameters should become: the parts with a config."""
    wanted = {}
    for part in registry.find(model)[1]:
        if part.name not in configs:
            continue
        config = configs[part.name]
        network = checkpoints.abstract(lambda part=part, config=config: part.network(config, rngs=nnx.Rngs(0)))
        networks.fill_randomly(network)
        arrays = {path: np.asarray(variable[...]) for path, variable in checkpoints.parameter_paths(network).items()}
        inner = folder / part.folder
        inner.mkdir(parents=True, exist_ok=True)
        save_file(revert(arrays, part.layouts[0].table(config)), inner / f"{part.stems[0]}.safetensors")
        if part.write_config:
            (inner / "config.json").write_text(json.dumps(part.write_config(config)))
        wanted[part.name] = arrays
    return wanted


def shard(file: Path, count: int) -> None:
    """Cuts a safetensors file into shards with an index, as save_pretrained does."""
    from safetensors.numpy import load_file

    tensors = load_file(file)
    file.unlink()
    names, places = sorted(tensors), {}
    for k in range(count):
        shard_name = f"{file.stem}-{k + 1:05d}-of-{count:05d}.safetensors"
        mine = names[k::count]
        save_file({name: tensors[name] for name in mine}, file.parent / shard_name)
        places |= dict.fromkeys(mine, shard_name)
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": places}
    (file.parent / f"{file.stem}.safetensors.index.json").write_text(json.dumps(index))
