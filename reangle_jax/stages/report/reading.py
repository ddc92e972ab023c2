"""What the report shows of a run, read from its folder."""

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from reangle_jax.cameras.views import folder_name, label, view_file
from reangle_jax.config import Settings
from reangle_jax.data import files
from reangle_jax.export import clip, clouds
from reangle_jax.scoring import image
from reangle_jax.stages.report.markup import packed

_log = logging.getLogger(__name__)

LOSSES, LEARNING = "lora/losses.json", "lora/learning.json"
OF_VIEW = ("cameras.json", "warp.npz", "warp.mp4", "frames.npz", "video.mp4")
OF_FIRST = ("first_warp.png", "first_frame.png", "first_frame.json")


@dataclasses.dataclass(frozen=True)
class View:
    """A view."""

    spelling: str  # as the settings have it
    name: str  # of its folder
    label: str  # what to call it
    visible: list[float]  # the share of each frame that the input saw
    # By variant, tuned or untuned, dB of each frame against the warp; None where it is infinite or unknown.
    psnr: dict[str, list[float | None]]
    scores: dict[str, Any]  # what metrics.json says of it
    first: dict[str, Any] | None  # what first_frame.json says, if its first frame was painted

    def file(self, name: str) -> str:
        """One of its files, relative to the run's folder."""
        return view_file(self.spelling, name)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: beside what a `Clip` holds, what else is known of the views, what metrics.json holds, and how it learnt.

    That is of each step of fine-tuning the loss, and what else was logged.
    """

    settings: Settings
    folder: Path
    clip: clip.Clip
    views: list[View]
    metrics: dict[str, Any]
    learning: dict[str, list[float]]

    @property
    def variants(self) -> tuple[str, ...]:
        """Which models' videos there are."""
        return ("tuned", "untuned") if self.settings.evaluate.untuned else ("tuned",)


def inputs(settings: Settings) -> tuple[str, ...]:
    """What the report is made from, in the run's folder; some of it may not be there."""
    names = (*OF_VIEW, *(OF_FIRST if settings.mode == "static" else ()))
    names += ("untuned.npz",) if settings.evaluate.untuned else ()
    of_views = tuple(view_file(view, name) for view in settings.views for name in names)
    own = ("input/frames.npz", "input/video.mp4", "input/depth.npz", "input/cameras.json", "metrics.json", "scene.html")
    return (*own, LOSSES, LEARNING, *of_views)


def read(settings: Settings, folder: Path) -> Run:
    """Reads a run that is finished.

    Raises:
        InputError: something of it is missing or damaged.
    """
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    views = [_view(settings, folder, view, metrics) for view in settings.views]
    return Run(settings, folder, clip.read(folder, settings.views), views, metrics, _learning(folder))


def _learning(folder: Path) -> dict[str, list[float]]:
    """Of the first file that can be read: they are to look at, and a run is whole without them."""
    for name in (LEARNING, LOSSES):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            curves = found if isinstance(found, dict) else {"loss": found}
            return {key: [_finite(value) for value in values] for key, values in curves.items()}
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, OverflowError):
            _log.warning("%s is damaged: the page goes without its curves", folder / name)
    return {}


def _finite(value: Any) -> float:
    """A number that can be drawn."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number


def _view(settings: Settings, folder: Path, view: str, metrics: dict[str, Any]) -> View:
    warp = files.load_npz(folder / view_file(view, "warp.npz"))
    stems = {"tuned": "frames"} | ({"untuned": "untuned"} if settings.evaluate.untuned else {})
    psnr = {}
    for variant, stem in stems.items():
        made = files.load_npz(folder / view_file(view, f"{stem}.npz"))["frames"]
        frames = zip(made, warp["frames"], warp["visible"], strict=True)
        psnr[variant] = [image.known(image.psnr(*three)) for three in frames]
    first = folder / view_file(view, "first_frame.json")
    return View(
        view,
        folder_name(view),
        label(view),
        warp["visible"].mean(axis=(1, 2)).tolist(),
        psnr,
        metrics["views"].get(view, {}),
        json.loads(first.read_text(encoding="utf-8")) if first.is_file() and settings.mode == "static" else None,
    )


def scene(run: Run, most: int) -> dict[str, Any]:
    """What the canvas draws: the first frame's points, in whole numbers between their bounds, and all cameras."""
    cloud, track = clouds.of_frame(run.clip, 0, most), run.clip.source
    low, high = np.quantile(cloud.xyz, 0.002, axis=0), np.quantile(cloud.xyz, 0.998, axis=0)
    inside = ((cloud.xyz >= low) & (cloud.xyz <= high)).all(axis=1)
    share = (cloud.xyz[inside] - low) / np.maximum(high - low, 1e-9)
    stride = math.ceil(math.sqrt(run.clip.z[0].size / most))
    cameras = [(track, "--ink"), *((own, f"--v{k % 7}") for k, own in enumerate(run.clip.tracks))]
    return {
        "xyz": packed(np.round(share * 65535).astype("<u2").tobytes()),
        "rgb": packed(cloud.rgb[inside].tobytes()),
        "low": low.tolist(),
        "high": high.tolist(),
        "pivot": float(np.median(run.clip.z[0])),
        "spacing": max(1, stride) / float(track.K[0, 0, 0]),
        "cameras": [_camera(own, colour) for own, colour in cameras],
    }


def _camera(track: clip.Track, colour: str) -> dict[str, Any]:
    height, width = track.frames.shape[1:3]
    poses = track.poses if track.moves else track.poses[:1]
    half = [width / 2 / track.K[0, 0, 0], height / 2 / track.K[0, 1, 1]]
    rows = [[round(float(value), 5) for value in pose[:3].reshape(-1)] for pose in poses]
    return {"colour": colour, "half": half, "poses": rows}
