"""The command: measures what a manifest lists, and writes the tables; or writes a manifest of runs."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reangle_jax import commands, compilation_cache, faults
from reangle_jax.data import files
from reangle_jax.data.paths import expand
from reangle_jax.errors import InputError, about
from reangle_jax.evaluation import from_runs, manifest
from reangle_jax.evaluation.manifest import EXAMPLE, Manifest, Output
from reangle_jax.scoring.inputs import Notes

PROGRAM = "python -m reangle_jax.evaluation"
DESCRIPTION = """\
Measures the outputs of many methods on many clips, and writes their table: rows/ (a file an output), table.json,
table.md and table.csv in --out. Killed, the same command goes on; what did not change is not measured again.
"""
EPILOG = f"""\
{PROGRAM} manifest [NAME=]RUN ... --out MANIFEST.json writes a manifest of finished runs.
What each figure is: docs/evaluation.md.
"""


def _parser() -> commands.Parser:
    parser = commands.Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    positive = commands.positive
    parser.add_argument("manifest", nargs="?", metavar="MANIFEST", help="a JSON file: clips, views, outputs")
    parser.add_argument("--out", metavar="DIR", help="the folder of the results, made if need be")
    parser.add_argument("--example", action="store_true", help="print a manifest and end")
    parser.add_argument("--metrics", metavar="A,B", help="figures to give (default: all that can be computed)")
    parser.add_argument("--against", metavar="METHOD", help="give the other methods' differences from this one")
    parser.add_argument("--weights", metavar="DIR", help="as python -m reangle_jax.scoring has it: tiny, or a folder")
    parser.add_argument(
        "--features", choices=("featup", "dino", "dinov2"), default="featup", help="what MEt3R compares"
    )
    parser.add_argument(
        "--size", type=positive, help="pixels a side of what MEt3R compares (256; 128 with --weights tiny)"
    )
    parser.add_argument(
        "--step", type=commands.whole(1, 10**9), default=1, help="met3r_frames compares frames i and i + this (1)"
    )
    parser.add_argument("--clip", type=commands.whole(9), default=16, help="frames of FVD's clips (16; I3D needs 9)")
    parser.add_argument("--tm", type=positive, default=10, help="TSED's T_matches: fewest matches of a pair (10)")
    parser.add_argument(
        "--te", type=commands.above_zero, default=2.0, help="TSED's T_error: pixels of 256, not reached (2)"
    )
    return parser


def _manifest_parser() -> commands.Parser:
    parser = commands.Parser(prog=f"{PROGRAM} manifest", description="Writes a manifest of finished runs.")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN",
        help=f"a run's folder, and what to call its method ({from_runs.OURS}); runs of one input are one clip",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the manifest to write")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a command line and gives the exit code, as `commands.answer` has them."""
    explain = faults.explained(less="a smaller --size, fewer --metrics at a time")
    if argv[:1] == ["manifest"]:
        return commands.answer(
            lambda stop: _write_manifest(_manifest_parser().parse_args(argv[1:])),
            stopped="nothing was written",
            explain=explain,
        )
    return commands.answer(lambda stop: _run(_parser().parse_args(argv)), explain=explain)


def _write_manifest(arguments: argparse.Namespace) -> None:
    expand(arguments, "out")
    out = Path(arguments.out)
    if out.is_dir():
        raise InputError(f"--out: {out} is a folder; give the name of a file")
    runs = []
    for text in arguments.runs:
        name, equals, run = text.partition("=")
        if Path(text).is_dir() or not equals:
            name, run = from_runs.OURS, text
        runs.append((name, Path(run)))
    found = from_runs.manifest(runs, out.resolve().parent)
    files.atomic_write_json(out, found)
    clips = found["clips"].values()
    print(f"wrote {out}: clips: {len(clips)}, views: {sum(len(clip['views']) for clip in clips)}")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.example:
        print(EXAMPLE, end="")
        return
    expand(arguments, "manifest", "out", "weights")
    for name, what in (("manifest", "give a JSON file (--example prints one)"), ("out", "give a folder")):
        if not getattr(arguments, name):
            raise InputError(f"{'MANIFEST' if name == 'manifest' else '--' + name} is not set: {what} (see --help)")
    found = manifest.read(Path(arguments.manifest))
    if arguments.against and arguments.against not in found.methods:
        raise InputError(f"--against {arguments.against}: no such method; there are {', '.join(found.methods)}")
    _check_files(found)
    _measure(arguments, found)


def _check_files(found: Manifest) -> None:
    """What headers tell, before any work: files are videos, and long enough; cameras are read whole."""
    from reangle_jax.evaluation import frames
    from reangle_jax.evaluation.item import read_cameras

    lengths = {}
    for output in found.outputs:
        with about(f"{found.path}: {output.where}"):
            for path in (output.file, output.input, output.reference):
                if path is not None and path not in lengths:
                    lengths[path] = frames.promised(path)
            count = lengths[output.file]
            if count is None:
                continue
            moments = output.moments(count)
            last = max(moments)
            for path in (output.input, output.reference):
                if path is not None and (there := lengths[path]) is not None and last >= there:
                    raise InputError(frames.past_the_end(path, last, there))
            for path in (output.cameras, output.input_cameras):
                if path is not None:
                    read_cameras(path, moments)


def _measure(arguments: argparse.Namespace, found: Manifest) -> None:
    from reangle_jax.evaluation import parts, table  # late: mistakes are answered before the networks' seconds
    from reangle_jax.evaluation.rows import Rows
    from reangle_jax.scoring import networks

    options = parts.Options(
        weights=networks.resolve(arguments.weights) if arguments.weights else None,
        features=arguments.features,
        size=networks.default_size(arguments.weights or "") if arguments.size is None else arguments.size,
        step=arguments.step,
        min_matches=arguments.tm,
        max_error=arguments.te,
        clip=arguments.clip,
    )
    if options.weights is not None and not options.weights.is_dir():
        raise InputError(f"--weights: no such folder: {options.weights}; give tiny, or a folder of converted weights")
    note = Notes()
    figures = _chosen(arguments.metrics, found, options, note)
    out = Path(arguments.out)
    with files.own_folder(out, "--out"):
        files.remove_leftovers(out)
        compilation_cache.use()
        rows: dict[Output, Any] = {}
        features: dict[Output, Any] = {}
        store = Rows(out, options, note)
        for output in found.outputs:
            row, features[output] = store.measure(output, parts.giving(figures))
            rows[output] = {name: row.get(name) for name in figures}
            said = [f"{name} {value:.4f}" for name, value in rows[output].items() if value is not None]
            place = f"{len(rows)}/{len(found.outputs)} {output.clip}/{output.view} {output.method}"
            print(f"{place}: {', '.join(said)}", file=sys.stderr)
        report = table.summarise(found, rows, features, figures, arguments.against, note)
        report |= {"options": {**options._asdict(), "weights": arguments.weights}, "notes": note.lines}
        files.atomic_write_json(out / "table.json", report)
        files.atomic_write_bytes(out / "table.csv", table.comma_separated(rows, figures).encode())
        text = table.markdown(report)
        files.atomic_write_bytes(out / "table.md", text.encode())
    print(text, end="")


def _chosen(metrics: str | None, found: Manifest, options: Any, note: Notes) -> dict[str, Any]:
    """The figures to give, by name."""
    from reangle_jax.evaluation import parts
    from reangle_jax.scoring import networks

    known = parts.known()
    asked = [name for name in re.split(r"[\s,]+", metrics or "") if name]
    for name in asked:
        if name not in known:
            raise InputError(f"--metrics {name}: no such figure; there are {', '.join(known)}")
    chosen: dict[str, Any] = {}
    for name in parts.giving(asked or known):
        part = (parts.PARTS | parts.SETS)[name]
        figures = {name: figure for name, figure in part.figures.items() if name in (asked or known)}
        lacks = [why for output in found.outputs if (why := part.lacks(output, options)) is not None]
        names, why = ", ".join(figures), f"{' or '.join(sorted(set(lacks)))}"
        if len(lacks) < len(found.outputs):
            chosen |= figures
            if lacks:
                note(f"{names}: not of {len(lacks)} of {len(found.outputs)} outputs, which need {why}")
        elif asked:
            raise InputError(f"--metrics {names}: needs {why}")
        else:
            note(f"no {names}: needs {why}")
    if options.weights == networks.resolve(networks.TINY) and {"met3r_input", "met3r_frames"} & chosen.keys():
        note("MEt3R is by this package's small networks: compare it with figures by them alone")
    return chosen
