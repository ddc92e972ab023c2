"""Trains the small family's Depth Anything V2.

``python -m training.train_depth --workdir DIR [--steps N | --minutes M] [--labels FOLDER]``

Data: frames of procedural scenes with their exact depth, rendered once into ``--frames``; and, if ``--labels`` names a
folder with train.npz and heldout.npz (``images`` uint8 [N, H, W, 3], ``inverse_depth`` float16 [N, H, W], up to scale
and shift), real frames that a teacher has labelled. ``--bank`` (`training.make_bank`) has both in their place. Of each
batch ``--share`` are a teacher's, and it is seen at one of ``--sides``.

Loss: absolute difference of inverse depths, and of their gradients on four scales (MiDaS, Ranftl et al., 2020, arXiv
1907.01341), and what Pearson's correlation lacks to one. A teacher's labels have no scale and shift: both maps are
shifted by their mean and divided by their mean deviation. Where the truth is known, both are known too, and warping
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

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.data import weights_folder
from reangle_jax.errors import InputError, about
from reangle_jax.models.depth_anything import DepthAnything, DepthAnythingConfig, estimate_video_depth, input_size
from reangle_jax.nn.colours import IMAGENET_MEAN, IMAGENET_STD
from reangle_jax.nn.embeddings import sincos_1d
from reangle_jax.nn.vit import interpolate_positions
from training import training
from training.bank import read_bank
from training.depth_frames import (
    INPUT,
    STORED,
    Frames,
    clip_frames,
    load_frames,
    load_motorcycle,
    make_batch,
    rendered_frames,
)
from training.device_batches import altered, cut_out
from training.pool import load_pool

WEIGHTS = tiny.WEIGHTS / "depth"
GRADIENT_WEIGHT, CORRELATION_WEIGHT = 0.5, 1.0
LEAST_DEVIATION = 0.2  # a map flatter than that is not stretched: its noise would be all there is
TWICE = 192  # tokens' width of the network that is twice as wide


def _mean_and_deviation(x: Float[Array, "B H W"]) -> tuple[Float[Array, "B 1 1"], Float[Array, "B 1 1"]]:
    """Each map's mean and its mean absolute deviation from it, `LEAST_DEVIATION` at least."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    return mean, jnp.maximum(jnp.mean(jnp.abs(x - mean), axis=(1, 2), keepdims=True), LEAST_DEVIATION)


def correlation(x: Float[Array, "B H W"], y: Float[Array, "B H W"]) -> Float[Array, " B"]:
    """Pearson's correlation of maps, those that are nearly flat counted as if they were not."""
    x, y = (z - jnp.mean(z, axis=(1, 2), keepdims=True) for z in (x, y))
    least = (0.5 * LEAST_DEVIATION) ** 2
    variances = [jnp.maximum(jnp.mean(z * z, axis=(1, 2)), least) for z in (x, y)]
    return jnp.mean(x * y, axis=(1, 2)) * jax.lax.rsqrt(variances[0] * variances[1])


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
    target_mean, target_deviation = _mean_and_deviation(target)
    mean, deviation = _mean_and_deviation(prediction)
    invariant = (prediction - mean) / deviation - (target - target_mean) / target_deviation
    difference = jnp.where(exact[:, None, None], (prediction - target) / target_deviation, invariant)
    value = jnp.mean(jnp.abs(difference), (1, 2))
    gradient = gradient_difference(difference)
    share = exact.astype(jnp.float32)
    parts = {
        "exact": jnp.sum(value * share) / jnp.maximum(jnp.sum(share), 1.0),
        "teacher": jnp.sum(value * (1.0 - share)) / jnp.maximum(jnp.sum(1.0 - share), 1.0),
        "gradient": jnp.mean(gradient),
        "uncorrelated": 1.0 - jnp.mean(correlation(prediction, target)),
    }
    # The published network ends in a ReLU, which has no gradient below zero: training stays above it.
    negative = jnp.mean(jax.nn.relu(-prediction))
    total = jnp.mean(value) + GRADIENT_WEIGHT * parts["gradient"] + CORRELATION_WEIGHT * parts["uncorrelated"]
    return total + negative, parts


def loss(
    parameters: nnx.State,
    batch: dict[str, Array],
    key: Array,
    *,
    graphdef: nnx.GraphDef,
    cutouts: dict[str, Array] | None = None,
) -> tuple[Array, dict]:
    """The loss of one batch; with cut-outs (`device_batches.cut_out`), of frames that are yet to be altered."""
    if cutouts is not None:
        rows, columns, _ = batch["seen"].shape
        batch = altered(batch, key, cutouts, (rows, columns))
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
    """Filters that turn normalised images' patches into their principal components, each of unit variance.

    Where more are asked for than a patch has values, the first come twice.
    """
    rng = np.random.default_rng(0)
    patches = []
    for image in images[rng.permutation(len(images))[:500]]:
        for _ in range(20):
            y, x = (rng.integers(n - size + 1) for n in image.shape[:2])
            patches.append(image[y : y + size, x : x + size])
    data = ((np.stack(patches) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD).reshape(len(patches), -1)
    variances, vectors = np.linalg.eigh(np.cov(data, rowvar=False))
    order = np.argsort(-variances)[np.arange(count) % len(variances)]
    variances, vectors = variances[order], vectors[:, order]
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


def sized(patch: int, wide: bool = False, side: int = INPUT[0]) -> DepthAnythingConfig:
    """The small network with patches of so many pixels, or one that is twice as wide, with as many heads.

    ``side`` is the shorter one of what it sees.
    """
    config = DepthAnythingConfig.tiny()
    width = TWICE if wide else config.width
    return dataclasses.replace(config, patch_size=patch, native_grid=side // patch, width=width)


def widened(value: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A layer's weights for tokens that have every channel twice, neighbours (Net2Net, Chen et al., 2016, 1511.05641).

    The two copies of an input share its weight, unevenly: so they will not stay copies. The network gives what it gave,
    if queries are divided by sqrt(2) besides.
    """
    for axis in reversed(range(value.ndim)):
        old = value.shape[axis]
        if shape[axis] != 2 * old:
            continue
        value = np.repeat(value, 2, axis)
        if axis == value.ndim - 2:
            pairs = value.reshape(*value.shape[:-2], old, 2, value.shape[-1])
            share = rng.uniform(size=(*pairs.shape[:-2], 1, pairs.shape[-1])).astype(np.float32)
            value = (pairs * np.concatenate([share, 1 - share], -2)).reshape(value.shape)
    return value


def carry_over(model: DepthAnything, folder: str | os.PathLike) -> None:
    """Fills a network from weights that may have been made for other patches, another grid or half the width.

    A filter on patches becomes the one that answers to a patch as the old one did to that patch enlarged (FlexiViT,
    Beyer et al., 2022, arXiv 2212.08013, the other way round); the position table is resized.

    Raises:
        InputError: the tokens are of another width, and not of half of it.
    """
    rng, width = np.random.default_rng(0), checkpoints.load_config(folder, DepthAnythingConfig).width
    if model.config.width not in (width, 2 * width):
        mend = "leave out --wide" if model.config.width > width else "add --wide"
        raise InputError(f"{folder}: its tokens are {width} wide, and {model.config.width} is asked for: {mend}")
    weights, state = weights_folder.open_arrays(folder), nnx.state(model, nnx.Param)
    for path, variable in checkpoints.parameter_paths(state).items():
        value = weights[path].read(()).astype(np.float32)
        if path == "backbone.patch_embed.kernel" and len(value) != len(variable[...]):
            old, new = value.shape[0], variable.shape[0]
            enlarge = cv2.resize(np.eye(new, dtype=np.float32), (new, old), interpolation=cv2.INTER_CUBIC)
            value = np.einsum("on,pm,opcd->nmcd", enlarge, enlarge, value)
        elif path == "backbone.pos_embed" and value.shape[1] != variable.shape[1]:
            grid, side = model.config.native_grid, round((value.shape[1] - 1) ** 0.5)
            rule = model.config.pos_interpolation
            value = np.asarray(interpolate_positions(jnp.asarray(value), side, grid, grid, rule=rule))
        if value.shape != variable.shape:
            value = widened(value, variable.shape, rng)
            if "attn.qkv" in path:
                value[:, 0] *= 0.5**0.5
        variable.set_value(jnp.asarray(value))
    nnx.update(model, state)


def main() -> None:
    """The command."""
    parser = training.command_line(__doc__, steps=30_000, out=str(WEIGHTS), rate=1e-3)
    parser.add_argument("--frames", default=".cache/depth_frames", help="where rendered frames are kept")
    parser.add_argument("--count", type=commands.positive, default=6000, help="rendered frames to train on")
    parser.add_argument("--clips", default=None, help="rendered clips (training.dataset) instead of rendered frames")
    parser.add_argument("--labels", default=None, help="a folder of real frames that a teacher has labelled")
    parser.add_argument("--motorcycle", default=None, help="scikit-image's data folder, for the held-out figure")
    parser.add_argument("--init", default=None, help="a weights folder to start from")
    parser.add_argument("--patch", type=int, choices=(7, 14), default=14, help="pixels a token and side")
    parser.add_argument("--wide", action="store_true", help="tokens twice as wide")
    parser.add_argument("--batch", type=commands.positive, default=12, help="frames a step")
    parser.add_argument("--bank", default=None, help="learn from a bank (training.make_bank) instead")
    parser.add_argument("--share", type=commands.share, default=1 / 3, help="of the frames, a teacher's")
    parser.add_argument(
        "--sides",
        type=commands.positive,
        nargs="+",
        default=INPUT[:1],
        help="shorter sides of what the network sees, its own first",
    )
    args = parser.parse_args()
    if wrong := [side for side in args.sides if side % args.patch]:
        raise InputError(f"--sides {wrong[0]}: no whole number of patches of {args.patch} (--patch)")

    if args.bank and args.clips:
        raise InputError("--clips: a bank's frames are learnt from instead: leave out one of them")

    pools, folder = load_pool(args.cache), Path(args.frames)
    real = load_frames(Path(args.labels) / "train.npz") if args.labels and not args.bank else None
    if args.bank:
        scenes, real = (Frames(**read_bank(args.bank, kind)) for kind in ("frames", "labels"))
    elif args.clips:
        scenes = clip_frames(args.clips, args.count)
    else:
        scenes = rendered_frames(folder, "train", args.seed, args.count, pools.train)
    held_out = {"scenes": rendered_frames(folder, "heldout", args.seed + 1, 48, pools.heldout)}
    if args.labels:
        labelled = load_frames(Path(args.labels) / "heldout.npz")
        held_out["teacher"] = Frames(labelled.images[::4], labelled.inverse_depth[::4])
    if args.motorcycle:
        held_out["motorcycle"] = load_motorcycle(args.motorcycle)

    config = sized(args.patch, args.wide, args.sides[0])
    model = initial_model(config, args.seed, scenes.images)
    if args.init:
        with about("--init"):
            carry_over(model, args.init)
    sizes = [input_size(*STORED, short_side=side, multiple=config.patch_size) for side in args.sides]
    graphdef, parameters = nnx.split(model)
    cutouts = jax.device_put(cut_out(pools.train.stamps))
    mean = training.train(
        functools.partial(loss, graphdef=graphdef, cutouts=cutouts),
        parameters,
        functools.partial(make_batch, scenes=scenes, real=real, count=args.batch, share=args.share, sizes=sizes),
        training.TrainConfig.of(args, save_every=900.0),
        args.workdir,
        evaluate=functools.partial(evaluate, graphdef, held_out=held_out),
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
