"""Trains the small family's feature network, in the manner of DINO: by distilling itself.

``python -m training.train_dino --workdir DIR --views DIR --held-out DIR [--steps N | --minutes M]``

Data: two views of one moment of a procedural scene (`training.views`), cropped, scaled and lit each by itself.

Loss: what the student says of a patch should be what the teacher, the running mean of the students, says of the same
spot in the other view, and not what it says of other spots there and in the batch's other pictures (InfoNCE, van den
Oord et al., 2018, with a momentum teacher as in MoCo, He et al., 2019, densely). DINO itself compares whole crops and
spreads them over prototypes, which takes far longer to learn; here the scenes tell which spots are the same. Spots
nearer than `NEAR` patches to the right one are not held against it, so that features change smoothly.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, UInt8

from reangle_jax import checkpoints, commands
from reangle_jax.arrays import Picture
from reangle_jax.errors import about
from reangle_jax.models.dino import DinoConfig, VisionTransformer, normalise
from training import training
from training.train_depth import principal_patches
from training.views import Views, command_line, first_images, load_views

OUT = ".cache/dino"  # not among the bundled weights: `train_featup` puts it under its upsampler
CROP = 96  # pixels a side
SCALES = (0.8, 1.4)  # of a crop's pixels to the view's
TEMPERATURE = 0.1
NEAR = 2.0  # patches


class Crop(NamedTuple):
    """A square of a view, enlarged: pixel ``p`` of the view lies at ``scale * (p - corner)`` of the crop."""

    image: UInt8[np.ndarray, "S S 3"]
    corner: Float32[np.ndarray, "2"]
    scale: float


def random_crop(rng: np.random.Generator, image: Picture) -> Crop:
    """A crop somewhere, lit a little otherwise, sometimes blurred or noisy."""
    side = round(CROP / rng.uniform(*SCALES))
    top, left = (int(rng.integers(n - side + 1)) for n in image.shape[:2])
    how = cv2.INTER_AREA if side > CROP else cv2.INTER_LINEAR
    crop = cv2.resize(image[top : top + side, left : left + side], (CROP, CROP), interpolation=how).astype(np.float32)
    crop = crop * (rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3))
    if rng.random() < 0.3:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.3:
        crop = crop + rng.normal(0, rng.uniform(0, 6), crop.shape)
    return Crop(np.clip(crop + 0.5, 0, 255).astype(np.uint8), np.array([left, top], np.float32), CROP / side)


def carry(
    places: Float[np.ndarray, "N 2"], scene: Views, source: int, target: int
) -> tuple[Float32[np.ndarray, "N 2"], Bool[np.ndarray, " N"]]:
    """Where spots of one view lie in another one of the same scene, and whether they are seen there.

    Args:
        places: x, y in pixels of the source view.
        scene: whose views.
        source: the view they are given in.
        target: the view they are asked in.
    """
    K, poses = scene.K, scene.camera_to_world
    height, width = scene.depth.shape[1:]
    column, row = (np.clip(places[:, k].astype(int), 0, n - 1) for k, n in enumerate((width, height)))
    z = scene.depth[source, row, column].astype(np.float32)
    rays = np.concatenate([(places - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((len(places), 1))], 1)
    world = (rays * z[:, None]) @ poses[source, :3, :3].T + poses[source, :3, 3]
    there = (world - poses[target, :3, 3]) @ poses[target, :3, :3]
    depth = np.maximum(there[:, 2], 1e-3)
    place = there[:, :2] / depth[:, None] * K[[0, 1], [0, 1]] + K[:2, 2]
    inside = ((place >= 0) & (place < (width, height))).all(1) & (there[:, 2] > 1e-3)
    column, row = (np.clip(place[:, k], 0, n - 1).astype(int) for k, n in enumerate((width, height)))
    seen = scene.depth[target, row, column].astype(np.float32)
    return place.astype(np.float32), inside & (np.abs(seen / depth - 1) < 0.05)


def make_batch(
    rng: np.random.Generator, step: int, *, views: Sequence[Views], count: int, patch: int
) -> dict[str, np.ndarray]:
    """Pairs of crops: ``images`` uint8 [2, B, S, S, 3]; for the patches of each, N to a crop, ``places`` [2, B, N, 2].

    A place is x, y in patches of the other crop, 0 at the first one's middle; ``valid`` [2, B, N] says whether the spot
    is seen there at all.
    """
    del step
    side = CROP // patch
    grid = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5).astype(np.float32) * patch
    images, places, valid = [], [], []
    for _ in range(count):
        scene = views[int(rng.integers(len(views)))]
        pair = rng.permutation(len(scene.images))[:2]
        crops = [random_crop(rng, scene.images[k]) for k in pair]
        if rng.random() < 0.5:  # the same other colours for both
            colours = rng.permutation(3)
            crops = [crop._replace(image=crop.image[..., colours]) for crop in crops]
        sides = []
        for (own, other), (source, target) in zip((crops, crops[::-1]), (pair, pair[::-1]), strict=True):
            place, seen = carry(grid / own.scale + own.corner, scene, int(source), int(target))
            place = (place - other.corner) * other.scale
            sides.append((place / patch - 0.5, seen & ((place >= 0) & (place < CROP)).all(1)))
        mirrored = rng.random() < 0.5
        images.append(np.stack([crop.image[:, ::-1] if mirrored else crop.image for crop in crops]))
        places.append(np.stack([_mirror(place, side) if mirrored else place for place, _ in sides]))
        valid.append(np.stack([_mirror_order(seen, side) if mirrored else seen for _, seen in sides]))
    return {"images": np.stack(images, 1), "places": np.stack(places, 1), "valid": np.stack(valid, 1)}


def _mirror(places: np.ndarray, side: int) -> np.ndarray:
    turned = _mirror_order(places, side)
    return np.stack([side - 1 - turned[:, 0], turned[:, 1]], 1)


def _mirror_order(values: np.ndarray, side: int) -> np.ndarray:
    return values.reshape(side, side, -1)[:, ::-1].reshape(values.shape)


def sample(features: Float[Array, "B h w C"], places: Float[Array, "B N 2"]) -> Float[Array, "B N C"]:
    """Features between patches, bilinearly; beyond the outermost ones as theirs."""
    rows, columns = features.shape[1:3]
    x, y = jnp.clip(places[..., 0], 0, columns - 1), jnp.clip(places[..., 1], 0, rows - 1)
    left, top = (jnp.floor(jnp.minimum(v, n - 2)).astype(jnp.int32) for v, n in ((x, columns), (y, rows)))
    fx, fy = ((v - n.astype(v.dtype))[..., None] for v, n in ((x, left), (y, top)))
    at = jax.vmap(lambda image, row, column: image[row, column])
    upper = at(features, top, left) * (1 - fx) + at(features, top, left + 1) * fx
    lower = at(features, top + 1, left) * (1 - fx) + at(features, top + 1, left + 1) * fx
    return upper * (1 - fy) + lower * fy


def unit(x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
    """Vectors of length one."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-6)


def loss(
    parameters: nnx.State, batch: dict[str, Array], key: Array, mean: nnx.State, *, graphdef: nnx.GraphDef
) -> tuple[Array, dict]:
    """The loss of one batch; ``mean`` is the teacher."""
    del key
    images = normalise(batch["images"].astype(jnp.float32) / 255.0)
    _, count, *shape = images.shape
    both = images.reshape(2 * count, *shape)
    student = nnx.merge(graphdef, parameters).features(both)
    teacher = jax.lax.stop_gradient(nnx.merge(graphdef, mean).features(both))
    other = jnp.concatenate([teacher[count:], teacher[:count]])
    places, valid = (batch[name].reshape(2 * count, *batch[name].shape[2:]) for name in ("places", "valid"))
    told, said = unit(sample(other, places)), unit(student.reshape(2 * count, -1, student.shape[-1]))
    # A spot is told from the other spots of its own crop, and from a quarter of the other crops' spots.
    within = jnp.einsum("bnc,bmc->bnm", said, told) / TEMPERATURE
    apart = jnp.linalg.norm(places[:, :, None] - places[:, None], axis=-1)
    own = jnp.eye(within.shape[1], dtype=bool)[None]
    within = jnp.where(own | ((apart > NEAR) & valid[:, None, :]), within, -1e9)
    few, seen = told[:, ::4].reshape(-1, told.shape[-1]), valid[:, ::4].reshape(-1)
    across = jnp.einsum("bnc,kc->bnk", said, few) / TEMPERATURE
    crop = jnp.repeat(jnp.arange(2 * count) % count, told[:, ::4].shape[1])
    foreign = (crop[None, :] != (jnp.arange(2 * count) % count)[:, None])[:, None, :] & seen[None, None, :]
    logits = jnp.concatenate([within, jnp.where(foreign, across, -1e9)], -1)
    logp = jax.nn.log_softmax(logits, -1)
    picked = jnp.sum(jnp.where(own, logp[..., : within.shape[1]], 0.0), -1)
    weight = valid.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weight), 1.0)
    right = (jnp.argmax(logits, -1) == jnp.arange(within.shape[1])[None]).astype(jnp.float32)
    likeness = jnp.sum(said * told, -1)
    numbers = {"found": jnp.sum(right * weight) / total, "likeness": jnp.sum(likeness * weight) / total}
    return -jnp.sum(picked * weight) / total, numbers


@functools.partial(jax.jit, static_argnums=0)
def _found(graphdef: nnx.GraphDef, parameters: nnx.State, batch: dict[str, Array]):
    """Whether the patch of the other crop that is likest to a spot is the right one or beside it, at valid spots."""
    images = normalise(batch["images"].astype(jnp.float32) / 255.0)
    features = [nnx.merge(graphdef, parameters).features(x) for x in images]
    side = features[0].shape[1]
    right, total = jnp.float32(0), jnp.float32(0)
    for k in (0, 1):
        own, other = (unit(features[j].reshape(features[j].shape[0], side * side, -1)) for j in (k, 1 - k))
        best = jnp.argmax(jnp.einsum("bnc,bmc->bnm", own, other), -1)
        place = jnp.stack([best % side, best // side], -1).astype(jnp.float32)
        near = jnp.max(jnp.abs(place - batch["places"][k]), -1) <= 1.0
        right += jnp.sum((near & batch["valid"][k]).astype(jnp.float32))
        total += jnp.sum(batch["valid"][k].astype(jnp.float32))
    return right, total


def evaluate(
    graphdef: nnx.GraphDef, parameters: nnx.State, *, held_out: Sequence[Views], patch: int
) -> dict[str, float]:
    """Share of spots of unseen scenes that are found again in another view, among its 144 patches."""
    counts = [
        _found(
            graphdef, parameters, make_batch(np.random.default_rng([5, k]), k, views=held_out, count=16, patch=patch)
        )
        for k in range(4)
    ]
    right, total = (float(sum(x)) for x in zip(*counts, strict=True))
    return {"heldout_found": round(right / total, 4)}


def initial_model(config: DinoConfig, seed: int, images: UInt8[np.ndarray, "N H W 3"]) -> VisionTransformer:
    """Random weights, but for the tokens: principal components of patches (see `train_depth.initial_model`)."""
    model = VisionTransformer(config, rngs=nnx.Rngs(seed))
    kernel = principal_patches(images, config.patch_size, config.width)
    model.patch_embed.kernel.set_value(jnp.asarray(kernel))
    return model


def main() -> None:
    """The command."""
    parser = command_line(__doc__, steps=20_000, out=OUT, batch=12)
    parser.add_argument("--init", default=None, help="a weights folder to start from")
    args = parser.parse_args()

    views, held_out = load_views(args.views), load_views(args.held_out)
    config = DinoConfig.tiny()
    model = initial_model(config, args.seed, first_images(views))
    if args.init:
        with about("--init"):
            checkpoints.load_into(model, args.init)
    graphdef, parameters = nnx.split(model)
    mean = training.train(
        functools.partial(loss, graphdef=graphdef),
        parameters,
        functools.partial(make_batch, views=views, count=args.batch, patch=config.patch_size),
        training.TrainConfig.of(args, save_every=240.0),
        args.workdir,
        evaluate=functools.partial(evaluate, graphdef, held_out=held_out, patch=config.patch_size),
        distil=True,
    )
    checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
