"""The depth of every frame: from Depth Anything V2, or from the user's file."""

import logging

import numpy as np

from reangle_jax import checkpoints
from reangle_jax.config import Settings
from reangle_jax.data import depth_file
from reangle_jax.errors import InputError
from reangle_jax.geometry import depth as geometry
from reangle_jax.run import Run, Stage, Unit

BATCH = 4  # frames per call of the network

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One for the whole clip: its frames share one scale."""
    if settings.depth == "model":
        return (Unit(inputs=("input/frames.npz",), weights=("depth",), outputs=("input/depth.npz",)),)
    shape = ("num_frames", "height", "width")
    return (Unit(settings=(*shape, "depth_kind"), external=("depth",), outputs=("input/depth.npz",)),)


def depth(settings: Settings, run: Run) -> None:
    """Writes input/depth.npz."""
    if settings.depth == "model":
        values, kind = _estimate(run)
    else:
        shape = (settings.num_frames, settings.height, settings.width)
        values = depth_file.read_depth(settings.depth, shape=shape, kind=settings.depth_kind)
        kind = settings.depth_kind
    z = values if kind == "metric" else np.asarray(geometry.depth_from_inverse(values), np.float32)
    low, high = np.quantile(z, [0.01, 0.99])
    _log.info("depth: 98 %% of the points lie %.4g to %.4g in front of the camera", low, high)
    run.save_npz("input/depth.npz", depth=z)


def _estimate(run: Run) -> tuple[np.ndarray, str]:
    """Depth by the network, and which kind it is."""
    from flax import nnx

    from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig, estimate_video_depth

    frames = run.load_npz("input/frames.npz")["frames"]
    try:
        config = checkpoints.load_config(run.weights("depth"), DepthAnythingConfig)
        model = checkpoints.abstract(lambda: DepthAnything(config, rngs=nnx.Rngs(0)))
        model = checkpoints.load_into(model, run.weights("depth"))
    except InputError as error:
        if not run.settings.depth_weights:
            raise
        raise InputError(str(error).replace("config.weights", "config.depth_weights")) from None
    values = estimate_video_depth(model, frames, batch_size=BATCH)
    if not np.isfinite(values).all() or values.min() == values.max():
        raise InputError("config.depth=model: the network sees no depth in this video: give a depth file instead")
    return values, "inverse" if config.max_depth is None else "metric"


STAGE = Stage("depth", version=1, units=units, run=depth)
