"""Pictures with the holes that a moved camera leaves, for the training of the small FLUX.

``python -m training.holes --out DIR --pictures N [--first K] [--scenes DIR] [--views DIR]`` makes pictures K and on,
N of them in parts of 64 (see `training.records`); those that are there already are kept, so the same command goes on.

Three kinds. A rendered view warped to another one of its scene (`training.views`): the truth is the other view itself.
A rendered frame with its exact depth (`training.dataset`), and a photograph behind cut-outs with a depth made up for
them: there the picture is what the moved camera sees, and its holes are what the camera it came from cannot see. The
last two are found by warping the picture's depth to that camera and back, so that what is known is the truth itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from reangle_jax import commands
from reangle_jax.geometry import depth as depths
from reangle_jax.geometry.splat import splat
from reangle_jax.geometry.trajectories import parse_view, view_cameras
from training import records
from training.dataset import HEIGHT, HELD_OUT_FROM, WIDTH, Clip, load_clips
from training.pool import ImagePool, load_pool
from training.records import Stored
from training.train_vae import recoloured
from training.views import VIEWS, Views, load_views

PART = 64
# Degrees, or of the pivot's distance: from, to.
MOTIONS = {"left": (3, 15), "right": (3, 15), "up": (3, 12), "down": (3, 10), "out": (0.05, 0.25), "in": (0.05, 0.2)}
CHANCES = (0.3, 0.3, 0.13, 0.12, 0.1, 0.05)
BEHIND_CUTOUTS = 0.7  # share of the photographs
RENDERED = (0.2, 0.35)  # chances below which a picture is a pair of views, then a rendered frame
HOLE = (0.02, 0.6)  # of a picture: fewer or more holes teach little
RECOLOURED = 0.3


class Holes(NamedTuple):
    """A picture, and what a warp shows of it.

    Attributes:
        picture: the truth, RGB.
        warp: what is known of it; black in the holes.
        visible: False in the holes.
        prompt: may be empty.
    """

    picture: UInt8[np.ndarray, "H W 3"]
    warp: UInt8[np.ndarray, "H W 3"]
    visible: Bool[np.ndarray, "H W"]
    prompt: str


@jax.jit
def there_and_back(
    depth: Float[Array, "H W"], K: Float[Array, "3 3"], camera_to_world: Float[Array, "4 4"]
) -> Bool[Array, "H W"]:
    """Which pixels of a picture, whose camera is the world, another camera of equal intrinsics sees too.

    The depth is warped to the other camera and what arrives there is warped back.
    """
    to_world, to_camera = camera_to_world, jnp.linalg.inv(camera_to_world)
    nothing = jnp.zeros((*depth.shape, 1), jnp.float32)
    other = splat(nothing, depth, K, K, to_camera)
    return splat(nothing, other.depth, K, K, to_world).visible


@jax.jit
def _warp(image: Array, depth: Array, K: Array, source: Array, target: Array) -> tuple[Array, Array]:
    result = splat(image.astype(jnp.float32), depth, K, K, jnp.linalg.inv(target) @ source)
    return jnp.round(result.image).astype(jnp.uint8), result.visible


def random_motion(rng: np.random.Generator) -> str:
    """A view's spelling, of one motion or, three times in ten, of two."""
    names = list(MOTIONS)
    first = str(rng.choice(names, p=CHANCES))
    chosen = [first]
    if rng.random() < 0.3:
        pair = next(pair for pair in (("left", "right"), ("up", "down"), ("in", "out")) if first in pair)
        chosen.append(str(rng.choice([name for name in names if name not in pair])))
    return "+".join(f"{name}:{rng.uniform(*MOTIONS[name]) / len(chosen) ** 0.5:.3f}" for name in chosen)


def seen_from_elsewhere(
    depth: Float[np.ndarray, "H W"], K: Float[np.ndarray, "3 3"], rng: np.random.Generator
) -> Bool[np.ndarray, "H W"]:
    """Which pixels a camera of a random motion sees too."""
    pivot = depths.pivot_depth(depth[None])
    pose = view_cameras(parse_view(random_motion(rng)), K, pivot, 1, "static").camera_to_world[0]
    return np.asarray(there_and_back(jnp.asarray(depth, jnp.float32), jnp.asarray(K), pose))


def random_intrinsics(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """A focal length of 0.36 (the default for clips) to 1.2 times the width."""
    focal = WIDTH * np.exp(rng.uniform(np.log(0.36), np.log(1.2)))
    return np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]], np.float32)


def random_depth(rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Depth of a slanted ground or wall with smooth hills; its inverse is 1 on average."""
    rows, columns = np.linspace(-1, 1, HEIGHT)[:, None], np.linspace(-1, 1, WIDTH)[None]
    hills = cv2.resize(rng.normal(size=(4, 6)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    slope = rng.uniform(0, 0.6) * rows + rng.normal(0, 0.15) * columns
    return 1.0 / np.clip(1.0 + slope + rng.uniform(0, 0.2) * hills, 0.25, 3.0)


def behind_cutouts(
    photo: UInt8[np.ndarray, "H W 3"], depth: Float[np.ndarray, "H W"], pool: ImagePool, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "H W"]]:
    """One to three cut-outs stood before a photograph, each nearer than what it covers."""
    photo, depth = photo.copy(), depth.copy()
    for _ in range(rng.integers(1, 4)):
        side = int(rng.integers(HEIGHT // 4, HEIGHT))
        stamp = cv2.resize(pool.stamps[rng.integers(len(pool.stamps))], (side, side), interpolation=cv2.INTER_AREA)
        stamp = stamp[:, ::-1] if rng.random() < 0.5 else stamp
        if rng.random() < 0.3:  # another photograph's inside, in the cut-out's shape
            stamp = np.concatenate([pool.random_crop(rng, side, side), stamp[..., 3:]], -1)
        top, left = int(rng.integers(-side // 4, HEIGHT - side // 2)), int(rng.integers(-side // 3, WIDTH - side // 2))
        inside = np.s_[max(top, 0) : top + side, max(left, 0) : left + side]
        rows, columns = photo[inside].shape[:2]
        stamp = stamp[max(-top, 0) :, max(-left, 0) :][:rows, :columns]
        alpha = stamp[..., 3:] / 255.0
        photo[inside] = (alpha * stamp[..., :3] + (1 - alpha) * photo[inside] + 0.5).astype(np.uint8)
        solid = alpha[..., 0] > 0.5
        if solid.any():
            near = rng.uniform(0.3, 0.85) * np.quantile(depth[inside][solid], 0.1)
            depth[inside] = np.where(solid, near, depth[inside])
    return photo, depth


def of_photograph(rng: np.random.Generator, pool: ImagePool) -> Holes:
    """A photograph or a video frame, mostly behind cut-outs."""
    picture, depth = pool.random_crop(rng, HEIGHT, WIDTH), random_depth(rng)
    if rng.random() < BEHIND_CUTOUTS:
        picture, depth = behind_cutouts(picture, depth, pool, rng)
    visible = seen_from_elsewhere(depth, random_intrinsics(rng), rng)
    return Holes(picture, picture, visible, "")


def of_frame(rng: np.random.Generator, scenes: Sequence[Clip]) -> Holes:
    """A rendered frame with its own depth; its camera's motion is left out of its prompt."""
    clip = scenes[int(rng.integers(len(scenes)))]
    k = int(rng.integers(len(clip.frames)))
    visible = seen_from_elsewhere(clip.depth[k].astype(np.float32), random_intrinsics(rng), rng)
    prompt = clip.prompt.split(", ", 1)[1] if clip.prompt.startswith("CAMERA_") else clip.prompt
    return Holes(clip.frames[k], clip.frames[k], visible, prompt)


def of_views(rng: np.random.Generator, views: Sequence[Views]) -> Holes:
    """A view of a scene, and what a warp of another one shows of it."""
    scene = views[int(rng.integers(len(views)))]
    a, b = (int(k) for k in rng.choice(VIEWS, 2, replace=False))
    poses = scene.camera_to_world
    warp, visible = _warp(scene.images[a], scene.depth[a].astype(np.float32), scene.K, poses[a], poses[b])
    return Holes(scene.images[b], np.asarray(warp), np.asarray(visible), "")


def random_holes(
    number: int,
    pool: ImagePool,
    scenes: Sequence[Clip] | None = None,
    views: Sequence[Views] | None = None,
    rendered: tuple[float, float] = RENDERED,
) -> Holes:
    """Picture ``number``: the same for the same sources, whenever it is made."""
    rng = np.random.default_rng([13, number])
    while True:
        kind = rng.random()
        if kind < rendered[0] and views is not None:
            found = of_views(rng, views)
        elif kind < rendered[1] and scenes is not None:
            found = of_frame(rng, scenes)
        else:
            found = of_photograph(rng, pool)
        if HOLE[0] < 1 - found.visible.mean() < HOLE[1]:
            break
    picture, warp = found.picture, found.warp
    if rng.random() < RECOLOURED:
        both = recoloured(np.stack([picture, warp]), rng)
        picture, warp = both[0], both[1]
    if rng.random() < 0.5:
        picture, warp, visible = picture[:, ::-1], warp[:, ::-1], found.visible[:, ::-1]
    else:
        visible = found.visible
    warp = np.where(visible[..., None], warp, np.uint8(0))
    return Holes(np.ascontiguousarray(picture), warp, np.ascontiguousarray(visible), found.prompt)


def load_holes(folder: str) -> Stored[Holes]:
    """The pictures of a folder, read when they are asked for.

    Raises:
        InputError: there are none.
    """
    return records.read(folder, Holes, f"python -m training.holes --out {folder} --pictures COUNT")


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--pictures", type=commands.positive, required=True)
    parser.add_argument(
        "--first", type=commands.count, default=0, help=f"from {HELD_OUT_FROM} on, pictures are held out"
    )
    parser.add_argument("--cache", default=".cache/pool", help="the image pool's folder")
    parser.add_argument("--scenes", default=None, help="rendered clips (training.dataset), held out if these are")
    parser.add_argument("--views", default=None, help="rendered views (training.views), held out if these are")
    args = parser.parse_args()
    pools = load_pool(args.cache)
    pool = pools.heldout if args.first >= HELD_OUT_FROM else pools.train
    scenes = load_clips(args.scenes) if args.scenes else None
    views = load_views(args.views) if args.views else None
    end = args.first + args.pictures
    for first in range(args.first, end, PART):
        numbers = range(first, min(first + PART, end))
        if records.write(args.out, Holes, first, (random_holes(k, pool, scenes, views) for k in numbers)):
            print(f"pictures {first} to {numbers[-1]}", flush=True)


if __name__ == "__main__":
    commands.run(main)
