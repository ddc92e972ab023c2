"""How well does the score of the small networks tell true pairs of views from altered ones?

``python -m training.judge --views HELD_OUT [--weights DIR] [--out FILE]``

A true pair is two views of a held-out scene at one moment. It is altered by changing its second picture inside one
smooth blob that both views see (`KINDS`). Each pair is scored by MEt3R; the figure is the AUC: how often an altered
pair scores worse than a true one, any against any, 0.5 being chance. Beside it: the same score with the scenes' exact
points in place of DUSt3R's, and the plain cosine of features at equal pixels, which knows of no geometry. Among the
means is that of a picture with itself, which is 0 for a score that is right.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from reangle_jax import commands
from reangle_jax.data.files import atomic_write_json
from reangle_jax.errors import about
from reangle_jax.scoring import networks
from reangle_jax.scoring.met3r import Described, Met3r, one_way, summarise
from reangle_jax.tiny import WEIGHTS
from training.train_dino import carry
from training.train_dust3r import true_points
from training.views import Views, load_views

SIDE = 128  # pixels: the middle square of a view
KINDS = ("replaced", "moved", "recoloured")
SHARE = (0.12, 0.25)  # of the picture that is altered
MOVED = 24  # pixels
COVISIBLE = 0.8  # of the blob, at least, is seen by the first camera too


def covisible(scene: Views) -> Bool[np.ndarray, "S S"]:
    """Which pixels of the second view's middle square lie in the first one's too."""
    left = (scene.images.shape[2] - SIDE) // 2
    grid = np.stack(np.meshgrid(np.arange(SIDE) + left, np.arange(SIDE)), -1).reshape(-1, 2) + 0.5
    place, seen = carry(grid, scene, 1, 0)
    return (seen & (place[:, 0] >= left) & (place[:, 0] < left + SIDE)).reshape(SIDE, SIDE)


def random_blob(rng: np.random.Generator, allowed: Bool[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"] | None:
    """A smooth blob of `SHARE` of the picture, nearly all of it on allowed pixels; None if none was found."""
    noise = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), SIDE / 10)
    noise /= noise.std()
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(30):
        middle, share = rng.uniform(0.25, 0.75, 2) * SIDE, rng.uniform(*SHARE)
        height = 0.25 * noise - np.hypot(x - middle[0], y - middle[1]) / (SIDE * np.sqrt(share / np.pi))
        blob = height > np.quantile(height, 1 - share)
        if allowed[blob].mean() >= COVISIBLE:
            return blob
    return None


def altered(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "S S 3"],
    other: UInt8[np.ndarray, "S S 3"],
    blob: Bool[np.ndarray, "S S"],
    kind: str,
) -> UInt8[np.ndarray, "S S 3"]:
    """The picture with its blob changed, its rim a pixel soft.

    Args:
        rng: decides how.
        image: the picture.
        other: a picture of another scene.
        blob: what to change.
        kind: ``replaced`` by what the other picture shows there, ``moved`` (the picture's own content from `MOVED`
            pixels away) or ``recoloured`` (its channels exchanged, and inverted where that changes little).
    """
    if kind == "replaced":
        new = other
    elif kind == "moved":
        angle = rng.uniform(0, 2 * np.pi)
        shift = np.round(MOVED * np.array([np.sin(angle), np.cos(angle)])).astype(int)
        rows, columns = (np.abs(np.arange(SIDE) + s) for s in shift)
        rows, columns = (np.where(n < SIDE, n, 2 * SIDE - 2 - n) for n in (rows, columns))
        new = image[rows][:, columns]
    else:
        new = image[..., [1, 2, 0]]
        if np.abs(new[blob].astype(int) - image[blob]).mean() < 25:
            new = 255 - new
    weight = cv2.GaussianBlur(blob.astype(np.float32), (0, 0), 1.0)[..., None]
    return (image * (1 - weight) + new * weight + 0.5).astype(np.uint8)


def auc(true: Float[np.ndarray, " N"], false: Float[np.ndarray, " M"]) -> float:
    """How often a false pair scores higher than a true one; ties count half."""
    return float(np.mean((false[:, None] > true[None]) + 0.5 * (false[:, None] == true[None])))


def score_pair(
    metric: Met3r, states: tuple[Any, Any], a: Described, b: Described, points: tuple[Array, Array]
) -> dict[str, Array]:
    """The score of a pair, and its two rivals.

    Args:
        metric: the networks.
        states: their parameters.
        a: the first picture, described.
        b: the second.
        points: both pictures' true points in the first camera, and, exchanged, in the second: [2, S, S, 3] each.
    """
    result = {"score": metric.compare(states, a, b).met3r[0]}
    ways = [
        jax.tree.map(lambda x: x[None], one_way(points[0][k], points[1][k], *sides, radius=metric.radius))
        for k, sides in enumerate([(a.features[0], b.features[0]), (b.features[0], a.features[0])])
    ]
    result["true_points"] = summarise(ways[0], ways[1]).met3r[0]
    cosine = jnp.sum(a.features * b.features, -1) / (
        jnp.linalg.norm(a.features, axis=-1) * jnp.linalg.norm(b.features, axis=-1) + 1e-8
    )
    return result | {"no_geometry": 1.0 - jnp.mean(cosine)}


def judge(metric: Met3r, states: tuple[Any, Any], views: Sequence[Views], *, seed: int = 0) -> dict[str, Any]:
    """AUC of the score and of its rivals for each kind of alteration and over all kinds; one pair a scene.

    Scenes whose first two views have too little in common for a blob are left out.
    """
    left = (views[0].images.shape[2] - SIDE) // 2
    window = slice(left, left + SIDE)
    run = jax.jit(functools.partial(score_pair, metric))
    describe = jax.jit(lambda states, image: metric.describe(states, image[None].astype(jnp.float32) / 255.0))
    rows: list[dict[str, dict[str, float]]] = []
    for number in range(len(views)):
        rng, scene = np.random.default_rng([seed, number]), views[number]
        blob = random_blob(rng, covisible(scene))
        if blob is None:
            continue
        first, second = scene.images[:2, :, window]
        foreign = views[(number + 1) % len(views)].images[0, :, window]
        K = scene.K.copy()
        K[0, 2] -= left

        def seen_from(pair: list[int], scene: Views = scene, K: Float[np.ndarray, "3 3"] = K) -> tuple[Array, Array]:
            poses = scene.camera_to_world[pair, None]
            return _points({"depth": scene.depth[pair][:, None, :, window], "K": K[None], "poses": poses})

        pair_points, own_points = seen_from([0, 1]), seen_from([0, 0])
        pictures = {"true": second} | {kind: altered(rng, second, foreign, blob, kind) for kind in KINDS}
        seen = describe(states, first)
        row = {name: run(states, seen, describe(states, picture), pair_points) for name, picture in pictures.items()}
        row["itself"] = run(states, seen, seen, own_points)
        rows.append(jax.tree.map(float, row))
    report: dict[str, Any] = {"pairs": len(rows)}
    for rival in rows[0]["true"]:
        scores = {name: np.array([row[name][rival] for row in rows]) for name in ("itself", "true", *KINDS)}
        figures = {kind: round(auc(scores["true"], scores[kind]), 4) for kind in KINDS}
        figures["all"] = round(auc(scores["true"], np.concatenate([scores[kind] for kind in KINDS])), 4)
        means = {name: round(float(np.mean(x)), 4) for name, x in scores.items()}
        report[rival] = {"auc": figures, "mean": means}
    return report


@jax.jit
def _points(batch: dict[str, Array]) -> tuple[Array, Array]:
    return true_points(batch)


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("--views", required=True, help="held-out rendered views (training.views)")
    parser.add_argument("--weights", default=str(WEIGHTS), help="folder with dust3r/ and featup/ or dino/")
    parser.add_argument(
        "--scenes", type=commands.positive, default=None, help="judge by so many of them, the first; all by default"
    )
    parser.add_argument("--features", choices=tuple(networks.FEATURES), default="featup")
    parser.add_argument("--out", default=None, help="write the figures here too, as JSON")
    args = parser.parse_args()
    with about("--weights"):
        found = networks.load(Path(args.weights), args.features)
    report = judge(*found, load_views(args.views)[: args.scenes])
    print(json.dumps(report, indent=2))
    if args.out:
        atomic_write_json(args.out, report)


if __name__ == "__main__":
    commands.run(main)
