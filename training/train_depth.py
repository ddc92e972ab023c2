"""Trains the small family's Depth Anything V2.

``python -m training.train_depth --workdir DIR [--steps N | --minutes M] [--labels FOLDER]``

Data: frames of procedural scenes with their exact depth, rendered once into ``--frames``; and, if ``--labels`` names a
folder with train.npz and heldout.npz (``images`` uint8 [N, H, W, 3], ``inverse_depth`` float16 [N, H, W], up to scale
and shift), real frames that a teacher has labelled, a third of each batch.

Loss: absolute difference of inverse depths, and of their gradients on four scales (MiDaS, Ranftl et al., 2020, arXiv
1907.01341). A teacher's labels have no scale and shift: both maps are shifted by their median and divided by their mean
deviation, and the largest fifth of the residuals is left out. Where the truth is known, both are known too, and warping
needs them: there the target is the inverse depth over its mean, as it is, and its deviation divides the difference.
"""

import dataclasses
import functools
import os
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, UInt8

from reangle_jax import checkpoints, tiny
from reangle_jax.data import weights_folder
from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig, estimate_video_depth
from reangle_jax.nn.colours import IMAGENET_MEAN, IMAGENET_STD
from reangle_jax.nn.embeddings import sincos_1d
from training import commands, training
from training.depth_frames import (
    INPUT,
    SIZES,
    Frames,
    clip_frames,
    load_frames,
    load_motorcycle,
    make_batch,
    rendered_frames,
)
from training.pool import load_pool

WEIGHTS = tiny.WEIGHTS / "depth"
GRADIENT_WEIGHT, TRIM = 0.5, 0.8
LEAST_DEVIATION = 0.2  # a map flatter than that is not stretched: its noise would be all there is


def _centre_and_deviation(x: Float[Array, "B H W"]) -> tuple[Float[Array, "B 1 1"], Float[Array, "B 1 1"]]:
    """Each map's median and its mean absolute deviation from it."""
    # Every third row and column gives the median well enough, and sorting is slow.
    centre = jnp.median(x[:, ::3, ::3], axis=(1, 2), keepdims=True)
    return centre, jnp.mean(jnp.abs(x - centre), axis=(1, 2), keepdims=True)


def gradient_difference(difference: Float[Array, "B H W"], scales: int = 4) -> Float[Array, " B"]:
    """Mean absolute gradient of a difference of maps, summed over scales that halve."""
    total = jnp.zeros(difference.shape[0])
    for scale in range(scales):
        d = difference[:, :: 2**scale, :: 2**scale]
        total += jnp.mean(jnp.abs(jnp.diff(d, axis=1)), (1, 2)) + jnp.mean(jnp.abs(jnp.diff(d, axis=2)), (1, 2))
    return total


def depth_loss(
    prediction: Float[Array, "B H W"], inverse_depth: Float[Array, "B H W"], exact: Bool[Array, " B"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of the module's description, and its parts."""
    target = inverse_depth / (jnp.mean(inverse_depth, axis=(1, 2), keepdims=True) + 1e-6)
    target_centre, target_deviation = _centre_and_deviation(target)
    target_deviation = jnp.maximum(target_deviation, LEAST_DEVIATION)
    centre, deviation = _centre_and_deviation(prediction)
    aligned = (prediction - centre) / jnp.maximum(deviation, LEAST_DEVIATION)
    invariant = aligned - (target - target_centre) / target_deviation
    known = exact[:, None, None]
    difference = jnp.where(known, (prediction - target) / target_deviation, invariant)
    residual = jnp.abs(difference)
    limit = jax.lax.stop_gradient(jnp.quantile(residual[:, ::3, ::3], TRIM, axis=(1, 2), keepdims=True))
    value = jnp.mean(jnp.where(known | (residual <= limit), residual, 0.0), (1, 2))
    gradient = gradient_difference(difference)
    share = exact.astype(jnp.float32)
    parts = {
        "exact": jnp.sum(value * share) / jnp.maximum(jnp.sum(share), 1.0),
        "teacher": jnp.sum(value * (1.0 - share)) / jnp.maximum(jnp.sum(1.0 - share), 1.0),
        "gradient": jnp.mean(gradient),
    }
    # The published network ends in a ReLU, which has no gradient below zero: training stays above it.
    negative = jnp.mean(jax.nn.relu(-prediction))
    return jnp.mean(value) + GRADIENT_WEIGHT * parts["gradient"] + negative, parts


def loss(parameters: nnx.State, batch: dict[str, Array], key: Array, *, graphdef: nnx.GraphDef) -> tuple[Array, dict]:
    """The loss of one batch."""
    del key
    model = nnx.merge(graphdef, parameters)
    return depth_loss(_raw(model, batch["images"]), batch["inverse_depth"], batch["exact"])


def _raw(model: DepthAnything, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W"]:
    """The output before the last ReLU."""
    mean, std = jnp.asarray(IMAGENET_MEAN)[None, None, None], jnp.asarray(IMAGENET_STD)[None, None, None]
    taps = model.backbone.taps((images.astype(jnp.float32) / 255.0 - mean) / std, model.config.taps)
    size = model.config.patch_size
    return model.head(taps, images.shape[1] // size, images.shape[2] // size)


def correlations(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson's correlation of every pair of maps over the pixels whose truth is finite and above zero, float64 [N]."""
    result = []
    for p, t in zip(prediction, truth.astype(np.float64), strict=True):
        valid = np.isfinite(t) & (t > 0)
        result.append(np.corrcoef(p[valid], t[valid])[0, 1] if np.std(p[valid]) > 0 else 0.0)
    return np.array(result)


def evaluate(graphdef: nnx.GraphDef, parameters: nnx.State, held_out: dict[str, Frames]) -> dict[str, float]:
    """Mean correlation with each held-out set's inverse depth."""
    model = nnx.merge(graphdef, parameters)
    result = {}
    for name, frames in held_out.items():
        prediction = estimate_video_depth(model, frames.images, batch_size=8)
        result[f"correlation_{name}"] = round(float(np.mean(correlations(prediction, frames.inverse_depth))), 4)
    return result


def principal_patches(images: UInt8[np.ndarray, "N H W 3"], size: int, count: int) -> Float32[np.ndarray, "s s 3 C"]:
    """Filters that turn normalised images' patches into their principal components, each of unit variance."""
    rng = np.random.default_rng(0)
    patches = []
    for image in images[rng.permutation(len(images))[:500]]:
        for _ in range(20):
            y, x = (rng.integers(n - size + 1) for n in image.shape[:2])
            patches.append(image[y : y + size, x : x + size])
    data = ((np.stack(patches) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD).reshape(len(patches), -1)
    variances, vectors = np.linalg.eigh(np.cov(data, rowvar=False))
    variances, vectors = variances[::-1][:count], vectors[:, ::-1][:, :count]
    # The faintest components are mostly noise: a floor keeps them from being blown up.
    filters = vectors / np.sqrt(variances + 1e-2)
    return filters.reshape(size, size, 3, count).astype(np.float32)


def _position_table(grid: int, width: int) -> np.ndarray:
    """Sines and cosines of rows and columns, [1, 1 + grid^2, width], the class token's row zero."""
    axis = sincos_1d(np.arange(grid), width // 2)
    rows, columns = np.repeat(axis, grid, axis=0), np.tile(axis, (grid, 1))
    return np.concatenate([np.zeros((1, width)), np.concatenate([rows, columns], 1)])[None].astype(np.float32)


def initial_model(config: DepthAnythingConfig, seed: int, images: UInt8[np.ndarray, "N H W 3"]) -> DepthAnything:
    """Weights that training starts at: random, but for what a short training would take long to find.

    The tokens start as the principal components of the patches of ``images``, and know where they are: of random
    filters nearly all see a patch's mean colour alone. At first, what depends on the picture is noise to the loss, and
    training would rather suppress it for good (tokens all alike, the mean depth for every picture) than make sense of
    it. So the blocks' branches and the last kernel start small, and the head's other kernels keep the variance.
    """
    model = DepthAnything(config, rngs=nnx.Rngs(seed))
    state = nnx.state(model, nnx.Param)
    for path, variable in checkpoints.parameter_paths(state).items():
        if path.startswith("head.") and path.endswith("kernel"):
            # PyTorch's default has a third of the variance; an enlarging kernel's pixels share no input.
            factor = variable.shape[0] if variable.shape[0] in (2, 4) else 1
            small = 0.1 if "conv3" in path else 1.0
            variable.set_value(variable[...] * (3.0**0.5 * factor * small))
        elif path.endswith(("scale1", "scale2")):
            variable.set_value(jnp.full_like(variable[...], 0.2))
        elif path == "head.conv3.bias":
            variable.set_value(jnp.ones_like(variable[...]))
        elif path == "backbone.patch_embed.kernel":
            variable.set_value(jnp.asarray(principal_patches(images, config.patch_size, config.width)))
        elif path == "backbone.pos_embed":
            variable.set_value(jnp.asarray(0.5 * _position_table(config.native_grid, config.width)))
    nnx.update(model, state)
    return model


def carry_over(model: DepthAnything, folder: str | os.PathLike) -> None:
    """Fills a network from weights that may have been made for other patches or another grid.

    A filter on patches becomes the one that answers to a patch as the old one did to that patch enlarged (FlexiViT,
    Beyer et al., 2022, arXiv 2212.08013, the other way round); the position table is resized.
    """
    weights, state = weights_folder.open_arrays(folder), nnx.state(model, nnx.Param)
    for path, variable in checkpoints.parameter_paths(state).items():
        value = weights[path].read(()).astype(np.float32)
        if path == "backbone.patch_embed.kernel" and value.shape != variable.shape:
            old, new = value.shape[0], variable.shape[0]
            enlarge = cv2.resize(np.eye(new, dtype=np.float32), (new, old), interpolation=cv2.INTER_CUBIC)
            value = np.einsum("on,pm,opcd->nmcd", enlarge, enlarge, value)
        elif path == "backbone.pos_embed" and value.shape != variable.shape:
            grid, side = model.config.native_grid, round((value.shape[1] - 1) ** 0.5)
            table = cv2.resize(value[0, 1:].reshape(side, side, -1), (grid, grid), interpolation=cv2.INTER_CUBIC)
            value = np.concatenate([value[:, :1], table.reshape(1, grid * grid, -1)], 1)
        variable.set_value(jnp.asarray(value))
    nnx.update(model, state)


def main() -> None:
    """The command."""
    parser = training.command_line(__doc__, steps=30_000, out=str(WEIGHTS), rate=1e-3)
    parser.add_argument("--frames", default=".cache/depth_frames", help="where rendered frames are kept")
    parser.add_argument("--count", type=int, default=6000, help="rendered frames to train on")
    parser.add_argument("--clips", default=None, help="rendered clips (training.dataset) instead of rendered frames")
    parser.add_argument("--labels", default=None, help="a folder of real frames that a teacher has labelled")
    parser.add_argument("--motorcycle", default=None, help="scikit-image's data folder, for the held-out figure")
    parser.add_argument("--init", default=None, help="a weights folder to start from; then all frames have full size")
    parser.add_argument("--patch", type=int, choices=(7, 14), default=14, help="pixels a token and side")
    parser.add_argument("--batch", type=commands.positive, default=12, help="frames a step")
    args = parser.parse_args()

    pools, folder = load_pool(args.cache), Path(args.frames)
    scenes = (
        clip_frames(args.clips, args.count)
        if args.clips
        else rendered_frames(folder, "train", args.seed, args.count, pools.train)
    )
    held_out = {"scenes": rendered_frames(folder, "heldout", args.seed + 1, 48, pools.heldout)}
    real = load_frames(Path(args.labels) / "train.npz") if args.labels else None
    if args.labels:
        labelled = load_frames(Path(args.labels) / "heldout.npz")
        held_out["teacher"] = Frames(labelled.images[::4], labelled.inverse_depth[::4])
    if args.motorcycle:
        held_out["motorcycle"] = load_motorcycle(args.motorcycle)

    tiny_config = DepthAnythingConfig.tiny()
    config = dataclasses.replace(tiny_config, patch_size=args.patch, native_grid=tiny_config.short_side // args.patch)
    model = initial_model(config, args.seed, scenes.images)
    if args.init:
        carry_over(model, args.init)
    graphdef, parameters = nnx.split(model)
    sizes = (INPUT,) if args.init else SIZES
    mean = training.train(
        functools.partial(loss, graphdef=graphdef),
        parameters,
        functools.partial(make_batch, scenes=scenes, real=real, count=args.batch, pool=pools.train, sizes=sizes),
        training.TrainConfig.of(args, save_every=900.0),
        args.workdir,
        evaluate=functools.partial(evaluate, graphdef, held_out=held_out),
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
