"""Trains the small family's DUSt3R.

``python -m training.train_dust3r --workdir DIR --views DIR --held-out DIR [--half] [--steps N | --minutes M]``

Data: pairs of views of procedural scenes at one moment (`training.views`), whose point maps are exact. With
``--half`` pictures and patches have half their size; what comes out is where the training at full size may start
(``--init``), each pixel's weights and each predicted point becoming those of two by two.

Loss: DUSt3R's, the distance of predicted and true points weighted by the predicted confidence, whose logarithm is
rewarded; each point's distance counts relative to how far off it lies. The true points' unit is their mean distance.
The directions in which points lie count besides, as MEt3R goes by them and they are the smaller part of the distance.
Beside that, and for the encoder alone, the tokens of both images are told which of them see the same spot (InfoNCE, van
den Oord et al., 2018; as MASt3R tells its descriptors): a cross-attention that is to find a spot in the other image
would otherwise take most of a short training to be discovered. With ``--agree``, for the end of a training, that makes
way for what MEt3R asks: of two pixels that see one spot the points lie on one line of sight of the first camera.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, UInt8

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.arrays import to_unit
from reangle_jax.errors import InputError, about
from reangle_jax.geometry.cameras import rigid_inverse
from reangle_jax.models.dust3r import Dust3rConfig, preprocess
from training import training
from training.depth_frames import load_motorcycle
from training.dust3r_pairs import SAME, halved, make_batch
from training.dust3r_start import MATCH_WIDTH, Trained, half_size, initial_model, start_from
from training.views import Views, command_line, first_images, load_views

WEIGHTS = tiny.WEIGHTS / "dust3r"
FAR = 25.0  # scene units: what lies beyond (the sky) is pulled to this depth along its ray
ALPHA = 0.2  # of the confidence's reward
MATCH_WEIGHT, TEMPERATURE = 0.3, 0.1
LEAST = 0.1  # added to a point's distance where errors are divided by it
DIRECTION_WEIGHT = 5.0
AGREE_WEIGHT, AGREE_STRIDE = 6.0, 2
SAME_AGREE = 0.3  # share of pairs that are an image and itself, with --agree


def points_of(depth: Float[Array, "B H W"], K: Float[Array, "B 3 3"]) -> Float[Array, "B H W 3"]:
    """Each pixel's point in its own camera's frame, at most `FAR` deep; pixels' centres lie at +0.5."""
    height, width = depth.shape[1:]
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None, None, :] - K[:, 0, 2, None, None]
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5)[None, :, None] - K[:, 1, 2, None, None]
    z = jnp.minimum(depth.astype(jnp.float32), FAR)
    return jnp.stack([x / K[:, 0, 0, None, None] * z, y / K[:, 1, 1, None, None] * z, z], -1)


def moved(points: Float[Array, "B H W 3"], pose: Float[Array, "B 4 4"]) -> Float[Array, "B H W 3"]:
    """Points under rigid motions."""
    turned = jnp.einsum("bij,bhwj->bhwi", pose[:, :3, :3], points, precision="highest")
    return turned + pose[:, None, None, :3, 3]


def between(first: Float[Array, "B 4 4"], second: Float[Array, "B 4 4"]) -> Float[Array, "B 4 4"]:
    """From the second cameras' frames to the first ones'; both are given as rigid camera-to-world matrices."""
    return jnp.matmul(rigid_inverse(first), second, precision="highest")


def true_points(batch: dict[str, Array]) -> tuple[Float[Array, "P H W 3"], Float[Array, "P H W 3"]]:
    """Both images' points in the first one's frame, of the pairs as they are and then of the pairs exchanged; P = 2 B.

    Their unit is the pair's mean distance from the first camera.
    """
    own = [points_of(depth, batch["K"]) for depth in batch["depth"]]
    a, b = batch["poses"]
    first = jnp.concatenate(own)
    second = jnp.concatenate([moved(own[1], between(a, b)), moved(own[0], between(b, a))])
    distances = jnp.linalg.norm(jnp.stack([first, second]), axis=-1)
    unit = jnp.mean(distances, axis=(0, 2, 3))[:, None, None, None]
    return first / unit, second / unit


def matches(
    points: Float[Array, "B H W 3"], other: Float[Array, "B H2 W2 3"], K: Float[Array, "B 3 3"], patch: int
) -> tuple[Array, Bool[Array, "B N"]]:
    """Where the middle of each patch of the second images is seen in the first ones: patch number, and whether it is.

    Args:
        points: of the first images, in their own frame.
        other: of the second images, in the same frame.
        K: of the first images.
        patch: pixels a patch and side.
    """
    batch, height, width, _ = points.shape
    middle = other[:, patch // 2 :: patch, patch // 2 :: patch].reshape(batch, -1, 3)
    z = jnp.maximum(middle[..., 2], 1e-3)
    u = jnp.floor(middle[..., 0] / z * K[:, 0, 0, None] + K[:, 0, 2, None]).astype(jnp.int32)
    v = jnp.floor(middle[..., 1] / z * K[:, 1, 1, None] + K[:, 1, 2, None]).astype(jnp.int32)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (middle[..., 2] > 1e-3)
    u, v = jnp.clip(u, 0, width - 1), jnp.clip(v, 0, height - 1)
    seen = jax.vmap(lambda depth, v, u: depth[v, u])(points[..., 2], v, u)
    near = jnp.abs(seen / z - 1) < 0.05
    return v // patch * (width // patch) + u // patch, inside & near


def match_loss(
    tokens1: Float[Array, "B N C"], tokens2: Float[Array, "B N C"], target: Array, valid: Bool[Array, "B N"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of choosing the right token of the first image for each of the second, and how often it is."""
    unit1, unit2 = (x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6) for x in (tokens1, tokens2))
    logits = jnp.einsum("bnc,bmc->bnm", unit2, unit1) / TEMPERATURE
    logp = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]
    weight = valid.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(weight), 1.0)
    right = (jnp.argmax(logits, -1) == target).astype(jnp.float32)
    return -jnp.sum(picked * weight) / count, jnp.sum(right * weight) / count


def disagreement(
    predicted: tuple[Array, Array], truth: tuple[Array, Array], K: Float[Array, "B 3 3"]
) -> Float[Array, ""]:
    """How far apart, in tangents, the first cameras see both predictions of a spot that both images show.

    Args:
        predicted: points of the first and of the second images [B, H, W, 3], in the first ones' frames.
        truth: the same, as they are.
        K: of the first images.
    """
    steps = slice(None, None, AGREE_STRIDE)
    target, valid = matches(truth[0], truth[1][:, steps, steps], K, 1)
    places = [points[..., :2] / jnp.maximum(points[..., 2:], 0.1) for points in predicted]
    batch = len(target)
    there = jnp.take_along_axis(places[0].reshape(batch, -1, 2), target[..., None], axis=1)
    apart = jnp.square(there - places[1][:, steps, steps].reshape(batch, -1, 2))
    weight = valid.astype(jnp.float32)
    return jnp.sum(jnp.sqrt(jnp.sum(apart, -1) + 1e-8) * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def every_other(x: Float[Array, "B H W *n"], first: Array) -> Float[Array, "B H/2 W/2 *n"]:
    """Every other row and column, from ``first`` (0 or 1 of each) on."""
    for axis, k in zip((1, 2), first, strict=True):
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        x = jax.lax.dynamic_index_in_dim(pairs, k, axis + 1, keepdims=False)
    return x


def unit(points: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """The directions in which points lie."""
    return points / (jnp.linalg.norm(points, axis=-1, keepdims=True) + 1e-6)


def loss(
    parameters: nnx.State, batch: dict[str, Array], key: Array, *, graphdef: nnx.GraphDef, agree: bool | Array = False
) -> tuple[Array, dict]:
    """The loss of one batch; each pair is used both ways. ``agree`` may be a share of the way to the last part.

    A quarter of the pixels, others in every step, are enough: neighbours say much the same and cost as much.
    """
    first = jax.random.randint(key, (2,), 0, 2)
    model = nnx.merge(graphdef, parameters)
    network = model.dust3r
    images = to_unit(batch["images"])
    count = images.shape[1]
    tokens = network.encode(images.reshape(-1, *images.shape[2:]))
    exchanged = jnp.concatenate([tokens[count:], tokens[:count]])
    predicted = network.decode(tokens, exchanged)
    truth = true_points(batch)
    value, relative_error, aside = (jnp.float32(0) for _ in range(3))
    for view, points in zip(predicted, truth, strict=True):
        found, there, confidence = (every_other(x, first) for x in (view.points, points, view.confidence))
        distance = jnp.linalg.norm(there, axis=-1)
        error = jnp.sqrt(jnp.sum(jnp.square(found - there), -1) + 1e-8) / (distance + LEAST)
        value += jnp.mean(confidence * error - ALPHA * jnp.log(confidence))
        relative_error += 0.5 * jnp.mean(error)
        aside += 0.5 * jnp.mean(jnp.sqrt(jnp.sum(jnp.square(unit(found) - unit(there)), -1) + 1e-8))
    value += DIRECTION_WEIGHT * aside
    K = jnp.concatenate([batch["K"], batch["K"]])
    numbers = {"error": relative_error, "aside": aside}
    if agree is not False:
        numbers["apart"] = disagreement((predicted[0].points, predicted[1].points), truth, K)
        value += agree * AGREE_WEIGHT * numbers["apart"]
    if agree is not True:
        target, valid = matches(*truth, K, network.config.patch_size)
        projected = model.match(tokens).reshape(2 * count, -1, MATCH_WIDTH)
        other = jnp.concatenate([projected[count:], projected[:count]])
        numbers["match"], numbers["matched"] = match_loss(projected, other, target, valid)
        value += (1.0 - agree) * MATCH_WEIGHT * numbers["match"]
    return value, numbers


@functools.partial(jax.jit, static_argnums=0)
def _predict(graphdef: nnx.GraphDef, parameters: nnx.State, first: Array, second: Array):
    model = nnx.merge(graphdef, parameters)
    first, second = (to_unit(x) for x in (first, second))
    return tuple(view.points for view in model.dust3r(first, second))


@jax.jit
def _truth(batch: dict[str, Array]):
    return true_points(batch)


def relative_errors(
    predicted: tuple[np.ndarray, np.ndarray], truth: tuple[np.ndarray, np.ndarray]
) -> Float32[np.ndarray, " B"]:
    """Each pair's median over all pixels of both images of |predicted - true| / true depth.

    Predictions have no unit: theirs is the one that makes the median distance from the camera right. The depth is the
    true one along the first camera's axis.
    """
    result = []
    for pair in zip(*predicted, *truth, strict=True):
        p, t = np.concatenate(pair[:2]).reshape(-1, 3), np.concatenate(pair[2:]).reshape(-1, 3)
        scale = np.median(np.linalg.norm(t, axis=-1)) / max(np.median(np.linalg.norm(p, axis=-1)), 1e-9)
        result.append(np.median(np.linalg.norm(scale * p - t, axis=-1) / np.maximum(t[:, 2], 1e-3)))
    return np.array(result, np.float32)


def first_pairs(views: Sequence[Views]) -> dict[str, np.ndarray]:
    """One pair a scene, its first two cameras, at full size, as `make_batch` gives pairs: what figures are taken on."""
    images, depth, K, poses = (np.stack(field) for field in zip(*views, strict=True))
    pairs = {"images": images, "depth": depth, "poses": poses}
    return {name: x[:, :2].swapaxes(0, 1) for name, x in pairs.items()} | {"K": K}


def mean_map_error(views: Sequence[Views], held_out: Sequence[Views], *, scenes: int = 128) -> float:
    """`evaluate`'s first figure for a network that ignores the pictures and answers with the mean true points."""
    known, asked = (tuple(np.asarray(x)[: len(v)] for x in _truth(first_pairs(v))) for v in (views[:scenes], held_out))
    means = [np.broadcast_to(x.mean(0, keepdims=True), a.shape) for x, a in zip(known, asked, strict=True)]
    return float(np.median(relative_errors((means[0], means[1]), (asked[0], asked[1]))))


def evaluate(
    graphdef: nnx.GraphDef, parameters: nnx.State, *, held_out: Sequence[Views], motorcycle: str | None
) -> dict[str, float]:
    """Median relative error of unseen scenes' points; correlation with Motorcycle's depth, and with its inverse."""
    batch = first_pairs(held_out)
    parts = [
        [np.asarray(x) for x in _predict(graphdef, parameters, *batch["images"][:, k : k + 16])]
        for k in range(0, len(held_out), 16)
    ]
    predicted = tuple(np.concatenate(side) for side in zip(*parts, strict=True))
    truth = [np.asarray(x)[: len(held_out)] for x in _truth(batch)]
    errors = relative_errors((predicted[0], predicted[1]), (truth[0], truth[1]))
    result = {"heldout_error": round(float(np.median(errors)), 4)}
    if motorcycle:
        images, inverse = motorcycle_pair(motorcycle, held_out[0].images.shape[2])
        points, _ = _predict(graphdef, parameters, *images)
        result |= {name: round(r, 4) for name, r in depth_correlations(np.asarray(points[0, ..., 2]), inverse).items()}
    return result


def motorcycle_pair(folder: str, size: int) -> tuple[UInt8[np.ndarray, "2 1 H W 3"], Float32[np.ndarray, "H W"]]:
    """Both images of Middlebury's Motorcycle as the network sees them, and the left one's inverse depth (NaN: unknown).

    Raises:
        InputError: the folder lacks a file.
    """
    left = load_motorcycle(folder)
    right = cv2.imread(str(Path(folder) / "motorcycle_right.png"), cv2.IMREAD_COLOR)
    if right is None:
        raise InputError(f"motorcycle: {folder} has no motorcycle_right.png; give scikit-image's data folder")
    sides = [left.images[0], cv2.cvtColor(right, cv2.COLOR_BGR2RGB)]
    seen = [preprocess(side, image_size=size, multiple=8) for side in sides]
    images = np.stack([np.round((x + 1) * 127.5).astype(np.uint8)[None] for x in seen])
    height, width = images.shape[2:4]
    # The nearest pixel's: a mean would mix what lies before and behind an edge.
    inverse = cv2.resize(left.inverse_depth[0].astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    return images, inverse


def depth_correlations(z: Float[np.ndarray, "H W"], inverse: Float[np.ndarray, "H W"]) -> dict[str, float]:
    """Pearson's correlation of depth with true depth, and of its inverse with the true one's, where that is known."""
    known = np.isfinite(inverse)
    z, inverse = np.maximum(z[known].astype(np.float64), 1e-3), inverse[known].astype(np.float64)
    depth = float(np.corrcoef(z, 1 / inverse)[0, 1])
    return {"motorcycle_depth": depth, "motorcycle_inverse": float(np.corrcoef(1 / z, inverse)[0, 1])}


def main() -> None:
    """The command."""
    parser = command_line(__doc__, steps=20_000, out=str(WEIGHTS), batch=8)
    parser.add_argument("--motorcycle", default=None, help="scikit-image's data folder, for the held-out figure")
    parser.add_argument("--init", default=None, help="a weights folder to start from")
    parser.add_argument("--half", action="store_true", help="train the network for half the size")
    parser.add_argument("--agree", action="store_true", help="the last part: draw both points of a spot together")
    args = parser.parse_args()

    views, held_out = load_views(args.views), load_views(args.held_out)
    if args.half:
        views, held_out = views.map(halved), held_out.map(halved)
    config = half_size(Dust3rConfig.tiny()) if args.half else Dust3rConfig.tiny()
    if args.init:
        model = Trained(config, rngs=nnx.Rngs(args.seed))
        with about("--init"):
            start_from(args.init, model)
    else:
        model = initial_model(config, args.seed, first_images(views))
        print(f"the mean point map's error: {mean_map_error(views, held_out):.4f}", flush=True)
    graphdef, parameters = nnx.split(model)
    mean = training.train(
        functools.partial(loss, graphdef=graphdef, agree=args.agree),
        parameters,
        functools.partial(make_batch, views=views, count=args.batch, same=SAME_AGREE if args.agree else SAME),
        training.TrainConfig.of(args, save_every=900.0),
        args.workdir,
        evaluate=functools.partial(evaluate, graphdef, held_out=held_out, motorcycle=args.motorcycle),
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean).dust3r, config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
