"""Numbers for every output, and one video to look at them all."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reangle_jax import chosen_models
from reangle_jax.cameras.views import label
from reangle_jax.config import Settings
from reangle_jax.data import files, pictures, video
from reangle_jax.errors import about
from reangle_jax.geometry import cameras
from reangle_jax.run import Stage, Unit, Work, first_picture, view_file
from reangle_jax.scoring import agreement, image, motion
from reangle_jax.scoring.video import mean_score

MAX_WIDTH = 1920  # of grid.mp4, pixels; many browsers decode no more in hardware
_STRIP = 18  # height of a label's strip, pixels
_INPUT = ("input/frames.npz", "input/depth.npz", "input/cameras.json")
MOMENTS = 5  # of a static run's videos that are compared with each other, from the first frame to the last
_SCORES = ("psnr", "ssim", "moving_psnr", "moving_gain")

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """The numbers; the grid."""
    warps = tuple(view_file(view, "warp.npz") for view in settings.views)
    outputs = tuple(view_file(view, f"{name}.npz") for view in settings.views for name in _variants(settings).values())
    paths = tuple(view_file(view, "cameras.json") for view in settings.views)
    keys = ("views", "evaluate")
    metrics = Unit("metrics", settings=keys, inputs=(*_INPUT, *paths, *warps, *outputs), outputs=("metrics.json",))
    if settings.mode == "static":
        firsts = tuple(view_file(view, "first_frame.png") for view in settings.views)
        scorer = chosen_models.painter_folder(settings)
        networks = agreement.parts(scorer) if agreement.there(scorer) else ()
        inputs = dict.fromkeys((*metrics.inputs, first_picture.of(settings), *firsts))
        metrics = dataclasses.replace(metrics, inputs=tuple(inputs), weights=networks)
    return (
        metrics,
        Unit("grid", settings=keys, inputs=("input/frames.npz", *warps, *outputs), outputs=("grid.mp4",)),
    )


def evaluate(settings: Settings, folder: Path, work: Work) -> None:
    """Writes metrics.json and grid.mp4."""
    for unit in work:
        if unit.name == "metrics":
            files.atomic_write_json(folder / "metrics.json", _metrics(settings, folder))
        else:
            clip = files.load_npz(folder / "input/frames.npz")
            video.write_video(folder / "grid.mp4", _grid(settings, folder, clip["frames"]), float(clip["fps"]))


def _variants(settings: Settings) -> dict[str, str]:
    """What is compared with the warp, and the stem of its file."""
    return {"tuned": "frames"} | ({"untuned": "untuned"} if settings.evaluate.untuned else {})


def _frames(folder: Path, view: str, stem: str) -> np.ndarray:
    return files.load_npz(folder / view_file(view, f"{stem}.npz"))["frames"]


def _metrics(settings: Settings, folder: Path) -> dict[str, Any]:
    views: dict[str, Any] = {}
    for view in settings.views:
        warp = files.load_npz(folder / view_file(view, "warp.npz"))
        frozen, seen = _frozen(folder, view)
        mask = motion.moving(warp["frames"], frozen, warp["visible"] & seen)
        views[view] = {"visible": float(warp["visible"].mean()), "moving": float(mask.mean())}
        for variant, stem in _variants(settings).items():
            frames = _frames(folder, view, stem)
            moving = motion.likeness(frames, warp["frames"], frozen, mask)
            views[view][variant] = {
                "psnr": image.known(image.psnr(frames, warp["frames"], warp["visible"])),
                "ssim": image.known(image.ssim(frames, warp["frames"], warp["visible"])),
                "moving_psnr": image.known(moving.psnr),
                "moving_gain": image.known(moving.gain),
            }
    mean = {
        variant: {score: _mean([entry[variant][score] for entry in views.values()]) for score in _SCORES}
        for variant in _variants(settings)
    }
    moves = any(entry["moving"] for entry in views.values())
    for variant, scores in mean.items():
        count = f"{len(views)} view{'s' * (len(views) != 1)}"
        _log.info("%s against the warps, mean of %s: %s", variant, count, _in_words(scores, moves))
    return {
        "compared_with": "the view's warp, over its visible pixels, all frames",
        "moving_is": f"visible pixels more than {motion.THRESHOLD} grey levels from the warp of the clip's median",
        "views": views,
        "mean": mean,
    } | (_agreement(settings, folder) if settings.mode == "static" else {})


def _agreement(settings: Settings, folder: Path) -> dict[str, Any]:
    """MEt3R between the views, and with the input: of the first frames, and of the videos moment by moment.

    Nothing without its networks, which a run that chooses among no candidates does not need.
    """
    scorer = chosen_models.painter_folder(settings)
    if not agreement.there(scorer):
        _log.info("MEt3R is left out: %s holds no networks of the score's", scorer)
        return {}
    with about(chosen_models.PAINTER_KEY):
        score = agreement.Agreement.load(scorer, settings.height, settings.width)
    source = files.load_npz(folder / _INPUT[0])["frames"]
    firsts = [pictures.read(folder / view_file(view, "first_frame.png")) for view in settings.views]
    moments = {"first_frames": [[first_picture.read(settings, folder), *firsts]]}
    at = np.unique(np.linspace(0, len(source) - 1, MOMENTS).round().astype(int))
    for variant, stem in _variants(settings).items():
        videos = [source[at], *(_frames(folder, view, stem)[at] for view in settings.views)]
        moments[variant] = [list(frames) for frames in zip(*videos, strict=True)]
    found: dict[str, Any] = {}
    for name, groups in moments.items():
        pairs = [pair for group in groups for pair in score.pairs(group)]
        found[name] = {
            "between_views": mean_score(pair for pair in pairs if pair.first),
            "with_input": mean_score(pair for pair in pairs if not pair.first),
        }
        _log.info("MEt3R of %s: %s between the views, %s with the input", name, *map(_say, found[name].values()))
    what = f"1 - similarity of pairs; of the videos in frames {', '.join(map(str, at))}; 0 agrees"
    return {"met3r_is": what, "met3r": found}


def _frozen(folder: Path, view: str) -> tuple[np.ndarray, np.ndarray]:
    """The scene without what moves along a view's path, and where it is visible."""
    frames, z = files.load_npz(folder / _INPUT[0])["frames"], files.load_npz(folder / _INPUT[1])["depth"]
    source, target = (cameras.load_cameras(folder / name)[0] for name in (_INPUT[2], view_file(view, "cameras.json")))
    return motion.frozen_warp(frames, z, source, target)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _in_words(scores: dict[str, float | None], moves: bool) -> str:
    psnr, ssim, moving, gain = map(_say, scores.values())
    if not moves:
        return f"PSNR {psnr} dB, SSIM {ssim}; nothing moves"
    return f"PSNR {psnr} dB, SSIM {ssim}; what moves: {moving} dB, {gain} above a frozen scene"


def _say(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _grid(settings: Settings, folder: Path, source: np.ndarray) -> np.ndarray:
    """The input beside, for each view, its warp above its outputs; uint8 [T, H, W, 3]."""
    rows = [("warp", "warp"), *((variant, stem) for variant, stem in _variants(settings).items())]
    columns = 1 + len(settings.views)
    scale = min(1.0, MAX_WIDTH / (columns * source.shape[2]))
    blank = np.zeros_like(source)
    grid = []
    for index, (title, stem) in enumerate(rows):
        cells = [_cell(source, "input", scale) if index == 0 else _cell(blank, "", scale)]
        cells += [_cell(_frames(folder, view, stem), f"{label(view)} {title}", scale) for view in settings.views]
        grid.append(np.concatenate(cells, axis=2))
    return np.concatenate(grid, axis=1)


def _cell(frames: np.ndarray, label: str, scale: float) -> np.ndarray:
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    if scale < 1:
        frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    strip = np.zeros((_STRIP, size[0], 3), np.uint8)
    cv2.putText(strip, label, (4, _STRIP - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([np.broadcast_to(strip[None], (len(frames), *strip.shape)), frames], axis=1)


STAGE = Stage("evaluate", version=2, units=units, run=evaluate)
