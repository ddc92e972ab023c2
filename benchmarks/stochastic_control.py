"""What stochastic control is worth, and what cheaper searches keep of it: the small family, scenes of known truth.

    python -m benchmarks.stochastic_control --views HELD_OUT --out DIR [--arms naive,s25,...] [--scenes 24] [--cheap]

Rendered scenes that nothing was trained on (`training.views`): the first camera's picture is the input, two others' are
painted, from the input's warp by the true depth, the one first of which the input shows more; as the stage does it,
candidates shall agree with the input's picture too. An arm is a way of painting (`ARMS`). All arms begin with the same
noise and draw a candidate of a number alike, so that their differences are paired by scene.

Figures of a scene, of the painted views with what is known pasted back:

* ``met3r``: between the two painted views, and ``met3r_input``, mean of both with the input's picture. These are what
  control chooses by; the others are not.
* ``agree``: PSNR of one painted view, warped to the other by the true depths, over what the input shows to neither: the
  same made-up place seen twice.
* ``sed``, ``tsed``: of all three pictures' pairs, under the true cameras, enlarged to the published 256 pixels.
* ``psnr_holes``, ``psnr``: to the truth, in the holes and over the whole picture.
* ``seam``: the step across the holes' edges, above the truth's, levels of 255.
* ``detail``: mean Laplacian inside the holes over the truth's; noise that is added smooths, which alone raises PSNR.

A scene's arm is a file, DIR/ARM/SCENE.json, written whole, with the pictures beside it: a second call goes on.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.painted_scenes import (
    TARGETS,
    Scene,
    agreement_of_holes,
    detail,
    epipolar_figures,
    load_scenes,
    psnr,
    step,
)
from reangle_jax import commands, tiny
from reangle_jax.config import get_tiny
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.evaluation.bootstrap import interval
from reangle_jax.geometry.splat import infill
from reangle_jax.painters import registry
from reangle_jax.painters.flux.needs import planned
from reangle_jax.painters.interface import Painting, Reward
from reangle_jax.randomness import named_key
from reangle_jax.scoring.agreement import Agreement
from reangle_jax.stages.first_frames import painted_share

NAIVE = "naive"
WINDOW = (0.25, 1.0)  # as config.first_frames.guided
ARMS: dict[str, dict[str, Any]] = {
    NAIVE: {"candidates": 1},
    "s25": {"candidates": 25},  # in eight steps two choose
    "s10": {"candidates": 10},
    "s5": {"candidates": 5},
    "early": {"candidates": 25, "window": (0.25, 0.375)},  # the first of the two alone, as every fourth step would
    "late": {"candidates": 25, "window": (0.5, 1.0)},
    "falling": {"candidates": 25, "fewest": 5},
    "each3": {"candidates": 3, "every": 1},  # as many evaluations as s5's two of eight steps, over all four
    "each5": {"candidates": 5, "every": 1},
    "start3": {"candidates": 3, "every": 1, "window": (0.0, 0.5)},  # as each3, from the noise on
    "start2": {"candidates": 2, "every": 1, "window": (0.0, 0.5)},
    "start5": {"candidates": 5, "every": 1, "window": (0.0, 0.5)},
    "alone": {"candidates": 25},  # with the finished views alone, as in the paper: only the second view chooses
    "noise": {"candidates": 2},  # the first is kept: control's noise without its choice
    "reimposed": {"candidates": 1, "reimpose": True},
    "whole": {"candidates": 1, "strength": 1.0},  # from nothing but noise
    "whole25": {"candidates": 25, "strength": 1.0},
    "constant": {"candidates": 5, "noise": "constant", "eta": 0.3},
}
FIGURES = ("met3r", "met3r_input", "agree", "sed", "tsed", "psnr_holes", "psnr", "seam", "detail")
COSTS = ("evaluations", "processor_seconds")


class Bench:
    """The small painter and the score, each compiled once for all scenes and arms.

    Args:
        size: rows and columns of the pictures.
        steps: of painting.
        every: of those in the window, each k-th chooses, unless the arm says otherwise.
        seed: of everything random.
        cheap: choose by the cheap score (every second point, one way); what is measured is always the whole one.
    """

    def __init__(self, size: tuple[int, int], *, steps: int, every: int, seed: int, cheap: bool):
        entry = registry.ENTRIES["tiny"]
        self.painter = entry.load()("tiny", {part: tiny.WEIGHTS / part for part in entry.parts}, size)
        self.text = self.painter.embed([""])
        self.networks = self.painter.load()
        self.agreement = Agreement.load(tiny.WEIGHTS, *size)
        metric = self.agreement.metric
        self.chooser = dataclasses.replace(
            self.agreement, metric=dataclasses.replace(metric, stride=2, both=False) if cheap else metric
        )
        self.steps, self.every, self.seed = steps, every, seed

    def painting(self, arm: str) -> Painting:
        """How an arm paints; what is not said here is as the small family's settings have it."""
        settings = get_tiny().first_frames
        base = {name: settings[name] for name in Painting._fields if name != "window"}
        return Painting(**{**base, "steps": self.steps, "window": WINDOW, "every": self.every, **ARMS[arm]})

    @functools.cached_property
    def _similarity(self) -> Callable[[Any, Any], Any]:
        return lambda arguments, images: self.chooser.similarity(arguments[0], images, *arguments[1:])

    @functools.cached_property
    def _indifferent(self) -> Callable[[Any, Any], Any]:
        return lambda arguments, images: jnp.zeros((len(images), 1))

    @functools.cached_property
    def _describe(self) -> Callable[[Any, Any], Any]:
        return jax.jit(self.chooser.metric.describe)

    def _reward(self, arm: str, finished: Sequence[np.ndarray]) -> Reward | None:
        """Agreement with what is finished, with room for the input and the first view."""
        if arm == "noise":
            return Reward(self._indifferent, jnp.zeros(()))
        if not finished or self.painting(arm).candidates == 1:
            return None
        shown = np.zeros((TARGETS, *finished[0].shape), np.float32)
        shown[: len(finished)] = np.stack(finished) / np.float32(255)
        described = self._describe(self.chooser.states, jnp.asarray(shown))
        return Reward(self._similarity, (self.chooser.states, described, jnp.int32(len(finished))))

    def paint(self, scene: Scene, arm: str) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, float]]:
        """An arm's views with what is known pasted back, and as they are decoded, RGB; costs of a view."""
        how = self.painting(arm)
        grid = scene.truth.shape[1] * scene.truth.shape[2] // registry.ENTRIES["tiny"].multiple ** 2
        pasted: list[np.ndarray] = []
        decoded: list[np.ndarray] = []
        start = time.process_time()
        for number, (shown, visible) in enumerate(zip(scene.warps, scene.visible, strict=True)):
            finished = [*pasted] if arm == "alone" else [scene.truth[0], *pasted]
            made = self.painter.paint(
                self.networks,
                self.text,
                infill(shown[None], visible[None])[0],
                visible,
                how,
                key=named_key(self.seed, "stochastic_control", str(scene.number), str(number)),
                reward=self._reward(arm, finished),
                on_step=lambda record, chosen: None,
            )
            alpha = painted_share(visible)[..., None]
            decoded.append(np.round(255 * made).astype(np.uint8))
            pasted.append(np.round(alpha * 255.0 * made + (1 - alpha) * shown).astype(np.uint8))
        seconds = (time.process_time() - start) / TARGETS
        return pasted, decoded, {"evaluations": planned(how, grid).evaluations, "processor_seconds": seconds}

    def measure(self, scene: Scene, pasted: list[np.ndarray], decoded: list[np.ndarray]) -> dict[str, float | None]:
        """A scene's figures, see the top; ``decoded_psnr_holes``, ``decoded_psnr``, ``decoded_seam`` before pasting."""
        pictures = [scene.truth[0], *pasted]
        scores = {(pair.first, pair.second): pair.met3r for pair in self.agreement.pairs(pictures)}
        with_input = [score for (a, _), score in scores.items() if a == 0 and score is not None]
        found: dict[str, float | None] = {
            "met3r": scores[1, 2],
            "met3r_input": float(np.mean(with_input)) if with_input else None,
            "agree": agreement_of_holes(scene, pasted),
            "detail": detail(scene, pasted),
        }
        found |= epipolar_figures(scene, pictures)
        for prefix, images in (("", pasted), ("decoded_", decoded)):
            holes = ~scene.visible
            error = np.square((np.stack(images).astype(np.float32) - scene.truth[1:]) / 255)
            found[prefix + "psnr_holes"] = psnr(error[holes])
            found[prefix + "psnr"] = psnr(error)
            pairs = zip(images, scene.truth[1:], scene.visible, strict=True)
            found[prefix + "seam"] = float(np.mean([step(x, v) - step(true, v) for x, true, v in pairs]))
        return found


def differences(rows: dict[str, dict[int, dict[str, Any]]], against: str) -> dict[str, Any]:
    """Each arm's mean figures, and its differences from another over the scenes that both have."""
    report: dict[str, Any] = {}
    for arm, scenes in rows.items():
        entry: dict[str, Any] = {"scenes": len(scenes)}
        for name in (*FIGURES, *COSTS, "decoded_psnr_holes", "decoded_psnr", "decoded_seam"):
            own = {number: row[name] for number, row in scenes.items() if row.get(name) is not None}
            if not own:
                continue
            entry[name] = {"mean": round(float(np.mean(list(own.values()))), 4)}
            base = {number: row[name] for number, row in rows.get(against, {}).items() if row.get(name) is not None}
            both = sorted(own.keys() & base.keys())
            if arm != against and name in FIGURES and both:
                mean, low, high = interval([own[k] - base[k] for k in both])
                entry[name] |= {"difference": round(mean, 4), "interval": [round(low, 4), round(high, 4)]}
                entry[name]["pairs"] = len(both)
        report[arm] = entry
    return report


def table(report: dict[str, Any], against: str) -> str:
    """The report in Markdown: means, and in brackets the intervals of the differences."""
    names = [*FIGURES, *COSTS]
    lines = [f"| arm (against {against}) | scenes | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for arm, entry in report.items():
        cells = []
        for name in names:
            found = entry.get(name, {})
            words = f"{found['mean']:.3g}" if "mean" in found else "-"
            if "interval" in found:
                words += " [{:+.3g}, {:+.3g}]".format(*found["interval"])
            cells.append(words)
        lines.append(f"| {arm} | {entry['scenes']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("--views", required=True, help="held-out rendered views (training.views)")
    parser.add_argument("--out", required=True, help="folder of the figures; what is there is kept")
    parser.add_argument("--arms", default="naive,s5,s25", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--scenes", type=commands.positive, default=24)
    parser.add_argument(
        "--first", type=commands.count, default=0, help="of them, to begin with: commands may share out"
    )
    parser.add_argument("--steps", type=commands.positive, default=8)
    parser.add_argument("--every", type=commands.positive, default=2, help="choose in every k-th step of the window")
    parser.add_argument("--seed", type=commands.count, default=0)
    parser.add_argument("--cheap", action="store_true", help="choose by the cheap score")
    parser.add_argument("--against", default=NAIVE, help="the arm that differences are from")
    parser.add_argument("--report", action="store_true", help="only sum up what is there")
    args = parser.parse_args()
    arms = args.arms.split(",")
    unknown = [arm for arm in (*arms, args.against) if arm not in ARMS]
    if unknown:
        raise InputError(f"--arms: there is no {unknown[0]}: the arms are {', '.join(ARMS)}")
    if args.first >= args.scenes:
        raise InputError(f"--first={args.first} leaves none of --scenes={args.scenes}: it must be less")
    out = Path(args.out)
    how = {"steps": args.steps, "every": args.every, "seed": args.seed, "cheap": args.cheap}
    kept = out / "how.json"
    if kept.exists() and (other := json.loads(kept.read_text())) != how:
        raise InputError(f"--out: {out} holds figures of {other}, not {how}: give another folder")
    if not args.report:
        files.atomic_write_json(kept, how)
        fill(out, load_scenes(args.views, args.scenes)[args.first :], arms, how)
    report = differences(read_rows(out), args.against)
    files.atomic_write_json(out / f"report_{args.against}.json", report)
    print(table(report, args.against))


def fill(out: Path, scenes: list[Scene], arms: list[str], how: dict[str, Any]) -> None:
    """Paints and measures what is not there yet, scene by scene."""
    bench = Bench(scenes[0].truth.shape[1:3], **how)
    for scene in scenes:
        for arm in arms:
            path = out / arm / f"{scene.number:04d}.json"
            if path.exists():
                continue
            pasted, decoded, costs = bench.paint(scene, arm)
            figures = bench.measure(scene, pasted, decoded)
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = [*scene.truth, *scene.warps, *decoded, *pasted]
            cv2.imwrite(str(path.with_suffix(".png")), np.concatenate(shown, 1)[..., ::-1])
            files.atomic_write_json(path, figures | costs)
            words = (f"{name} {value:.4g}" for name, value in (figures | costs).items() if value is not None)
            print(f"{scene.number} {arm}: {', '.join(words)}", flush=True)


def read_rows(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The figures that are there, by arm and scene."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in ARMS:
        rows = {int(path.stem): json.loads(path.read_text()) for path in sorted((out / arm).glob("*.json"))}
        if rows:
            found[arm] = rows
    return found


if __name__ == "__main__":
    commands.run(main)
