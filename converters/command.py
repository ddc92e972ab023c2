"""The command: reads the flags, then checks, converts or lists; every mistake of the user's is one clear line."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from converters import registry
from reangle_jax import commands, faults
from reangle_jax.data.paths import expand
from reangle_jax.errors import InputError

USAGE = """\
python -m converters NAME --source DIR_OR_FILE_OR_REPO_ID --out DIR [--dtype bfloat16]
       python -m converters NAME --source DIR_OR_FILE --check
       python -m converters NAME --source OUR_DIR --out DIR --to-torch
       python -m converters --list
       python -m converters lora-import | lora-export ..."""
DESCRIPTION = """\
Published checkpoints to this library's weights: OUT/PART/ with an Orbax checkpoint in params/, config.json, and
manifest.json with the source's hashes. Give OUT as config.weights. The same command again continues.
"""


def _parser() -> commands.Parser:
    parser = commands.Parser(prog="python -m converters", usage=USAGE, description=DESCRIPTION)
    parser.add_argument("name", nargs="?", help="a model of --list, or one part of it, such as NAME/transformer")
    parser.add_argument("--source", help="the published folder or file, or a repo id of the Hugging Face Hub")
    parser.add_argument("--out", help="folder for the result; each part becomes a folder in it")
    parser.add_argument("--dtype", help="store as float32, bfloat16, float16 or int8 (default: as --list says)")
    parser.add_argument("--check", action="store_true", help="read the headers, report, write and download nothing")
    parser.add_argument("--to-torch", action="store_true", help="the way back: our weights in the published layout")
    parser.add_argument("--list", action="store_true", help="models, sizes, licences and where they are published")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a command line and gives the exit code, as `commands.answer` has them."""
    explain = faults.explained(then="and the same command continues")
    return commands.answer(lambda stop: _dispatch(list(argv)), explain=explain)


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in ("lora-import", "lora-export"):
        from converters import lora

        command = lora.import_command if argv[0] == "lora-import" else lora.export_command
        return command(argv[1:]) or 0
    arguments = _parser().parse_args(argv)
    expand(arguments, "source", "out")
    if arguments.list:
        print(_table())
        return 0
    if not arguments.name:
        raise InputError("give NAME, the model to convert (see --list), or --help")
    model, parts = registry.find(arguments.name)
    alone = "/" in arguments.name or len(model.parts) == 1
    if not arguments.source:
        hint = f"or --source={model.repo} to download it" if "://" not in model.repo else f"from {model.repo}"
        hint = f"here {model.source}" if model.source else hint
        raise InputError(f"--source is not set: give the folder or file, {hint}")
    if not arguments.check and not arguments.out:
        raise InputError(f"--out is not set: give a folder, such as --out=weights/{model.name}, or --check")
    if arguments.to_torch:
        from converters import to_torch

        return to_torch.run(model, parts, Path(arguments.source), Path(arguments.out), arguments.dtype)
    return _convert(model, parts, alone, arguments)


def _convert(model: registry.Model, parts: Sequence[registry.Part], alone: bool, arguments: argparse.Namespace) -> int:
    """Every part's header first: a mistake in the last costs no time in the first."""
    from converters import check, stream
    from converters.sources import folder, hub

    _give_memory_back()
    if arguments.dtype:
        stream.stored_dtype(arguments.dtype)
    patterns = [pattern for part in parts for pattern in part.patterns]
    path = hub.resolve(arguments.source, patterns, download=not arguments.check)
    plans, errors = [], []
    for part in parts:
        try:
            opened = folder.open_part(path, part, alone=alone)
            plans.append((part, opened, check.plan(model.name, part, opened)))
        except InputError as error:
            errors.append(error)
    if errors:
        report = [line for error in errors for line in (str(error), *error.report)]
        raise InputError(report[0], tuple(report[1:]))
    for part, opened, plan in plans:
        size = sum(tensor.nbytes for tensor in opened.source.tensors.values())
        print(
            f"{model.name}/{part.name}: {len(opened.source.tensors)} tensors, {size / 1e9:.2f} GB, {plan.dtype.name}, "
            f"{plan.layout.name} layout: {'fits' if arguments.check else 'converting'}"
        )
        for note in plan.notes:
            print(f"  note: {note}")
        if not arguments.check:
            dtype = stream.stored_dtype(arguments.dtype or part.dtype)
            _write(stream.Writer(model.name, plan, opened, Path(arguments.out), dtype, say=_say), size)
    return 0


def _give_memory_back() -> None:
    """Lets freed blocks above a megabyte go back at once; glibc keeps those below 32 MiB, in every thread's arena."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # other C libraries
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _write(writer, size: int) -> None:
    from absl import logging
    from tqdm import tqdm

    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    with tqdm(total=size, unit="B", unit_scale=True, desc=writer.plan.part.name, mininterval=1, disable=None) as bar:
        writer.advance = bar.update
        written = writer.run()
    if written:
        print(f"  wrote {writer.final}: {writer.nbytes / 1e9:.2f} GB, {writer.stored_as}")


def _table() -> str:
    rows = [("name", "GB", "stored as", "licence", "published at")]
    for model in registry.models().values():
        size = sum(part.size for part in model.parts)
        stored = ", ".join(sorted({part.dtype for part in model.parts}))
        rows.append((model.name, f"{size:.2f}", stored, model.licence, model.address))
        if len(model.parts) > 1:
            rows += [
                (f"  {model.name}/{part.name}", f"{part.size:.2f}", part.dtype, part.licence, "")
                for part in model.parts
            ]
    return "\n".join(
        commands.aligned(rows) + [f"{m.name}: --source is {m.source}" for m in registry.models().values() if m.source]
    )
