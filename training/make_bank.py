"""A bank of examples for a short training on an accelerator (`training.train_bank`), made by many processes at once.

``python -m training.make_bank --out DIR --seconds S --workers N [--kinds KIND ...] [--teacher COMMAND]``

Each process turns between the kinds asked for and writes them part by part as plain .npz, whole or absent, until its
time is up; another time it adds to what there is. Rendered ``views`` (`training.views`), pictures with ``holes``
(`training.holes`) made of them, and ``frames`` with their depth (`training.depth_frames`); every other scene is a
varied one. ``lifted`` views (`training.lifted_views`) are made of the labels that are there by then, and lie among the
views. Others cut photographs and video frames for a teacher to label: a module that ``--teacher`` names, with
``label(uint8 [N, H, W, 3]) -> inverse depth [N, H, W]``, up to scale and shift.
"""

import importlib
import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from reangle_jax import commands
from reangle_jax.errors import InputError
from reangle_jax.geometry.splat import infill
from training.bank import read_bank, stacked, write_part
from training.dataset import HELD_OUT_FROM
from training.depth_frames import STORED, Frames, render_scene
from training.holes import random_holes
from training.lifted_views import lifted_scene
from training.pool import load_pool
from training.views import Views, render_views

PART = 32  # scenes
KINDS = ("views", "holes", "frames", "lifted")
HOLES = 2  # pictures with holes for each scene
PAIRS = (0.35, 0.35)  # share of them that are pairs of views: none is a rendered frame
FRAMES_SEED = 13
LABELS = 512  # the newest, of which views are lifted
STRIDE = 10_000  # between the numbers of two workers' scenes


def later(folder: Path, number: int, kind: str = "*") -> int:
    """The first turn of a worker that no part of its is named after."""
    return max((1 + int(path.stem.split("_")[2]) for path in folder.glob(f"{kind}_{number}_*.npz")), default=0)


def worker(
    number: int,
    out: str,
    cache: str,
    ends: float,
    part: int = PART,
    kinds: Sequence[str] = ("views", "holes"),
    size: tuple[int, int] = STORED,
) -> None:
    """Renders and makes holes until the time ``ends``, beside what there is; ``size`` is the frames'."""
    cv2.setNumThreads(1)
    pool, turn = load_pool(cache).train, later(Path(out), number)
    while time.time() < ends:
        first = (number * STRIDE + turn * part) % (HELD_OUT_FROM // HOLES - part)
        name, numbers = f"{number}_{turn:05d}", range(first, first + part)
        if "frames" in kinds:
            frames = [render_scene(FRAMES_SEED, k, pool, varied=k % 2 == 0, size=size) for k in numbers]
            joined = {field: np.concatenate([getattr(f, field) for f in frames]) for field in Frames._fields}
            write_part(Path(out), f"frames_{name}", joined)
        views = [render_views(k, pool, varied=k % 2 == 0) for k in numbers if {"views", "holes"} & set(kinds)]
        if "views" in kinds:
            write_part(Path(out), f"views_{name}", stacked(views, Views._fields))
        if "lifted" in kinds and list(Path(out).glob("labels_*.npz")):
            labels = read_bank(out, "labels", LABELS)
            lifted = [lifted_scene(k, labels) for k in numbers]
            write_part(Path(out), f"views_{name}_lifted", stacked(lifted, Views._fields))
        if "holes" in kinds:
            holes = [random_holes(HOLES * first + k, pool, None, views, PAIRS) for k in range(HOLES * part)]
            arrays = stacked(holes, ("picture", "visible"))
            warps = np.stack([one.warp for one in holes])
            arrays["shown"] = infill(warps, arrays["visible"])
            write_part(Path(out), f"holes_{name}", arrays)
        if set(kinds) == {"lifted"}:
            time.sleep(0.1)  # there may be no labels yet
        turn += 1


def labeller(
    number: int, out: str, cache: str, ends: float, teacher: str, size: tuple[int, int] = STORED, part: int = 64
) -> None:
    """Has a teacher label crops until the time ``ends``."""
    cv2.setNumThreads(1)
    label: Callable[[np.ndarray], np.ndarray] = importlib.import_module(teacher).label
    pool, turn = load_pool(cache).train, later(Path(out), number, "labels")
    while time.time() < ends:
        rng = np.random.default_rng([17, number, turn])
        large = np.stack([pool.random_crop(rng, 2 * size[0], 2 * size[1]) for _ in range(part)])
        images, labels = (
            np.stack([cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA) for x in many])
            for many in (large, label(large).astype(np.float32))
        )
        arrays = {"images": images, "inverse_depth": labels.astype(np.float16)}
        write_part(Path(out), f"labels_{number}_{turn:05d}", arrays)
        turn += 1


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=commands.above_zero, required=True)
    parser.add_argument("--workers", type=commands.positive, default=os.cpu_count() or 1)
    parser.add_argument("--cache", default=".cache/pool", help="the image pool's folder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["views", "holes"])
    parser.add_argument("--teacher", default=None, help="a module that labels pictures, in further processes")
    parser.add_argument("--labellers", type=commands.positive, default=2, help="how many label, with --teacher")
    parser.add_argument("--part", type=commands.whole(1, STRIDE), default=PART, help="scenes a file")
    parser.add_argument(
        "--size", type=commands.positive, nargs=2, default=STORED, help="height and width of frames and labelled crops"
    )
    args = parser.parse_args()
    if "lifted" in args.kinds and not args.teacher and not list(Path(args.out).glob("labels_*.npz")):
        raise InputError(f"--kinds lifted: {args.out} has no labels to lift photographs by; give --teacher MODULE too")
    if args.teacher and importlib.util.find_spec(args.teacher) is None:
        raise InputError(f"--teacher: there is no module {args.teacher}: name one on PYTHONPATH")
    load_pool(args.cache)  # says what is missing, once
    Path(args.out).mkdir(parents=True, exist_ok=True)
    ends = time.time() + args.seconds
    spawn = multiprocessing.get_context("spawn")
    size = tuple(args.size)
    rest = args.out, args.cache, ends, args.part, args.kinds, size
    jobs = [spawn.Process(target=worker, args=(n, *rest)) for n in range(args.workers)]
    if args.teacher:
        labels = args.out, args.cache, ends, args.teacher, size
        jobs += [spawn.Process(target=labeller, args=(n, *labels)) for n in range(args.labellers)]
    try:
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    finally:  # a signal ends them too
        for job in jobs:
            if job.is_alive():
                job.terminate()
    for kind in ("views", "holes", "frames", "labels"):
        print(f"{kind}: {len(list(Path(args.out).glob(f'{kind}_*.npz')))} parts", flush=True)
    if any(job.exitcode for job in jobs):
        raise InputError(f"--out {args.out}: a worker failed, see above; what the others made is there")


if __name__ == "__main__":
    commands.run(main)
