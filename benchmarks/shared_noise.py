"""Whether a static run's videos agree better when they begin with one noise: `sample.shared_noise`.

    python -m benchmarks.shared_noise RUN --config configs/demo_static.py --out DIR [--seeds 4]

A finished run of the small family: its views' videos are sampled anew from other seeds with each kind of noise; all
else is the run's, first frames and adapters too. Figures: MEt3R between the views and with the input, of a few moments;
PSNR to the warps over visible pixels; and each seed's difference from each view having its own noise. One clip says
nothing of others. DIR/KIND_SEED.json is written whole: a second call goes on.
"""

import argparse
import dataclasses
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from reangle_jax import chosen_models, commands, config
from reangle_jax.config import Settings
from reangle_jax.data import files, pictures
from reangle_jax.randomness import named_key
from reangle_jax.run import view_file, view_paths
from reangle_jax.scoring import image
from reangle_jax.scoring.agreement import Agreement
from reangle_jax.scoring.video import mean_score
from reangle_jax.stages import generate

KINDS = ("off", "same", "warped")
MOMENTS = 3


class Clip:
    """What all videos of a run share, loaded once."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings, self.folder = settings, folder
        self.backbone = chosen_models.backbone(settings)
        self.sampler = generate._sampler(settings.sample, self.backbone)
        self.text = self.backbone.embed(["", *(view_paths.prompt(settings, folder, view) for view in settings.views)])
        self.coder = self.backbone.load_coder()
        self.conditions = [
            self.sampler.condition(
                self.coder,
                pictures.read(folder / view_file(view, "first_frame.png"))[None],
                key=named_key(settings.seed, "generate", view),
            )
            for view in settings.views
        ]
        tuned, self.adapters = self.backbone.load_adapters(folder / "lora", [])
        self.sampler = generate._sampler(settings.sample, tuned)
        self.base = tuned.load_denoiser()
        self.score = Agreement.load(chosen_models.painter_folder(settings), settings.height, settings.width)

    def videos(self, settings: Settings) -> list[np.ndarray]:
        """The views' videos, uint8 [T, H, W, 3] each."""
        found = []
        for view, condition, prompt in zip(settings.views, self.conditions, self.text[1:], strict=True):
            latents = self.sampler.denoise(
                self.adapters,
                self.base,
                generate._noise(settings, self.folder, self.backbone, self.sampler, view),
                jnp.asarray(condition),
                prompt[None],
                self.text[:1],
                key=jax.random.fold_in(named_key(settings.seed, "generate", view), 1),
                on_step=lambda: None,
            )
            found.append(np.asarray(self.sampler.decode(self.coder, jnp.asarray(latents, jnp.float32)))[0])
        return found

    def measure(self, videos: list[np.ndarray]) -> dict[str, float | None]:
        """The figures of the views' videos."""
        source = files.load_npz(self.folder / "input/frames.npz")["frames"]
        at = np.linspace(0, len(source) - 1, MOMENTS).round().astype(int)
        pairs = [pair for k in at for pair in self.score.pairs([source[k], *(video[k] for video in videos)])]
        warps = [files.load_npz(self.folder / view_file(view, "warp.npz")) for view in self.settings.views]
        near = [image.psnr(v, w["frames"], w["visible"]) for v, w in zip(videos, warps, strict=True)]
        return {
            "between_views": mean_score(pair for pair in pairs if pair.first),
            "with_input": mean_score(pair for pair in pairs if not pair.first),
            "psnr_visible": float(np.mean(near)),
        }


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("run", help="the finished run's folder")
    parser.add_argument("--config", required=True, help="its config file")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=commands.positive, default=4)
    args = parser.parse_args()
    fill(args)
    places = {path: path.stem.split("_") for path in Path(args.out).glob("*.json")}
    rows = {(kind, seed): json.loads(path.read_text()) for path, (kind, seed) in places.items()}
    for name in ("between_views", "with_input", "psnr_visible"):
        for kind in KINDS:
            seeds = sorted(seed for k, seed in rows if k == kind and all((other, seed) in rows for other in KINDS))
            values = np.array([rows[kind, seed][name] for seed in seeds])
            apart = values - np.array([rows["off", seed][name] for seed in seeds])
            each = ", ".join(f"{x:+.4f}" for x in apart)
            print(f"{name} {kind}: {values.mean():.4f} over {len(seeds)} seeds; from off {apart.mean():+.4f} ({each})")


def fill(args: argparse.Namespace) -> None:
    """Samples and measures what is not there yet."""
    settings, clip = config.parse(runpy.run_path(args.config)["get_config"]()), None
    for seed in range(args.seeds):
        for kind in KINDS:
            path = Path(args.out) / f"{kind}_{seed}.json"
            if path.exists():
                continue
            clip = clip or Clip(settings, Path(args.run))
            sample = dataclasses.replace(settings.sample, shared_noise=kind)
            figures = clip.measure(clip.videos(dataclasses.replace(settings, seed=1000 + seed, sample=sample)))
            path.parent.mkdir(parents=True, exist_ok=True)
            files.atomic_write_json(path, figures)
            print(path.stem, figures, flush=True)


if __name__ == "__main__":
    commands.run(main)
