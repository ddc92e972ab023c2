"""Memory, communication and static times of the full-size programs, compiled for TPUs or GPUs that need not be there.

    pip install "libtpu==0.0.42.*"      # for TPUs, beside jax 0.10.2
    pip install "jax[cuda12]==0.10.2"   # for GPUs: 5.5 GB, no driver needed
    python benchmarks/full_size.py --target v5e:2x4 --program finetune
    python benchmarks/full_size.py --target v6e:1x1 --program sample --base int8 --json
    python benchmarks/full_size.py --target v6e:2x4 --program candidates
    python benchmarks/full_size.py --target h100:1 --program finetune --remat matmuls

The real fine-tuning step (LoRA of rank 128 on all 42 blocks, the noised first frame encoded, AdamW), the real guided
sampling step and decoding of CogVideoX-5B-I2V at 49 frames of 480x720, a round of candidates of FLUX.1-dev with its
inpainting ControlNet at 480x720, or the score of 25 candidates, is traced with shapes in place of arrays and compiled.
What does not fit fails with its figure: the TPU compiler enforces the chip's memory; for GPUs (``h100:1`` to
``h100:8``, ``rtx4090:1``) it does not, and this command does, at the 0.95 of a GPU's memory that a run takes with
``XLA_PYTHON_CLIENT_MEM_FRACTION=0.95``. Nothing is executed, no weights are needed. Compiling takes minutes on one
core; ``--short`` (two blocks, 2,026 tokens) less.

The exit code is 1 where the program does not fit, passes ``--limit``, attends by no fused kernel (Pallas' splash,
cuDNN's), or gathers what no layout of ours should: an activation of all tokens, or a stack of weights at once. With
``--json`` the last line holds ``peak_gib``, ``arguments_gib``, ``temporaries_gib``, ``step_s`` (of it ``operations_s``
and ``attention_s``), ``collectives`` and more; what the times are is said in benchmarks/compiled.py. For GPUs they are
null, as XLA estimates none, and what cuDNN and NCCL ask for on the device is not in the peak.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, too

from jax.sharding import Mesh

from benchmarks import compiled as of_compiler
from benchmarks import targets
from benchmarks.full_size_programs import ATTENDING, PROGRAMS, Case
from reangle_jax import commands, stopping
from reangle_jax import mesh as meshes
from reangle_jax.errors import called
from reangle_jax.nn.attention import compiling_for
from reangle_jax.nn.choices import REMATS


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = commands.parser(__doc__)
    parser.add_argument("--target", default="v6e:1x1", help=f"devices: {', '.join(targets.MESHES)}, ...")
    parser.add_argument("--slices", type=commands.positive, default=1, help="of TPUs, how many of them")
    parser.add_argument("--mesh", help="as config.mesh; by default the target's (candidates: data over all)")
    parser.add_argument("--program", choices=PROGRAMS, default="finetune")
    parser.add_argument("--base", choices=("auto", "int8"), default="auto", help="as config.base_dtype")
    parser.add_argument("--layout", choices=("divided", "replicated"), default="divided", help="as config.base_layout")
    parser.add_argument("--remat", choices=REMATS, default="attention", help="as config.execution.remat")
    parser.add_argument(
        "--videos", type=commands.positive, help="of a batch; by default one for each group of devices, data"
    )
    parser.add_argument("--rank", type=commands.positive, default=128)
    parser.add_argument("--short", action="store_true", help="two blocks and 2,026 tokens")
    parser.add_argument("--tiles", action="store_true", help="as config.vae_tiles=on")
    parser.add_argument("--limit", type=commands.above_zero, help="GiB that the peak may have")
    parser.add_argument("--json", action="store_true", help="the figures as the last line")
    return parser


def faults_of(
    args: argparse.Namespace, case: Case, mesh: Mesh, target: targets.Target, report: of_compiler.Report, text: str
) -> list[str]:
    """What is wrong with a compiled program, its text at hand; in words."""
    config, ways = case.transformer, mesh.shape["r"] * mesh.shape["u"]
    sizes = {"layers": config.num_layers, "width": config.inner_dim}
    whole_keys = mesh.shape["u"] == 1 and mesh.shape["r"] > 1
    faults = of_compiler.unexpected(report, **sizes, tokens=case.tokens, whole_keys=whole_keys)
    if args.base == "int8" and args.program in ("finetune", "sample"):
        faults += of_compiler.float_stacks(text, **sizes, ways=ways)
    if args.program in ATTENDING and not report.attention_calls:
        faults.append("attention is no fused kernel: its logits lie in memory")
    peak = f"the peak is {report.peak / of_compiler.GIB:.2f} GiB"
    if target.memory and report.peak > target.memory:
        kind = target.devices[0].device_kind
        faults.append(f"does not fit: {peak}, and a program gets {target.memory / of_compiler.GIB:.2f} of one {kind}")
    if args.limit and report.peak > args.limit * of_compiler.GIB:
        faults.append(f"{peak}, above --limit={args.limit}")
    return faults


def compile_program(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """The figures of one program, and what is wrong with it, in words."""
    target = targets.find(args.target, args.slices)
    devices = target.devices
    text = args.mesh or targets.MESHES.get(args.target, f"u:{len(devices)}")
    if not args.mesh and args.slices > 1:
        text = f"data:{args.slices},{text}"
    if not args.mesh and args.program == "candidates":
        text = f"data:{len(devices)}"
    with called(mesh="--mesh"):
        mesh = meshes.make_mesh(text, devices=devices)
    case = Case(args.base, args.remat, args.rank, args.videos or mesh.shape[meshes.DATA], args.short, args.tiles)
    start = time.perf_counter()
    with meshes.use(mesh, base=args.layout), compiling_for(target.platform):
        lowered = PROGRAMS[args.program](case, mesh).trace().lower()
        traced = time.perf_counter() - start
        with stopping.at_once():
            compiled = lowered.compile()
    report = of_compiler.read(compiled, devices[0].device_kind)
    faults = faults_of(args, case, mesh, target, report, compiled.as_text())
    names = ("target", "slices", "program", "base", "layout", "remat", "short", "tiles")
    figures = {name: getattr(args, name) for name in names} | {"mesh": text, "videos": case.videos}
    figures |= report.as_json() | {
        "trace_s": round(traced),
        "compile_s": round(time.perf_counter() - start - traced),
        "faults": faults,
    }
    return figures, faults


def in_words(figures: dict) -> str:
    """A program's figures on a line."""
    time = f"{figures['step_s']} s by its schedule, {figures['attention_s']} of them attention"
    return (
        f"{figures['program']} on {figures['slices']} x {figures['target']}, {figures['mesh']}: arguments "
        f"{figures['arguments_gib']} GiB, temporaries {figures['temporaries_gib']} GiB, peak {figures['peak_gib']} "
        f"GiB; {figures.get('no_time', time)}; compiled in {figures['compile_s']} s"
    )


def main() -> int:
    """Compiles one program and prints what the compiler says of it."""
    args = parser().parse_args()
    try:
        figures, faults = compile_program(args)
    except Exception as error:  # the compiler's, of no name of its own; any other goes on
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        faults = [f"does not fit: {str(error).splitlines()[0][:300]}"]
        figures = {"target": args.target, "program": args.program, "base": args.base, "remat": args.remat}
        figures |= {"faults": faults}
    else:
        print(in_words(figures))
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    return 1 if faults else 0


if __name__ == "__main__":
    commands.run(main, stopped="it begins anew")
