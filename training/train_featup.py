"""Trains the small family's upsampler of features, as FeatUp does (Fu et al., 2024, arXiv 2403.10516).

``python -m training.train_featup --workdir DIR --views DIR --held-out DIR [--dino FOLDER] [--steps N | ...]``

The feature network (`training.train_dino`) stays as it is. Loss: what it says of a part of a picture, enlarged,
should be what the upsampled features of the whole picture come to when that part is cut out of them and averaged over
patches: features at pixels that explain those of every closer look. Squared difference over the features' variance.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.errors import about
from reangle_jax.models.dino import FeatUp, FeatUpConfig, normalise
from reangle_jax.nn.resize import resize_bilinear
from training import training
from training.train_dino import OUT as DINO
from training.train_dino import sample
from training.views import Views, command_line, load_views

WEIGHTS = tiny.WEIGHTS / "featup"
SIDE = 64  # pixels of a picture
PARTS = (0.45, 0.9)  # of its side that is looked at closely
PER_PATCH = 4  # samples a patch and side when features are averaged


def make_batch(rng: np.random.Generator, step: int, *, views: Sequence[Views], count: int) -> dict[str, np.ndarray]:
    """Pictures ``whole`` and enlarged ``part`` of each, uint8 [B, S, S, 3]; ``window`` [B, 3]: its x, y and side."""
    del step
    whole, part, window = [], [], []
    for _ in range(count):
        images = views[int(rng.integers(len(views)))].images
        image = images[rng.integers(len(images))]
        side = int(rng.integers(SIDE, image.shape[0] + 1))
        top, left = (int(rng.integers(n - side + 1)) for n in image.shape[:2])
        image = cv2.resize(image[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        near = round(SIDE * rng.uniform(*PARTS))
        x, y = (int(v) for v in rng.integers(SIDE - near + 1, size=2))
        whole.append(image)
        part.append(cv2.resize(image[y : y + near, x : x + near], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
        window.append((x, y, near))
    return {"whole": np.stack(whole), "part": np.stack(part), "window": np.array(window, np.float32)}


def cut_out(
    features: Float[Array, "B H W C"], window: Float[Array, "B 3"], rows: int, columns: int
) -> Float[Array, "B h w C"]:
    """Means of pixels' features over the patches of a window of the picture."""
    y, x = ((jnp.arange(n * PER_PATCH, dtype=jnp.float32) + 0.5) / (n * PER_PATCH) for n in (rows, columns))
    spots = jnp.stack(jnp.meshgrid(x, y), -1).reshape(-1, 2)  # 0 to 1 over the window, row by row
    places = window[:, None, :2] + spots[None] * window[:, None, 2:] - 0.5
    values = sample(features, places)
    return values.reshape(len(values), rows, PER_PATCH, columns, PER_PATCH, -1).mean((2, 4))


def difference(a: Float[Array, "B h w C"], b: Float[Array, "B h w C"]) -> Float[Array, ""]:
    """Mean squared difference over the variance of the second."""
    variance = jnp.mean(jnp.square(b - jnp.mean(b, axis=(0, 1, 2), keepdims=True)))
    return jnp.mean(jnp.square(a - b)) / variance


def loss(
    parameters: nnx.State, batch: dict[str, Array], key: Array, *, graphdef: nnx.GraphDef
) -> tuple[Array, dict[str, Array]]:
    """The loss of one batch, and that of bilinear upsampling of the same features."""
    del key
    model = nnx.merge(graphdef, parameters)
    whole, part = (batch[name].astype(jnp.float32) / 255.0 for name in ("whole", "part"))
    coarse, target = jnp.split(jax.lax.stop_gradient(model.features(normalise(jnp.concatenate([whole, part])))), 2)
    rows, columns = target.shape[1:3]
    fine = model.upsampler(coarse, whole)
    near = difference(cut_out(fine, batch["window"], rows, columns), target)
    everything = jnp.broadcast_to(jnp.array([0.0, 0.0, SIDE])[None], batch["window"].shape)
    same = difference(cut_out(fine, everything, rows, columns), coarse)
    plain = resize_bilinear(coarse, SIDE, SIDE, align_corners=False)
    numbers = {"part": near, "whole": same}
    numbers["bilinear"] = difference(cut_out(plain, batch["window"], rows, columns), target)
    return near + 0.5 * same, numbers


def evaluate(graphdef: nnx.GraphDef, parameters: nnx.State, *, held_out: Sequence[Views]) -> dict[str, float]:
    """The loss's parts on unseen scenes."""
    numbers = [
        _numbers(graphdef, parameters, make_batch(np.random.default_rng([6, k]), k, views=held_out, count=8))
        for k in range(4)
    ]
    return {f"heldout_{name}": round(float(np.mean([n[name] for n in numbers])), 4) for name in numbers[0]}


@functools.partial(jax.jit, static_argnums=0)
def _numbers(graphdef: nnx.GraphDef, parameters: nnx.State, batch: dict[str, Array]) -> dict[str, Array]:
    return loss(parameters, batch, jax.random.key(0), graphdef=graphdef)[1]


def initial_model(config: FeatUpConfig, seed: int, backbone: str | Path) -> FeatUp:
    """The trained feature network under an upsampler of random weights."""
    model = FeatUp(config, rngs=nnx.Rngs(seed))
    with about("--dino"):
        checkpoints.load_into(model.backbone, backbone)
    return model


def upsampler_alone(parameters: nnx.State) -> nnx.State:
    """Factors on the updates: 1 for the upsampler, 0 for everything below."""
    return jax.tree.map_with_path(lambda path, _: jnp.float32("upsampler" in str(path[0])), parameters)


def main() -> None:
    """The command."""
    parser = command_line(__doc__, steps=2_000, out=str(WEIGHTS), batch=4)
    parser.add_argument("--dino", default=DINO, help="folder of the feature network")
    args = parser.parse_args()

    views, held_out = load_views(args.views), load_views(args.held_out)
    config = FeatUpConfig.tiny()
    graphdef, parameters = nnx.split(initial_model(config, args.seed, args.dino))
    mean = training.train(
        functools.partial(loss, graphdef=graphdef),
        parameters,
        functools.partial(make_batch, views=views, count=args.batch),
        training.TrainConfig.of(args),
        args.workdir,
        evaluate=functools.partial(evaluate, graphdef, held_out=held_out),
        trainable=upsampler_alone(parameters),
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
