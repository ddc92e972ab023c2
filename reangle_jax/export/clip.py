"""What is exported of a run: its views' frames and cameras, what the input saw of them, and the scene's points."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from reangle_jax.cameras.views import folder_name
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.geometry import splat
from reangle_jax.geometry.cameras import Cameras, load_cameras, source_to_target

INPUT = "input"
_STILL = 1e-6
_splat = jax.jit(splat.splat)
_MEND = "let the run end first (the same command goes on)"


@dataclasses.dataclass(frozen=True)
class Track:
    """One camera's video, by the name of its folder: frames, intrinsics in pixels, poses (camera to world).

    ``seen`` says where the input saw what it shows.
    """

    name: str
    frames: UInt8[np.ndarray, "T H W 3"]
    K: Float[np.ndarray, "T 3 3"]
    poses: Float[np.ndarray, "T 4 4"]
    seen: Bool[np.ndarray, "T H W"]

    @property
    def moves(self) -> bool:
        """Whether its camera does."""
        return bool(np.abs(self.poses - self.poses[:1]).max() > _STILL or np.abs(self.K - self.K[:1]).max() > _STILL)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A run's views."""

    run: Path  # its folder
    caption: str  # what it shows
    fps: float  # frames per second
    source: Track  # the input, and `z`, its depth
    z: Float[np.ndarray, "T H W"]
    tracks: tuple[Track, ...]  # what is exported; with the input first, if it is wanted
    record: dict[str, Any]  # what run.json holds

    @property
    def size(self) -> tuple[int, int, int]:
        """T, H, W."""
        return self.z.shape  # pyright: ignore[reportReturnType]

    @property
    def bounds(self) -> tuple[float, float]:
        """Nearest and farthest depth that matter, scene units: a little beyond 98 % of the points."""
        low, high = np.quantile(self.z, [0.01, 0.99])
        return float(0.9 * low), float(1.1 * high)

    def depth(self, track: Track) -> Float[np.ndarray, "T H W"]:
        """Depth z in a track's cameras, as far as the input's points tell; 0 where nothing is known."""
        if track is self.source:
            return self.z
        source, target = _cameras(self.source), _cameras(track)
        blank, motion = jnp.zeros((*self.z.shape[1:], 1), jnp.float32), source_to_target(source, target)
        cameras = zip(jnp.asarray(self.z), source.K, target.K, motion, strict=True)
        depth = np.asarray(jnp.stack([_splat(blank, *of_frame).depth for of_frame in cameras]))
        return np.where(np.isfinite(depth) & track.seen, depth, np.float32(0))


def _cameras(track: Track) -> Cameras:
    return Cameras(jnp.asarray(track.K, jnp.float32), jnp.asarray(track.poses, jnp.float32))


def read(run: Path, views: Sequence[str] = (), *, with_input: bool = False) -> Clip:
    """Reads a run whose views are generated: those spelt or named by folder, or all; the input may be the first track.

    Raises:
        InputError: it is no run, a view is none of its, or is not generated yet.
    """
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        settings = record["settings"]
        own = {folder_name(view): view for view in settings["views"]}
        caption = settings["caption"]
        if not own or not isinstance(caption, str):
            raise ValueError("it names no views, or no caption")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        words = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{run}: is no run's folder (run.json: {words}); give the --workdir of a run") from None
    names = [_named(run, own, view) for view in views] or [*own]
    if with_input and INPUT in names:
        raise InputError(
            f"--with-input: {own[INPUT]} is called {INPUT} too: leave it out by --views, or rename its file and run it"
        )
    if len(set(names)) < len(names):
        raise InputError(f"--views {','.join(views)}: names a view twice; name each once")
    if "stages" in record:
        for name in names:
            for file in ("frames.npz", "cameras.json"):
                check_done(run, record, f"views/{name}/{file}")
    try:
        clip, z = files.load_npz(run / "input/frames.npz"), files.load_npz(run / "input/depth.npz")["depth"]
        fps = float(clip["fps"])
        if not (np.isfinite(z).all() and (z > 0).all() and 0 < fps < np.inf):
            raise ValueError("its depth or its frames per second are not finite and above 0")
        source = _track(run / INPUT, z, clip["frames"], np.ones(z.shape, bool))
        tracks = [_track(run / "views" / name, z, *_video(run / "views" / name)) for name in names]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing: {_MEND}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run}: its files are damaged ({' '.join(str(error).split())}): run it again") from None
    return Clip(run, caption, fps, source, z, tuple([source] * with_input + tracks), record)


def check_done(run: Path, record: dict[str, Any], output: str) -> None:
    """Refuses an output of a run that was begun again with other settings and has not come to it yet.

    It would be read beside cameras, warps and a caption that it was not made from. run.json tells: what an output's
    unit depended on, and so back to the input, must be what the settings and the other units' outputs are now.

    Raises:
        InputError: it is not finished.
    """
    settings, waiting, known = record["settings"], [output], set()
    while waiting:
        path = waiting.pop()
        maker = next((entry for entry in record["stages"].values() if _makes(entry, path)), None)
        if maker is None:
            why = "" if path == output else f", for {path} is to be made anew"
            raise InputError(f"{run}: {output} is not finished{why}: {_MEND}")
        for key, was in maker["depends"].items():
            if key.removeprefix("config.") in settings and settings[key.removeprefix("config.")] != was:
                raise InputError(f"{run}: {output} is not finished, for {key} was {was} when it was made: {_MEND}")
            if not key.startswith(("input/", "views/", "lora/")):
                continue
            now = next((e["outputs"][key] for e in record["stages"].values() if key in e["outputs"]), was)
            if now != was:
                raise InputError(f"{run}: {output} is not finished, for {key} was made anew: {_MEND}")
            if key not in known:
                known.add(key)
                waiting.append(key)


def _makes(entry: dict[str, Any], path: str) -> bool:
    return any(path == output or path.startswith(f"{output}/") for output in entry["outputs"])


def _named(run: Path, own: dict[str, str], view: str) -> str:
    name = next((name for name, spelling in own.items() if view in (name, spelling)), None)
    if name is None:
        raise InputError(f"--views {view}: {run} has no such view; it has {', '.join(own.values())}")
    return name


def _video(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return files.load_npz(folder / "frames.npz")["frames"], files.load_npz(folder / "warp.npz")["visible"]


def _track(folder: Path, z: np.ndarray, frames: np.ndarray, seen: np.ndarray) -> Track:
    path = folder / "cameras.json"
    if frames.dtype != np.uint8 or frames.shape != (*z.shape, 3) or seen.shape != z.shape or z.ndim != 3:
        raise ValueError(f"its depth and {folder.name} are not of one clip")
    if not path.is_file():
        raise FileNotFoundError(2, "", str(path))
    cameras = load_cameras(path, expect_frames=len(frames))[0]
    K, poses = (np.asarray(x, np.float64) for x in (cameras.K, cameras.camera_to_world))
    return Track(folder.name, frames, K, poses, seen)
