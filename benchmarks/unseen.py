"""What the small family does with clips that nobody trained on, read off finished runs.

Two figures a view. How much nearer to the view's warp than the unmoved input its video is, in dB over visible pixels:
what the run is for. And whether the untuned model, which knows no more of the clip than its first frame, moves the
camera as the prompt says: the correlation of the optical flow (OpenCV's DIS) from the video's first to its last frame
with the flow that depth and cameras give, over pixels that the warp sees throughout.

    python -m reangle_jax.main --config configs/tiny_dynamic.py --config.video CLIP --config.evaluate.untuned=True \
        --workdir RUN
    python -m benchmarks.unseen RUN [RUN ...]
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from reangle_jax import commands
from reangle_jax.geometry import splat
from reangle_jax.geometry.cameras import load_cameras, source_to_target
from reangle_jax.scoring import image


class Row(NamedTuple):
    """A view's figures.

    Attributes:
        gain: dB by which the tuned video is nearer to the warp than the unmoved input is.
        untuned: the same of the untuned video.
        follows: correlation of the untuned video's flow with the camera's.
    """

    gain: float
    untuned: float
    follows: float


def flow(first: UInt8[np.ndarray, "H W 3"], last: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """Optical flow in pixels."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, last)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)


def camera_flow(run: Path, view: Path) -> tuple[Float[np.ndarray, "H W 2"], Bool[np.ndarray, "H W"]]:
    """Where the first frame's pixels go by the last frame, in a scene that stands still; and which stay in sight."""
    depth = np.load(run / "input" / "depth.npz")["depth"][0]
    source, target = (load_cameras(folder / "cameras.json")[0] for folder in (run / "input", view))
    u, v, z = (
        np.asarray(part)
        for part in splat.project(depth, source.K[0], target.K[-1], source_to_target(source, target)[-1])
    )
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width]
    inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return np.stack([u - columns, v - rows], axis=-1), inside


def measure(run: Path, view: Path) -> Row:
    """The figures of one view of a finished run."""
    unmoved = np.load(run / "input" / "frames.npz")["frames"]
    with np.load(view / "warp.npz") as stored:
        warp, visible = stored["frames"], stored["visible"]
    tuned, untuned = (np.load(view / name)["frames"] for name in ("frames.npz", "untuned.npz"))
    near = [image.psnr(video[visible][None], warp[visible][None]) for video in (unmoved, tuned, untuned)]
    expected, inside = camera_flow(run, view)
    seen = flow(untuned[0], untuned[-1])[inside]
    return Row(near[1] - near[0], near[2] - near[0], float(np.corrcoef(seen.ravel(), expected[inside].ravel())[0, 1]))


def main() -> None:
    """Prints a line a view, and the means of each run."""
    parser = commands.parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run with evaluate.untuned=True")
    for run in parser.parse_args().runs:
        rows = {view.name: measure(run, view) for view in sorted((run / "views").iterdir())}
        rows["mean"] = Row(*np.mean([*rows.values()], axis=0).tolist())
        for name, row in rows.items():
            print(
                f"{run.name} {name}: {row.gain:+.2f} dB nearer to the warp than the unmoved input, untuned "
                f"{row.untuned:+.2f} dB; the prompt's camera is followed with a correlation of {row.follows:.2f}"
            )


if __name__ == "__main__":
    commands.run(main, stopped="it begins anew")
