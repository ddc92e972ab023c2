"""PyTorch files (.pth, .pt, .ckpt), read by torch's weights_only loader: tensors and containers, never code."""

import argparse
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.data import files
from reangle_jax.data.safetensors import DTYPES, Tensor
from reangle_jax.errors import InputError

MAX_PICKLE = 64 << 20  # bytes of the archive's data.pkl: names and shapes, of the largest models a megabyte
MAX_ENTRIES = 100_000
MAX_LEGACY = 4 << 30  # bytes of a file from before torch 1.6, which has to be held in memory whole
WRAPPERS = ("model", "state_dict", "teacher")  # a training script's names for the weights among other things


class TorchSource:
    """A PyTorch file; its tensors stay on the disk until they are read.

    Raises:
        InputError: torch is not installed, the file is none of torch's, or it holds anything but tensors.
    """

    def __init__(self, file: Path):
        self.files = (file,)
        self._state = _tensors_of(_load(file), file)
        self.tensors: Mapping[str, Tensor] = {
            name: Tensor(name, tuple(value.shape), _dtype(value, name, file), file, 0)
            for name, value in self._state.items()
        }

    def read(self, tensor: Tensor) -> np.ndarray:
        """The values of one tensor, copied out of the mapped file."""
        import torch

        value = self._state[tensor.name].detach().contiguous()
        flat = value.reshape(-1).view(torch.uint8).numpy() if value.numel() else np.zeros(0, np.uint8)
        return np.array(flat).view(tensor.dtype).reshape(tensor.shape)


def _load(file: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{file}: reading a PyTorch file needs torch: pip install 'reangle-jax[convert]', or give the safetensors"
        ) from None
    zipped = _check_archive(file)
    if not zipped and (words := files.stand_in(file)):
        raise InputError(f"{file}: {words}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a hostile pickle can make the loader raise anything
        text = " ".join(str(error).split())
        raise InputError(
            f"{file}: torch's weights_only loader refuses it ({type(error).__name__}: {text[:160]}); "
            "do not use this file, or download it again"
        ) from None


def _check_archive(file: Path) -> bool:
    """Whether the file is an archive (torch 1.6 and later); refuses one that would unpack to more than its size."""
    try:
        size = os.stat(file).st_size
        if not zipfile.is_zipfile(file):
            if size > MAX_LEGACY:
                raise InputError(f"{file}: is no archive of torch and too large to hold in memory; check what it is")
            return False
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; check --source") from None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{file}: is damaged ({error}); download it again") from None
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or total > size or any(entry.compress_type for entry in entries):
        raise InputError(
            f"{file}: {len(entries)} entries unpack to {total} bytes from {size}; torch stores them unpacked, so this "
            "is none of its files: do not use it"
        )
    pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
        raise InputError(f"{file}: is an archive, but not of torch (no usable data.pkl); check what it is")
    return True


def _tensors_of(loaded: Any, file: Path) -> dict[str, Any]:
    import torch

    def tensors(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {}
        return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}

    for value in (loaded, *(loaded.get(key) for key in WRAPPERS if isinstance(loaded, Mapping))):
        found = tensors(value)
        if found:
            return found
    raise InputError(f"{file}: holds no named tensors; give the file of the model's weights")


def _dtype(value: Any, name: str, file: Path) -> np.dtype:
    known = {dtype.name: dtype for dtype in DTYPES.values()}
    found = known.get(str(value.dtype).removeprefix("torch."))
    if found is None or value.is_sparse or value.is_quantized:
        raise InputError(f"{file}: {name} is of {value.dtype}, which no model here has; check what the file is")
    return found
