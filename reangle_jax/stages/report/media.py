"""Videos and pictures inside of the page, or beside it where there is too much of them."""

import urllib.parse
from pathlib import Path

import cv2
import numpy as np

from reangle_jax.data import encoding, files
from reangle_jax.stages.report.markup import Markup, join, packed, tag
from reangle_jax.stages.report.reading import Run

MOST_BYTES = 13_000_000  # of all videos in the page, before base64 makes four bytes of three
_QUALITY = 88  # WebP's


def videos(run: Run, most: int = MOST_BYTES) -> tuple[Markup, dict[str, str]]:
    """The page's videos as elements that hold them, and those that are linked: address by name.

    Either all are held, or all that have files of their own are linked; the others (of the untuned model) are held then
    as long as there is room.
    """
    paths = {"input": "input/video.mp4"}
    for view in run.views:
        paths |= {f"{view.name}-output": view.file("video.mp4")}
        paths |= {f"{view.name}-warp": view.file("warp.mp4")}
    untuned = {view.name: run.folder / view.file("untuned.npz") for view in run.views if "untuned" in run.variants}
    own = {
        f"{name}-untuned": encoding.encode_mp4(files.load_npz(path)["frames"], run.clip.fps)
        for name, path in untuned.items()
    }
    linked = {}
    sizes = sum((run.folder / path).stat().st_size for path in paths.values()) + sum(map(len, own.values()))
    if sizes > most:
        linked = {name: urllib.parse.quote(path) for name, path in paths.items()}
        own = own if sum(map(len, own.values())) <= most else {}
    else:
        own |= {name: (run.folder / path).read_bytes() for name, path in paths.items()}
    held = [
        tag("script", Markup(packed(content)), type="text/plain", id=f"video-{name}") for name, content in own.items()
    ]
    return join(held), linked


def picture(path: Path) -> str:
    """A picture's file as an address that holds it; its holes stay holes."""
    layers = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert layers is not None, path
    return webp(layers)


def webp(layers: np.ndarray) -> str:
    """Layers in OpenCV's order as an address that holds them."""
    good, content = cv2.imencode(".webp", layers, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    assert good
    return f"data:image/webp;base64,{packed(content.tobytes())}"
