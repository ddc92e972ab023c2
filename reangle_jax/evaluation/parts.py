"""What is measured of an output: parts, each of which gives the figures that are computed together."""

import functools
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reangle_jax.errors import TooSmallError, about
from reangle_jax.evaluation.item import Item
from reangle_jax.evaluation.manifest import Output
from reangle_jax.scoring import epipolar, fvd, networks, perceptual, reference, vbench, video
from reangle_jax.scoring.inputs import check_size, square

PUBLISHED = 256  # pixels a side that SED's published figures and thresholds are of
Figures = dict[str, float | None]  # by name; None where there is nothing to say
Features = dict[str, np.ndarray]  # "outputs" and "inputs", a clip a row


class Options(NamedTuple):
    """How it is measured."""

    weights: Path | None = None  # the folder of converted weights; None without
    features: str = "featup"  # of MEt3R, one of `networks.FEATURES`
    size: int = 256  # pixels a side of what MEt3R compares
    step: int = 1  # of ``met3r_frames``, how many frames apart
    min_matches: int = epipolar.MIN_MATCHES  # T_matches of TSED
    max_error: float = epipolar.MAX_ERROR  # T_error of TSED, pixels of `PUBLISHED`
    clip: int = fvd.FRAMES  # frames of FVD's clips


class Figure(NamedTuple):
    """What a number is, in words, and whether more of it is better."""

    higher: bool
    what: str


class Part(NamedTuple):
    """What is computed together."""

    figures: dict[str, Figure]  # by name
    measure: Callable[[Item, Options], Any]  # the `Figures` of one output, or its `Features`
    # What an output or the options lack for it, in words; None: nothing.
    lacks: Callable[[Output, Options], str | None] = lambda output, options: None
    reads: tuple[str, ...] = ()  # which of an `Output`'s files it reads beside ``file``
    settings: tuple[str, ...] = ()  # which of the `Options` it depends on
    weights: Callable[[Options], tuple[str, ...]] = lambda options: ()  # names of the folders of weights that it loads
    version: int = 1  # raised where its figures of equal files change


def _flickering(item: Item, options: Options) -> Figures:
    if len(item.frames) < 2:
        item.note(f"{item.output.file} has one frame only: no temporal flickering")
        return {"temporal_flickering": None}
    return {"temporal_flickering": video.temporal_flickering(item.frames)}


@functools.lru_cache(2)
def _frame_network(folder: Path) -> vbench.Describe:
    with about("--weights"):
        return vbench.load(folder)


@functools.lru_cache(1)
def _aesthetic_head(folder: Path) -> vbench.Aesthetic:
    with about("--weights"):
        return vbench.load_aesthetic(folder)


def _consistency(figure: str, network: str, item: Item, options: Options) -> Figures:
    if len(item.frames) < 2:
        item.note(f"{item.output.file} has one frame only: no {figure.replace('_', ' ')}")
        return {figure: None}
    assert options.weights is not None
    return {figure: vbench.consistency(_frame_network(options.weights / network)(item.frames))}


def _aesthetic(item: Item, options: Options) -> Figures:
    assert options.weights is not None
    vectors = _frame_network(options.weights / vbench.LARGE)(item.frames)
    return {"aesthetic_quality": vbench.aesthetic(vectors, _aesthetic_head(options.weights / vbench.AESTHETIC))}


def _with_networks(figure: str, what: str, measure: Callable[[Item, Options], Figures], *folders: str) -> Part:
    """A part of one figure that needs weights and no file beside the output."""
    return Part(
        {figure: Figure(True, what)},
        measure,
        lambda output, options: _no_weights(options, *folders),
        weights=lambda options: folders,
    )


def _consistency_part(figure: str, network: str, what: str) -> Part:
    return _with_networks(figure, what, functools.partial(_consistency, figure, network), network)


def _no_reference(output: Output, options: Options) -> str | None:
    return None if output.reference else "a reference in the manifest"


def _likeness(item: Item, options: Options) -> Figures:
    found = reference.compare(
        item.frames, item.reference, name=item.output.where, reference_name=str(item.output.reference), note=item.note
    )
    return {name: found[name] for name in ("psnr", "ssim")}


def _no_lpips(output: Output, options: Options) -> str | None:
    return _no_reference(output, options) or _no_weights(options, perceptual.FOLDER)


def _no_weights(options: Options, *names: str) -> str | None:
    there = options.weights is not None and all((options.weights / name).is_dir() for name in names)
    return None if there else f"--weights with {' and '.join(f'{name}/' for name in names)}"


@functools.lru_cache(1)
def _lpips_network(folder: Path) -> perceptual.Measure:
    with about("--weights"):
        return perceptual.load(folder)


def _lpips(item: Item, options: Options) -> Figures:
    assert options.weights is not None
    measure = _lpips_network(options.weights / perceptual.FOLDER)
    try:
        found = [float(measure(a[None], b[None])[0]) for a, b in zip(item.frames, item.reference, strict=True)]
    except TooSmallError:
        item.note(f"{item.output.file} is too small for LPIPS: none is given")
        return {"lpips": None}
    return {"lpips": statistics.fmean(found)}


def _met3r_folders(options: Options) -> tuple[str, ...]:
    return networks.GEOMETRY, options.features


def _no_met3r(output: Output, options: Options) -> str | None:
    return _no_weights(options, *_met3r_folders(options))


@functools.lru_cache(1)
def _met3r_networks(folder: Path, features: str, size: int) -> tuple[Any, Any]:
    with about("--weights"):
        metric, states = networks.load(folder, features)
    check_size(size, networks.patch_multiple(metric, states))
    return metric, states


def _met3r(item: Item, options: Options) -> tuple[Any, Any]:
    assert options.weights is not None
    return _met3r_networks(options.weights, options.features, options.size)


def _met3r_input(item: Item, options: Options) -> Figures:
    pairs = zip(item.source, item.frames, strict=True)
    moments = ([square(picture, options.size) for picture in pair] for pair in pairs)
    metric = _met3r(item, options)
    scores = [score for moment in moments for score in video.score_views(*metric, moment)]
    return {"met3r_input": _mean_score(item, scores)}


def _met3r_frames(item: Item, options: Options) -> Figures:
    squares = (square(picture, options.size) for picture in item.frames)
    scores = list(video.score_sequence(*_met3r(item, options), squares, options.step))
    return {"met3r_frames": _mean_score(item, scores)}


def _mean_score(item: Item, scores: Sequence[video.PairScore]) -> float | None:
    nothing = sum(score.met3r is None for score in scores)
    if nothing or not scores:
        item.note(f"{item.output.where}: {nothing} of {len(scores)} pairs of frames show nothing in common: no MEt3R")
    return video.mean_score(scores)


def _no_cameras(output: Output, options: Options) -> str | None:
    return None if output.cameras else "cameras of the view in the manifest"


def _no_input_cameras(output: Output, options: Options) -> str | None:
    return None if output.cameras and output.input_cameras else "cameras of the input and of the view in the manifest"


def _epipolar_frames(item: Item, options: Options) -> Figures:
    return _epipolar(item, options, "frames", item.frames, item.cameras, [*itertools.pairwise(range(len(item.frames)))])


def _epipolar_input(item: Item, options: Options) -> Figures:
    count = len(item.frames)
    cameras = tuple(np.concatenate(both) for both in zip(item.input_cameras, item.cameras, strict=True))
    images = [*item.source, *item.frames]
    return _epipolar(item, options, "input", images, cameras, [(k, count + k) for k in range(count)])


def _epipolar(
    item: Item, options: Options, name: str, images: Any, cameras: Sequence[np.ndarray], pairs: list[tuple[int, int]]
) -> Figures:
    """SED in pixels of pictures whose shorter side is `PUBLISHED`; keypoints are found in the pictures as they are."""
    scale = PUBLISHED / min(item.size)
    if not pairs:
        return {f"sed_{name}": None, f"tsed_{name}": None}
    K, poses = cameras
    error = options.max_error / scale
    found = epipolar.tsed(images, K, poses, pairs, min_matches=options.min_matches, max_error=error)
    if found.tsed is None:
        item.note(f"{item.output.where}: the cameras of sed_{name} stand at one place: no epipolar lines")
    elif found.sed is None:
        item.note(
            f"{item.output.where}: no pair of sed_{name} has {options.min_matches} matches or more (--tm): no SED"
        )
    return {f"sed_{name}": None if found.sed is None else scale * found.sed, f"tsed_{name}": found.tsed}


@functools.lru_cache(1)
def _fvd_network(folder: Path) -> fvd.Describe:
    with about("--weights"):
        return fvd.load(folder)


def _no_fvd(output: Output, options: Options) -> str | None:
    return _no_weights(options, fvd.FOLDER)


def _fvd_features(item: Item, options: Options) -> Features:
    assert options.weights is not None
    describe = _fvd_network(options.weights / fvd.FOLDER)
    if len(item.frames) < options.clip:
        item.note(f"{item.output.file} has {len(item.frames)} frames, no clip of {options.clip} for FVD: see --clip")
    videos = {"outputs": item.frames, "inputs": item.source}
    described = {key: [describe(clip) for clip in fvd.clips(video, options.clip)] for key, video in videos.items()}
    return {key: np.stack(rows) if rows else np.zeros((0, 1), np.float32) for key, rows in described.items()}


_THRESHOLDS = ("min_matches", "max_error")
PARTS = {
    "flickering": Part(
        {"temporal_flickering": Figure(True, "VBench's, of the output's neighbouring frames; 1: nothing changes")},
        _flickering,
    ),
    "subject": _consistency_part(
        "subject_consistency", vbench.SUBJECT, "VBench's, by DINO ViT-B/16; 1: nothing changes"
    ),
    "background": _consistency_part(
        "background_consistency", vbench.BACKGROUND, "VBench's, by CLIP ViT-B/32; 1: nothing changes"
    ),
    "aesthetic": _with_networks(
        "aesthetic_quality",
        "VBench's: mean mark of frames by LAION's head on CLIP ViT-L/14, over 10",
        _aesthetic,
        vbench.LARGE,
        vbench.AESTHETIC,
    ),
    "likeness": Part(
        {
            "psnr": Figure(True, "dB against the reference, mean over frames"),
            "ssim": Figure(True, "against the reference, mean over frames"),
        },
        _likeness,
        _no_reference,
        ("reference",),
    ),
    "lpips": Part(
        {"lpips": Figure(False, "against the reference, mean over frames")},
        _lpips,
        _no_lpips,
        ("reference",),
        weights=lambda options: (perceptual.FOLDER,),
    ),
    "met3r_input": Part(
        {"met3r_input": Figure(False, "MEt3R of the input's frame and the output's of one moment; 0 to 2")},
        _met3r_input,
        _no_met3r,
        ("input",),
        ("features", "size"),
        _met3r_folders,
    ),
    "met3r_frames": Part(
        {"met3r_frames": Figure(False, "MEt3R of frames i and i + --step of one output; 0 to 2")},
        _met3r_frames,
        _no_met3r,
        (),
        ("features", "size", "step"),
        _met3r_folders,
    ),
    "epipolar_input": Part(
        {
            "sed_input": Figure(False, "SED of the input's frame and the output's of one moment; pixels of 256"),
            "tsed_input": Figure(True, "TSED of the same: share of consistent pairs"),
        },
        _epipolar_input,
        _no_input_cameras,
        ("input", "cameras", "input_cameras"),
        _THRESHOLDS,
    ),
    "epipolar_frames": Part(
        {
            "sed_frames": Figure(False, "SED of the output's neighbouring frames; pixels of 256"),
            "tsed_frames": Figure(True, "TSED of the same: share of consistent pairs"),
        },
        _epipolar_frames,
        _no_cameras,
        ("cameras",),
        _THRESHOLDS,
    ),
}


# What is said of a method's outputs together. Their parts give features of both sides, of each output.
SETS = {
    "fvd": Part(
        {"fvd": Figure(False, "Frechet distance of I3D's logits, clips of all outputs against those of their inputs")},
        _fvd_features,
        _no_fvd,
        ("input",),
        ("clip",),
        lambda options: (fvd.FOLDER,),
    ),
}


def known() -> dict[str, Figure]:
    """All figures by name."""
    return {name: figure for part in (PARTS | SETS).values() for name, figure in part.figures.items()}


def giving(figures: Iterable[str]) -> list[str]:
    """The parts that give some of these figures, in the order of `PARTS` and `SETS`."""
    wanted = set(figures)
    return [name for name, part in (PARTS | SETS).items() if wanted & part.figures.keys()]
