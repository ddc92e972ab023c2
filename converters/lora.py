"""LoRAs both ways: ``lora-import`` (another writer's file to a run's ``lora/``) and ``lora-export`` (back)."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np

from reangle_jax import checkpoints, commands
from reangle_jax.backbones.cogvideox import lora, lora_layouts
from reangle_jax.data import files, lora_files, safetensors
from reangle_jax.data.paths import expand
from reangle_jax.errors import InputError, about
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig

# Of each width and depth one: a LoRA does not tell 5b, 5b-i2v and 1.5 apart, and is laid out alike for them.
_KNOWN = (TransformerConfig.cogvideox_5b_i2v(), TransformerConfig.cogvideox_2b(), TransformerConfig.tiny())
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def import_command(args: list[str]) -> int:
    """``--source FILE_OR_DIR --out DIR [--alpha A] [--transformer DIR]``: writes what a run keeps as ``lora/``.

    Raises:
        InputError: the file is missing or damaged, or fits no transformer; the folder exists.
    """
    parser = commands.Parser(
        prog="python -m converters lora-import",
        description="A LoRA of another program to what a run keeps as lora/, for --config.loras.",
    )
    parser.add_argument("--source", required=True, help="a LoRA of diffusers, PEFT or kohya: a file, or its folder")
    parser.add_argument("--out", required=True, help="folder to make: lora.safetensors and state/ (Orbax)")
    parser.add_argument("--alpha", type=commands.above_zero, help="for a file that does not state its alpha")
    parser.add_argument("--transformer", help="folder of the converted transformer; recognised by its sizes otherwise")
    options = parser.parse_args(args)
    expand(options, "source", "out", "transformer")
    source, out = lora_files.find(options.source), Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} exists: give another folder, or remove it")
    config = _transformer(source, options.transformer)
    adapters = lora.read(source, config, alpha=options.alpha)
    config = dataclasses.replace(config, lora_rank=adapters.rank, lora_alpha=adapters.alpha)
    with files.atomic_folder(out) as folder:
        lora.save_folder(folder, lora.to_state(adapters, config), config)
    print(f"wrote {out}: rank {adapters.rank}, alpha {adapters.alpha:g}; use it with --config.loras={out}")
    return 0


def export_command(args: list[str]) -> int:
    """``--source RUN/lora --out FILE [--dtype float32]``: writes the file that diffusers' ``load_lora_weights`` reads.

    Raises:
        InputError: the source has no LoRA, or a damaged one; the file cannot be written.
    """
    parser = commands.Parser(
        prog="python -m converters lora-export",
        description="A run's LoRA to the file that diffusers' load_lora_weights reads.",
    )
    parser.add_argument("--source", required=True, help="a run's lora/, or the run")
    parser.add_argument("--out", required=True, help="file to write, such as pytorch_lora_weights.safetensors")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="float32")
    options = parser.parse_args(args)
    expand(options, "source", "out")
    source, out = lora_files.find(options.source), Path(options.out)
    if out.suffix != ".safetensors":
        raise InputError(f"--out: {out} does not end in .safetensors, which diffusers needs: give such a name")
    config = _transformer(source, None)
    adapters = lora.read(source, config, stated=True)
    lora.export_lora_safetensors(out, adapters, config, dtype=_DTYPES[options.dtype])
    print(f"wrote {out}: rank {adapters.rank}, {options.dtype}; its alpha, {adapters.alpha:g}, is in its metadata")
    return 0


def _transformer(source: Path, folder: str | None) -> TransformerConfig:
    """The transformer that a file is for: the one in a folder, or one with the file's layers and width."""
    if folder is not None:
        with about("--transformer"):
            return checkpoints.load_config(folder, TransformerConfig)
    layers, widths = lora_layouts.sizes(safetensors.read_header(source)[0])
    for config in _KNOWN:
        if layers == config.num_layers and config.inner_dim in widths:
            return config
    raise InputError(
        f"{source}: a LoRA of {layers} layers, width {', '.join(map(str, sorted(widths)))}, fits "
        "no transformer that is known here: give --transformer, the folder of the one that it was trained on"
    )
