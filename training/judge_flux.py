"""How well does the small FLUX paint the holes of warps, beside OpenCV's inpainting (Telea, 2004)?

``python -m training.judge_flux --pictures HELD_OUT [--weights DIR] [--count N] [--samples S] [--steps K] [--out FILE]``

Pictures of `training.holes` that nothing was trained on, whose truth is known; judged where holes are wider than 8
pixels. Each is painted S times from other noise. Figures: the distance (1 less the cosine) of the small DINO's features
from the truth's, a painting at a time, and the PSNR of the paintings' mean; photographs and rendered views apart.
Every figure three times, or in those of these ways that ``--ways`` names: of all that is decoded, with what is known
pasted back, and pasted back after it was also put back into the latents at every step.
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
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, UInt8

from reangle_jax import checkpoints, commands
from reangle_jax.arrays import to_unit
from reangle_jax.data.files import atomic_write_json
from reangle_jax.diffusion import flow
from reangle_jax.errors import about
from reangle_jax.geometry.splat import infill
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.tokens import unpack
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.nn.colours import IMAGENET_MEAN, IMAGENET_STD
from reangle_jax.painters.flux.conditions import control_condition, known_cells, picture_latents
from reangle_jax.prompts import embed_prompts
from reangle_jax.tiny import WEIGHTS
from training.holes import Holes, load_holes
from training.train_flux import STRENGTH, TEXT_LENGTH, build, predict

WIDE = 8  # pixels
GUIDANCE, CONTROL_SCALE = 3.5, 0.9
WAYS = ("decoded", "pasted", "reimposed")


def wide_holes(visible: Bool[np.ndarray, "H W"], width: int = WIDE) -> Bool[np.ndarray, "H W"]:
    """The parts of holes that a square wider than ``width`` fits into."""
    hole = np.pad((~visible).astype(np.uint8), width + 1)
    opened = cv2.morphologyEx(hole, cv2.MORPH_OPEN, np.ones((width + 1, width + 1), np.uint8))
    return opened[width + 1 : -width - 1, width + 1 : -width - 1].astype(bool) & ~visible


def telea(holes: Holes) -> UInt8[np.ndarray, "H W 3"]:
    """What OpenCV's inpainting makes of what is known."""
    return infill(holes.warp[None], holes.visible[None])[0]


class Judge:
    """The small FLUX, and the features that its paintings are judged by.

    Args:
        weights: a folder with flux_transformer/, flux_controlnet/ and flux_autoencoder/.
        family: a folder with text_encoder/ and featup/.
        samples: paintings of a picture.
        steps: of a painting.
        ways: those of `WAYS` to judge.
    """

    def __init__(self, weights: Path, family: Path, *, samples: int, steps: int, ways: Sequence[str] = WAYS):
        names = ("flux_transformer", "flux_controlnet")
        with about("--weights"):
            config = checkpoints.load_config(weights / names[0], FluxConfig)
            networks = build(config, checkpoints.load_config(weights / names[1], ControlNetConfig), 0)
            for name, network in zip(names, networks, strict=True):
                checkpoints.load_into(network, weights / name)
            coder = checkpoints.load(weights / "flux_autoencoder", AutoencoderConfig, Autoencoder)
        split = [nnx.split(network) for network in networks]
        self.graphdefs = split[0][0], split[1][0]
        self.parameters = {"transformer": split[0][1], "controlnet": split[1][1]}
        self.ratio = coder.config.spatial_compression_ratio
        self.coder, self.codes = nnx.split(coder)
        describer = checkpoints.load(family / "featup", FeatUpConfig, FeatUp)
        self.describer, self.features = nnx.split(describer)
        self.text, self.samples, self.steps, self.ways = family / "text_encoder", samples, steps, ways

    @functools.partial(jax.jit, static_argnums=(0, 6))
    def _paint(
        self, states: Any, warp: Array, visible: Array, text: Array, key: Array, reimpose: bool
    ) -> Float[Array, "S H W 3"]:
        parameters, codes = states
        coder = nnx.merge(self.coder, codes)
        unit, visible = to_unit(warp)[None], visible[None]
        condition = control_condition(coder, unit, visible, key=None, filled=True)
        known = known_cells(visible, self.ratio)[..., None]
        shown = picture_latents(coder, unit)
        grid = shown.shape[1] // 2, shown.shape[2] // 2
        times = flow.times(self.steps, grid[0] * grid[1], strength=STRENGTH)
        table = flow.Coefficients.of(times, np.zeros(self.steps))
        guidance = jnp.full((1,), GUIDANCE)

        def one(noise: Array) -> Array:
            def step(x: Array, c: Any) -> tuple[Array, None]:
                v = predict(self.graphdefs, parameters, x, condition, text, c.time[None], guidance, CONTROL_SCALE)
                x = flow.advance(x, unpack(v, grid), c)
                there = flow.noised(shown, noise, c.after)
                return (jnp.where(known, there, x) if reimpose else x), None

            begin = flow.noised(shown, noise, STRENGTH)
            end, _ = jax.lax.scan(step, begin, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), table))
            return coder.decode(coder.unscale_latents(end))[0]

        noise = jax.random.normal(key, (self.samples, *shown.shape))
        return jnp.clip(0.5 * jax.lax.map(one, noise) + 0.5, 0.0, 1.0)

    @functools.partial(jax.jit, static_argnums=0)
    def _describe(self, features: Any, image: Float[Array, "H W 3"]) -> Float[Array, "H W C"]:
        network = nnx.merge(self.describer, features)
        normal = (image - jnp.asarray(IMAGENET_MEAN, jnp.float32)) / jnp.asarray(IMAGENET_STD, jnp.float32)
        found = network(normal[None], image[None])[0]
        return found / (jnp.linalg.norm(found, axis=-1, keepdims=True) + 1e-8)

    def paintings(self, holes: Holes, key: Array) -> dict[str, Float32[np.ndarray, "S H W 3"]]:
        """The paintings of a picture in each of the ways, values 0 to 1."""
        text = jnp.asarray(embed_prompts(self.text, [holes.prompt], TEXT_LENGTH))
        states, filled = (self.parameters, self.codes), telea(holes)
        known, seen = holes.warp / np.float32(255), holes.visible[..., None]
        decoded = {
            reimpose: np.asarray(self._paint(states, filled, holes.visible, text, key, reimpose))
            for reimpose in sorted({way == "reimposed" for way in self.ways})
        }
        pasted = {reimpose: np.where(seen, known, images) for reimpose, images in decoded.items()}
        return {way: decoded[False] if way == "decoded" else pasted[way == "reimposed"] for way in self.ways}

    def measure(self, holes: Holes, key: Array) -> tuple[dict[str, Any], list[UInt8[np.ndarray, "H W 3"]]]:
        """Figures of a picture in its wide holes, and what to look at: warp, Telea, three paintings, mean, truth."""
        wide, truth = wide_holes(holes.visible), holes.picture / np.float32(255)
        filled = telea(holes) / np.float32(255)
        there = np.asarray(self._describe(self.features, truth))

        def distance(image: np.ndarray) -> float:
            return float(1 - (np.asarray(self._describe(self.features, image)) * there).sum(-1)[wide].mean())

        def error(image: np.ndarray) -> float:
            return float(np.square(image - truth)[wide].mean())

        found = self.paintings(holes, key)
        row: dict[str, Any] = {"telea": {"distance": distance(filled), "error": error(filled)}}
        for way, images in found.items():
            row[way] = {"distance": float(np.mean([distance(x) for x in images])), "error": error(images.mean(0))}
            row[way]["one_error"] = float(np.mean([error(x) for x in images]))
        seen = holes.visible
        if "decoded" in found:
            row["decoded"]["known_error"] = float(np.square(found["decoded"][0] - truth)[seen].mean())
        images = found.get("pasted", next(iter(found.values())))
        shown = [holes.warp / np.float32(255), filled, *images[:3], images.mean(0), truth]
        return row, [np.round(255 * x).astype(np.uint8) for x in shown]


def psnr(errors: Sequence[float]) -> float:
    """Mean over pictures of the PSNR in dB."""
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-6))))


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over pictures; the change of distance against Telea's is of the means."""
    report: dict[str, Any] = {"pictures": len(rows)}
    base = np.mean([row["telea"]["distance"] for row in rows])
    for way in rows[0]:
        report[way] = {
            "distance": round(float(np.mean([row[way]["distance"] for row in rows])), 4),
            "psnr": round(psnr([row[way]["error"] for row in rows]), 2),
        }
        if way != "telea":
            report[way]["distance_change"] = round(float(report[way]["distance"] / base - 1), 4)
            report[way]["psnr_of_one"] = round(psnr([row[way]["one_error"] for row in rows]), 2)
    if "decoded" in report:
        report["decoded"]["psnr_of_known"] = round(psnr([row["decoded"]["known_error"] for row in rows]), 2)
    return report


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("--pictures", required=True, help="held-out pictures with holes (training.holes)")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--count", type=commands.positive, default=32, help="pictures of each kind, at most")
    parser.add_argument("--samples", type=commands.positive, default=8)
    parser.add_argument("--steps", type=commands.positive, default=20)
    parser.add_argument(
        "--least", type=commands.positive, default=100, help="pixels in wide holes that a picture must have"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--sheet", default=None, help="write a picture to look at here")
    parser.add_argument("--out", default=None, help="write the figures here too, as JSON")
    args = parser.parse_args()
    judge = Judge(Path(args.weights), WEIGHTS, samples=args.samples, steps=args.steps, ways=args.ways)
    kinds: dict[str, list[dict[str, Any]]] = {"photographs": [], "rendered": []}
    sheet: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for number, holes in enumerate(load_holes(args.pictures)):
        # What a warp shows of a photograph is the truth itself.
        same = np.array_equal(holes.picture[holes.visible], holes.warp[holes.visible])
        kind = "photographs" if same else "rendered"
        if len(kinds[kind]) == args.count or wide_holes(holes.visible).sum() < args.least:
            continue
        row, shown = judge.measure(holes, jax.random.key(number))
        kinds[kind].append(row)
        sheet[kind].append(np.concatenate(shown, 1))
        print(kind, number, {way: round(row[way]["distance"], 3) for way in row}, flush=True)
    report = {kind: summarise(rows) for kind, rows in kinds.items() if rows}
    print(json.dumps(report, indent=2))
    if args.sheet:
        rows = [row for kind in kinds for row in sheet[kind][:12]]
        cv2.imwrite(args.sheet, np.concatenate(rows)[..., ::-1])
    if args.out:
        atomic_write_json(args.out, report)


if __name__ == "__main__":
    commands.run(main)
