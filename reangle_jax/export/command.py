"""The command: reads runs and writes a data set, whole or not at all."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reangle_jax import commands, faults
from reangle_jax.data import files
from reangle_jax.data.paths import expand
from reangle_jax.errors import InputError
from reangle_jax.export import clip as clips
from reangle_jax.export.clip import Clip
from reangle_jax.export.registry import FORMATS
from reangle_jax.export.writing import Options

DESCRIPTION = """\
A run's synchronised views as a data set that tools for 3D and 4D reconstruction read (docs/export.md). It appears at
--out whole or not at all, in a folder of its own.
"""


def _parser() -> commands.Parser:
    parser = commands.Parser(prog="python -m reangle_jax.export", description=DESCRIPTION)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder (of tfds several)")
    parser.add_argument("--format", choices=tuple(FORMATS), help="the layout; --list says what reads each")
    parser.add_argument("--out", metavar="DIR", help="the folder to be, which must not hold anything yet")
    parser.add_argument("--views", metavar="A,B", help="views to write, in this order (default: all)")
    parser.add_argument("--with-input", action="store_true", help="the input too, as the first camera")
    parser.add_argument("--masks", action="store_true", help="masks: white where the input saw what a view shows")
    parser.add_argument("--frames", metavar="0,24", help="time steps that get a folder or a cloud (default: all)")
    parser.add_argument("--test", metavar="VIEW", help="the view held out for evaluation, where the layout has one")
    parser.add_argument("--fused", action="store_true", help="points: one cloud of all frames")
    parser.add_argument("--square", action="store_true", help="dnerf: the middle of the pictures, as high as wide")
    parser.add_argument(
        "--shards", type=commands.positive, default=1, help="tfds: files to spread the examples over, at most one each"
    )
    parser.add_argument("--list", action="store_true", help="say what reads each layout")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a command line and gives the exit code, as `commands.answer` has them."""
    return commands.answer(
        lambda stop: _run(_parser().parse_args(argv)), stopped="nothing was written", explain=_explain
    )


def _explain(error: Exception) -> str | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None  # what is read has lines of its own
    why = faults.cannot_write(error) or error.strerror
    return f"--out cannot be written ({why}): mend that, or choose another"


def _run(arguments: argparse.Namespace) -> None:
    if arguments.list:
        print("\n".join(f"{name:13}{form.read_by}" for name, form in FORMATS.items()))
        return
    expand(arguments, "runs", "out")
    for name, what in (
        ("runs", "give a run's folder"),
        ("format", f"one of {', '.join(FORMATS)}"),
        ("out", "a folder"),
    ):
        if not getattr(arguments, name):
            raise InputError(f"{'RUN' if name == 'runs' else '--' + name} is not set: {what} (see --help)")
    form, out = FORMATS[arguments.format], Path(arguments.out)
    if len(arguments.runs) > 1 and not form.several:
        raise InputError(f"--format {arguments.format} takes one run at a time: give each an --out of its own")
    for flag, has in (
        ("masks", form.masks),
        ("test", form.test),
        ("fused", arguments.format == "points"),
        ("square", arguments.format == "dnerf"),
    ):
        if getattr(arguments, flag) and not has:
            raise InputError(f"--format {arguments.format} has no --{flag}: leave it out")
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out.samefile(".")):
        raise InputError(f"--out {out} is there already: each data set has a folder of its own; give another")
    views = [view.strip() for view in (arguments.views or "").split(",") if view.strip()]
    found = [clips.read(Path(run), views, with_input=arguments.with_input) for run in arguments.runs]
    options = _options(arguments, found[0])
    with files.atomic_folder(out) as root:
        form.write(root, found if form.several else found[0], options)
    count = f"{len(found[0].tracks)} views of {found[0].size[0]} frames"
    print(f"wrote {out}: {arguments.format}, {count}; read by {form.read_by}")


def _options(arguments: argparse.Namespace, clip: Clip) -> Options:
    frames = tuple(range(clip.size[0]))
    if arguments.frames:
        words = arguments.frames.split(",")
        if not all(word.strip().isdecimal() and len(word) < 10 and int(word) in frames for word in words):
            raise InputError(
                f"--frames {arguments.frames}: give numbers from 0 to {frames[-1]}, such as 0,{frames[-1]}"
            )
        frames = tuple(sorted({int(word) for word in words}))
    test = None
    if arguments.test:
        names = {track.name: track for track in clip.tracks}
        test = names.get(clips.folder_name(arguments.test))
        if test is None or len(names) < 2:
            raise InputError(
                f"--test {arguments.test}: it must be one of two or more exported views, {', '.join(names)}"
            )
    return Options(arguments.masks, frames, test, arguments.fused, arguments.shards, arguments.square)
