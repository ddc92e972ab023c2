"""The depth of every frame: from Depth Anything V2, or from the user's file."""

import logging
from pathlib import Path

import numpy as np

from reangle_jax import chosen_models
from reangle_jax.config import Settings
from reangle_jax.data import depth_file, files
from reangle_jax.errors import about
from reangle_jax.geometry import depth as geometry
from reangle_jax.run import External, Stage, Unit, Work

BATCH = 4  # frames per call of the network

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for the whole clip: its frames share one scale."""
    if settings.depth == "model":
        networks = chosen_models.folders(settings, "depth")
        return (
            Unit(
                settings=("depth_mirrored",),
                inputs=("input/frames.npz",),
                weights=networks,
                outputs=("input/depth.npz",),
            ),
        )
    return (
        Unit(
            settings=("depth_kind",),
            inputs=("input/frames.npz",),  # which of the source's frames were taken
            external=(External("config.depth", Path(settings.depth)),),
            outputs=("input/depth.npz",),
        ),
    )


def depth(settings: Settings, folder: Path, work: Work) -> None:
    """Writes input/depth.npz."""
    for _ in work:
        _depth(settings, folder)


def _depth(settings: Settings, folder: Path) -> None:
    clip = files.load_npz(folder / "input/frames.npz")
    shape = clip["frames"].shape[:3]
    if settings.depth == "model":
        with about(chosen_models.depth_key(settings)):
            values, kind = _estimate(chosen_models.folder(settings, "depth"), clip["frames"], settings.depth_mirrored)
        with about("config.depth=model: the network's depth of this video"):
            z = geometry.scene_depth(values, kind, expect_shape=shape)
    else:
        source = clip["source_indices"], tuple(clip["source_size"].tolist()), float(clip["pixel_aspect"])
        with about("config.depth"):
            values = depth_file.load_depth(settings.depth)
        with about(f"config.depth: {settings.depth}"):
            values = depth_file.fit_depth(values, shape, *source)
            z = geometry.scene_depth(values, settings.depth_kind, expect_shape=shape)
    low, high = np.quantile(z, [0.01, 0.99])
    _log.info("depth: 98 %% of the points lie %.4g to %.4g in front of the camera", low, high)
    files.atomic_savez(folder / "input/depth.npz", depth=z)


def _estimate(weights: Path, frames: np.ndarray, mirrored: bool) -> tuple[np.ndarray, str]:
    """Depth by the network, and which kind it is."""
    from reangle_jax import checkpoints  # late: a run with a depth file needs no network
    from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig, estimate_video_depth

    model = checkpoints.load(weights, DepthAnythingConfig, DepthAnything)
    values = estimate_video_depth(model, frames, batch_size=BATCH, mirrored=mirrored)
    return values, "inverse" if model.config.max_depth is None else "metric"


STAGE = Stage("depth", version=2, units=units, run=depth)
