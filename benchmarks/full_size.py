"""Memory, communication and static times of the full-size programs, compiled for TPUs that need not be there.

    pip install "libtpu==0.0.42.*"      # beside jax 0.10.2
    python benchmarks/full_size.py --target v5e:2x4 --program finetune
    python benchmarks/full_size.py --target v6e:1x1 --program sample --base int8 --json
    python benchmarks/full_size.py --target v6e:2x4 --program candidates

The real fine-tuning step (LoRA of rank 128 on all 42 blocks, the noised first frame encoded, AdamW), the real guided
sampling step and decoding of CogVideoX-5B-I2V at 49 frames of 480x720, a round of candidates of FLUX.1-dev with its
inpainting ControlNet at 480x720, or the score of 25 candidates, is traced with shapes in place of arrays and compiled.
The compiler enforces the chip's memory: what does not fit fails with its figure. Nothing is executed, no weights are
needed. Compiling takes minutes on one core; ``--short`` (two blocks, 2,026 tokens) less.

The exit code is 1 where the program does not fit, passes ``--limit``, or gathers what no layout of ours should: an
activation of all tokens, or a stack of weights at once. With ``--json`` the last line holds ``peak_gib``,
``arguments_gib``, ``temporaries_gib``, ``step_s`` (of it ``operations_s`` and ``attention_s``), ``collectives`` and
more; what the times are is said in benchmarks/compiled.py.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # or it looks for this machine's on the network
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, too

from jax.experimental import topologies

from benchmarks import compiled as of_compiler
from benchmarks.full_size_programs import PROGRAMS, Case
from reangle_jax import mesh as meshes
from reangle_jax.nn.attention import compiling_for
from reangle_jax.nn.choices import REMATS

# The mesh of each topology; of several slices, ``data`` goes over them.
MESHES = {
    "v5e:1x1": "u:1",
    "v5e:2x2": "u:4",
    "v5e:2x4": "u:8",
    "v5e:4x4": "u:16",
    "v5e:8x8": "data:4,u:16",
    "v6e:1x1": "u:1",
    "v6e:2x4": "u:8",
    "v6e:8x8": "data:8,u:8",
    "v5p:1x1x1": "u:1",
    "v5p:2x2x1": "u:4",
    "v5p:4x4x4": "data:16,u:4",
}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="v6e:1x1", help=f"a topology: {', '.join(MESHES)}, ...")
    parser.add_argument("--slices", type=int, default=1, help="how many of them")
    parser.add_argument("--mesh", help="as config.mesh; by default the target's (candidates: data over all)")
    parser.add_argument("--program", choices=PROGRAMS, default="finetune")
    parser.add_argument("--base", choices=("auto", "int8"), default="auto", help="as config.base_dtype")
    parser.add_argument("--layout", choices=("divided", "replicated"), default="divided", help="as config.base_layout")
    parser.add_argument("--remat", choices=REMATS, default="attention", help="as config.execution.remat")
    parser.add_argument("--videos", type=int, help="of a batch; by default one for each group of devices, data")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--short", action="store_true", help="two blocks and 2,026 tokens")
    parser.add_argument("--tiles", action="store_true", help="as config.vae_tiles=on")
    parser.add_argument("--limit", type=float, help="GiB that the peak may have")
    parser.add_argument("--json", action="store_true", help="the figures as the last line")
    return parser


def compile_program(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """The figures of one program, and what is wrong with it, in words."""
    options: dict = {"num_slices": args.slices} if args.slices > 1 else {}
    if "1x1" in args.target.replace("2x2x1", ""):
        options["chips_per_host_bounds"] = (1, 1, 1)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.target, **options).devices
    text = args.mesh or MESHES.get(args.target, f"u:{len(devices)}")
    if not args.mesh and args.slices > 1:
        text = f"data:{args.slices},{text}"
    if not args.mesh and args.program == "candidates":
        text = f"data:{len(devices)}"
    mesh = meshes.make_mesh(text, devices=devices)
    case = Case(args.base, args.remat, args.rank, args.videos or mesh.shape[meshes.DATA], args.short, args.tiles)
    start = time.perf_counter()
    with meshes.use(mesh, base=args.layout), compiling_for("tpu"):
        lowered = PROGRAMS[args.program](case, mesh).trace().lower()
        traced = time.perf_counter() - start
        compiled = lowered.compile()
    report = of_compiler.read(compiled, devices[0].device_kind)
    whole_keys = mesh.shape["u"] == 1 and mesh.shape["r"] > 1
    config = case.transformer
    faults = of_compiler.unexpected(
        report, layers=config.num_layers, width=config.inner_dim, tokens=case.tokens, whole_keys=whole_keys
    )
    if args.base == "int8" and args.program in ("finetune", "sample"):
        ways = mesh.shape["r"] * mesh.shape["u"]
        faults += of_compiler.float_stacks(
            compiled.as_text(), layers=config.num_layers, width=config.inner_dim, ways=ways
        )
    if args.limit and report.peak > args.limit * of_compiler.GIB:
        faults.append(f"the peak is {report.peak / of_compiler.GIB:.2f} GiB, above --limit={args.limit}")
    names = ("target", "slices", "program", "base", "layout", "remat", "short", "tiles")
    figures = {name: getattr(args, name) for name in names} | {"mesh": text, "videos": case.videos}
    figures |= report.as_json() | {
        "trace_s": round(traced),
        "compile_s": round(time.perf_counter() - start - traced),
        "faults": faults,
    }
    return figures, faults


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
        print(
            f"{args.program} on {args.slices} x {args.target}, {figures['mesh']}: arguments "
            f"{figures['arguments_gib']} GiB, temporaries {figures['temporaries_gib']} GiB, peak "
            f"{figures['peak_gib']} GiB; {figures['step_s']} s by its schedule, {figures['attention_s']} of them "
            f"attention; compiled in {figures['compile_s']} s"
        )
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
