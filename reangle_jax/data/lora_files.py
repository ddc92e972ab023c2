"""Where a LoRA's file lies, and how the user names one."""

import math
import os
from pathlib import Path

from reangle_jax.errors import InputError

# What the file is called in a run's lora/, in diffusers' folder, in PEFT's, and below a run.
NAMES = (
    "lora.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "lora/lora.safetensors",
)
PEFT_CONFIG = "adapter_config.json"  # beside a file that does not state its alpha


def find(path: str | os.PathLike) -> Path:
    """The safetensors file of a LoRA given as a file, as a run's ``lora/`` or its run, or as diffusers' folder.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    found = [path] if path.is_file() else [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        what = f"{path} holds no {' or '.join(NAMES)}" if path.is_dir() else f"no such file: {path}"
        raise InputError(f"{what}; give a LoRA's .safetensors file, or its folder")
    return found[0]


def choice(text: str) -> tuple[Path, float]:
    """File and weight of an entry of `config.loras`, FILE or FILE:WEIGHT; the weight is 1 where none is given.

    Raises:
        InputError: there is no such file, or folder with one.
    """
    path, colon, weight = text.rpartition(":")
    try:
        value = float(weight)
        if not colon or not math.isfinite(value):
            raise ValueError
    except ValueError:
        path, value = text, 1.0
    try:
        return find(path), value
    except InputError as error:
        raise InputError(f"config.loras: {text!r}: {error}, and :WEIGHT") from None


def read_from(text: str) -> list[Path]:
    """What an entry of `config.loras` is read from: the file, and PEFT's description beside it where there is one."""
    file = choice(text)[0]
    return [path for path in (file, file.parent / PEFT_CONFIG) if path.is_file()]
