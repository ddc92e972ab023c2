"""The command: scores pictures or videos with MEt3R; every mistake of the user's is one clear line.

It reads files, so it stands above the other modules of this room, as `reangle_jax.main` does above the stages.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reangle_jax import commands, compilation_cache, faults
from reangle_jax.arrays import Picture
from reangle_jax.data import files
from reangle_jax.data.paths import expand
from reangle_jax.data.pictures import write_png
from reangle_jax.errors import InputError, about
from reangle_jax.scoring.inputs import Notes, check_size, iterate_video, moments, read_picture, read_pictures, square

DESCRIPTION = """\
MEt3R (arXiv 2501.06336) of pictures of one moment, or of videos of one scene: 0 is consistent, 2 the worst; no camera
is needed. All unordered pairs are scored, of videos frame by frame; the mean is over all of them. JSON goes to stdout
(or --out), a table to stderr.
"""
EPILOG = """\
Pictures are resized so that the shorter side is --size, and their centre is cropped. A pair that shows nothing in
common has no score (null) and is left out of the mean. For videos, temporal_flickering is VBench's (1: nothing
changes), of each at its own size.
"""


def _parser() -> commands.Parser:
    parser = commands.Parser(prog="python -m reangle_jax.scoring", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="two or more pictures of one moment")
    parser.add_argument("--video", nargs="+", metavar="FILE", help="two or more videos (or folders of frames) instead")
    parser.add_argument(
        "--weights",
        metavar="DIR",
        help="tiny (small networks that come with this package), or a folder with dust3r/ and one of featup/, dino/ "
        "and dinov2/ (python -m converters)",
    )
    parser.add_argument(
        "--features",
        choices=("featup", "dino", "dinov2"),
        default="featup",
        help="what is compared: DINO's features upsampled by the picture's edges (featup, the default), or DINO's or "
        "DINOv2's upsampled bilinearly",
    )
    parser.add_argument(
        "--size",
        type=commands.positive,
        help="pixels per side of what is compared (default: 256; 128 with --weights tiny)",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="what each input should look like: PSNR, SSIM and, with lpips/ in the weights, LPIPS against it, at its "
        "size; one input is enough then, and --weights only for LPIPS",
    )
    parser.add_argument("--out", metavar="FILE", help="write the JSON here instead of to stdout")
    parser.add_argument(
        "--save-maps", metavar="DIR", help="write score, overlap and both renderings of each pair as PNG"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a command line and gives the exit code, as `commands.answer` has them."""
    explain = faults.explained("what --out or --save-maps names", less="a smaller --size, fewer inputs, shorter videos")
    return commands.answer(
        lambda stop: _run(_parser().parse_args(argv)), stopped="no report was written", explain=explain
    )


def _run(arguments: argparse.Namespace) -> None:
    expand(arguments, "pictures", "video", "weights", "reference", "out", "save_maps")
    paths = _paths(arguments)
    note = Notes()
    pictures = None if arguments.video else read_pictures(paths, note)
    if len(paths) > 1 and not arguments.weights:
        raise InputError(
            "--weights is not set: give tiny, or the folder that `python -m converters` wrote dust3r/ and featup/, "
            "dino/ or dinov2/ to"
        )
    maps = Path(arguments.save_maps) if arguments.save_maps else None
    if maps:
        maps.mkdir(parents=True, exist_ok=True)
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        if Path(arguments.out).is_dir():
            raise InputError(f"--out: {arguments.out} is a folder; give the name of a file")
    compilation_cache.use()
    report: dict[str, Any] = {"inputs": paths, "weights": arguments.weights}
    if len(paths) > 1:
        report |= _consistency(arguments, paths, pictures, maps, note)
    if arguments.reference:
        report["reference"] = _likeness(arguments, paths, note)
    report["notes"] = note.lines
    print(_table(report), file=sys.stderr)
    if arguments.out:
        try:
            files.atomic_write_json(arguments.out, report)
        except OSError as error:
            raise InputError(f"--out: {arguments.out} cannot be written ({error.strerror}); choose another") from None
    else:
        print(json.dumps(report, indent=2, allow_nan=False))


def _paths(arguments: argparse.Namespace) -> list[str]:
    if arguments.pictures and arguments.video:
        raise InputError("pictures and --video exclude each other: put the pictures in a call of their own")
    paths, what = (arguments.video, "video") if arguments.video else (arguments.pictures, "picture")
    if not paths or (len(paths) < 2 and not arguments.reference):
        had = f"only {paths[0]} is given" if paths else "none is given"
        raise InputError(f"a {what} is compared with another, and {had}: give two {what}s or more (see --help)")
    for path in [*paths, *([arguments.reference] if arguments.reference else [])]:
        if not Path(path).exists():
            raise InputError(f"no such file: {path}")
    return paths


def _consistency(
    arguments: argparse.Namespace, paths: list[str], pictures: list[Picture] | None, maps: Path | None, note: Notes
) -> dict[str, Any]:
    from reangle_jax.scoring import networks  # late: mistakes are answered before the networks' seconds

    size = networks.default_size(arguments.weights) if arguments.size is None else arguments.size
    with about("--weights"):
        metric, states = networks.load(arguments.weights, arguments.features)
    check_size(size, networks.patch_multiple(metric, states))
    report = {"features": arguments.features, "size": [size] * 2}
    shown = moments(paths, note) if pictures is None else [pictures]
    squares = ([square(picture, size) for picture in images] for images in shown)
    return report | _score(metric, states, paths, squares, maps, note, videos=pictures is None)


def _likeness(arguments: argparse.Namespace, paths: list[str], note: Notes) -> dict[str, Any]:
    """PSNR, SSIM and, where its weights are, LPIPS of each input, frame by frame, at the reference's size."""
    from reangle_jax.scoring import networks, perceptual, reference

    folder = networks.resolve(arguments.weights) / perceptual.FOLDER if arguments.weights else None
    with about("--weights"):
        measure = perceptual.load(folder) if folder is not None and folder.is_dir() else None
    if measure is None:
        note("no LPIPS: --weights names no folder with lpips/ (python -m converters lpips-alex)")

    def frames(path: str) -> Iterable[Picture]:
        return iterate_video(path) if arguments.video else [read_picture(path)]

    rows = []
    for path in paths:
        figures = reference.compare(
            frames(path),
            frames(arguments.reference),
            measure,
            name=path,
            reference_name=arguments.reference,
            note=note,
        )
        rows.append({"input": path, **figures})
    return {"file": arguments.reference, "likeness": rows}


def _score(
    metric, states, names: list[str], shown: Iterable[list[Picture]], maps: Path | None, note: Notes, *, videos: bool
) -> dict[str, Any]:
    """Scores all pairs of pictures, or of videos moment by moment; at each moment one picture of each is ``shown``."""
    from reangle_jax.scoring import video

    scored: list[list[video.PairScore]] = []
    saved: dict[tuple[int, int], list[str]] = {}
    for k, images in enumerate(shown):
        scored.append([])
        for score in video.score_views(metric, states, images, keep_ways=maps is not None):
            if maps is not None:
                saved.setdefault(score[:2], []).extend(_save_maps(maps, score, f"-frame{k:04d}" if videos else ""))
            scored[-1].append(score._replace(ways=None))
    pairs = []
    for scores in zip(*scored, strict=True):
        i, j = scores[0][:2]
        undefined = sum(score.met3r is None for score in scores)
        if undefined:
            frames = f" in {undefined} of {len(scores)} frames" if videos else ""
            note(f"{names[i]} and {names[j]} show nothing in common{frames}: no score")
        entry: dict[str, Any] = {"first": names[i], "second": names[j], "met3r": video.mean_score(scores)}
        entry |= {"overlap": statistics.fmean(s.overlap for s in scores)}
        entry |= {"per_frame": [s.met3r for s in scores]} if videos else {}
        pairs.append(entry | ({"maps": saved[i, j]} if maps is not None else {}))
    report: dict[str, Any] = {"met3r": video.mean_score(score for scores in scored for score in scores)}
    report |= {"frames": len(scored), "pairs": pairs} if videos else {"pairs": pairs}
    return report | ({"temporal_flickering": {name: _flickering(name, note) for name in names}} if videos else {})


def _flickering(path: str, note: Notes) -> float | None:
    from reangle_jax.scoring import video

    try:
        return video.temporal_flickering(iterate_video(path))
    except InputError:
        raise
    except ValueError:
        note(f"{path} has one frame only: no temporal flickering")
        return None


def _save_maps(folder: Path, score, suffix: str = "") -> list[str]:
    """I-J: in picture I's camera, counted from 1."""
    from reangle_jax.scoring import maps

    i, j = score.first + 1, score.second + 1
    written = []
    for stem, way in zip((f"{i}-{j}{suffix}", f"{j}-{i}{suffix}"), score.ways, strict=True):
        for part, picture in maps.pictures(way).items():
            path = folder / f"{stem}-{part}.png"
            write_png(path, picture)
            written.append(str(path))
    return written


def _table(report: dict[str, Any]) -> str:
    pairs, lines = report.get("pairs", []), []
    if pairs:
        rows = [("first", "second", "MEt3R", "overlap")]
        rows += [(p["first"], p["second"], _say(p["met3r"]), f"{100 * p['overlap']:.0f} %") for p in pairs]
        if len(pairs) > 1:
            rows.append(("mean", "", _say(report["met3r"]), ""))
        lines += commands.aligned(rows)
    if "reference" in report:
        names = ("psnr", "ssim", "lpips")
        rows = [(f"against {report['reference']['file']}", *map(str.upper, names))]
        rows += [(one["input"], *(_say(one.get(name)) for name in names)) for one in report["reference"]["likeness"]]
        lines += commands.aligned(rows)
    flickering = report.get("temporal_flickering")
    if flickering:
        rows = [("video", "temporal flickering"), *((path, _say(x)) for path, x in flickering.items())]
        lines += commands.aligned(rows)
    return "\n".join(lines)


def _say(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
