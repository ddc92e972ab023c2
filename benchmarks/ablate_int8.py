"""What it costs to keep the frozen base in int8: the small family on the demo clip, with base_dtype the only change.

    python benchmarks/ablate_int8.py --workdir runs/int8 --steps 150

The same run three times in one folder, depth and warps done once: the base in float32, in bfloat16 and in int8, all
computed in float32, with equal draws. Prints the losses side by side, and how far the generated videos lie apart.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from reangle_jax import commands

VIEW, FOLDER = "left:10", "left_10"
KEPT = ("auto", "bfloat16", "int8")  # auto: the small family's weights are stored in float32


def run(workdir: Path, base: str, steps: int, sampling_steps: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """Losses, frames and scores of one run."""
    options = {
        "views": VIEW,
        "train_views": f"{VIEW},right:10",
        "finetune.steps": steps,
        "sample.steps": sampling_steps,
        "execution.dtype": "float32",
        "evaluate.untuned": "false",
        "base_dtype": base,
    }
    command = [sys.executable, "-m", "reangle_jax.main", "--config", "configs/demo.py", "--workdir", str(workdir)]
    subprocess.run([*command, *(f"--config.{key}={value}" for key, value in options.items())], check=True)
    losses = np.asarray(json.loads((workdir / "lora/losses.json").read_text()))
    frames = np.load(workdir / f"views/{FOLDER}/frames.npz")["frames"].astype(np.float64)
    return losses, frames, json.loads((workdir / "metrics.json").read_text())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of two videos of bytes, in dB."""
    return float(10 * np.log10(255**2 / np.mean((a - b) ** 2)))


def main() -> None:
    """Runs all three and prints the table."""
    parser = commands.parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=commands.positive, default=150)
    parser.add_argument("--sampling-steps", type=commands.positive, default=10)
    args = parser.parse_args()
    found = {base: run(args.workdir, base, args.steps, args.sampling_steps) for base in KEPT}
    plain, video, _ = found["auto"]
    last = max(1, args.steps // 3)
    for base, (losses, frames, scores) in found.items():
        of_view = scores["views"][VIEW]["tuned"]
        row = {
            "base": base,
            "loss, last third": round(float(losses[-last:].mean()), 5),
            "loss over float32's": round(float(losses[-last:].mean() / plain[-last:].mean()), 4),
            "largest difference of a step's loss": round(float(np.abs(losses / plain - 1).max()), 4),
            "psnr to the warp": round(of_view["psnr"], 3),
            "psnr to float32's video": "-" if base == "auto" else round(psnr(frames, video), 2),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    commands.run(main)
