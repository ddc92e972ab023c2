"""Seconds, memory and share of the peak of the full-size programs, executed on the devices at hand.

    python -m benchmarks.full_size_run --program finetune [--remat matmuls] [--base int8] [--json]
    python -m benchmarks.full_size_run --program sample
    python -m benchmarks.full_size_run --program decode
    python -m benchmarks.full_size_run --program score

The programs are those of ``benchmarks/full_size.py``. Their weights are drawn on the device, one array at a time, so
that nothing is downloaded, converted or read: what is measured does not depend on what they are. ``--short`` (two
blocks, 2,026 tokens) is for a quick look. ``--kernels 20`` takes one more step under JAX's profiler and says which
kernels its time went to.

The step's time is the median of ``--steps``, after one to warm up. Memory stands thrice: what XLA planned for the
program, the most that the device's allocator gave out while it ran (None where devices do not count, or where drawing
the weights took more), and what ``--plan`` computes from the sizes (the full size alone). The model's operations are
those without anything computed again; their share of the chip's peak is by its data sheet (`reangle_jax.plan`).
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so that the peak is the program's own
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import DictKey, GetAttrKey

from benchmarks import kernels
from benchmarks.full_size_programs import PROGRAMS, Case, Program
from reangle_jax import chosen_models, commands, config, measure, plan
from reangle_jax import mesh as meshes
from reangle_jax.backbones.cogvideox import needs
from reangle_jax.errors import called
from reangle_jax.nn.choices import REMATS

RUNS = ("finetune", "sample", "decode", "score")
GIB = 2.0**30
_ON_HOST = 2**20  # elements: what is no larger is drawn on the host, and nothing is compiled for it
_LOOKED_AT = 2**23  # elements: results that are no larger are looked at
# Stage and phase of the plan.
_PLANNED = {"finetune": ("finetune", "train"), "sample": ("generate", "sample"), "decode": ("generate", "decode")}


@functools.partial(jax.jit, static_argnames="like")
def _drawn(key: jax.Array, middle: Any, half: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Uniform within ``half`` around ``middle``; a stack layer by layer, so that little more than itself is needed."""
    kind = like.dtype if jnp.issubdtype(like.dtype, jnp.floating) else jnp.dtype(jnp.float32)

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        unit = jax.random.uniform(key, shape, kind, -1, 1)
        return (middle.astype(kind) + half.astype(kind) * unit).astype(like.dtype)

    if len(like.shape) == 3:
        keys = jax.random.split(key, like.shape[0])
        x = jax.lax.map(lambda one: draw(one, like.shape[1:]), keys)
    else:
        x = draw(key, like.shape)
    return jax.lax.with_sharding_constraint(x, like.sharding)


def _range(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> tuple[float, float]:
    """Middle and half width of an argument's values: such that activations stay about as large as they are."""
    names = [str(step.key if isinstance(step, DictKey) else step.name) for step in path if _is_named(step)]
    name = next((name for name in reversed(names) if name not in ("value", "raw_value")), "")
    if "optimiser" in names or name.endswith("bias") or name in ("logvar", "lora_b"):
        return 0.0, 0.0
    if jnp.issubdtype(like.dtype, jnp.integer):
        return {"uint8": (127.5, 127.5), "int8": (0.0, 127.0)}.get(like.dtype.name, (0.0, 0.0))
    if name == "kernel_scale":  # of such int8 kernels, with about 3,000 inputs
        return 1 / (73 * 55), 0.0
    if name in ("scale", "mask"):
        return 1.0, 0.0
    if name.endswith("kernel") or name == "lora_a":
        # A stack's leading axis is no input, nor is that of queries, keys and values.
        fan_in = math.prod(like.shape[("layers" in names) + name.startswith("qkv") : -1])
        return 0.0, (3 / fan_in) ** 0.5
    return 0.0, 3**0.5


def _is_named(step: Any) -> bool:
    return isinstance(step, DictKey | GetAttrKey)


class Values:
    """Random values for a program's arguments; what draws the large ones is compiled beforehand.

    Args:
        program: whose arguments are shapes.
    """

    def __init__(self, program: Program):
        self.fixed = program.fixed
        self.leaves, self.structure = jax.tree_util.tree_flatten_with_path(program.arguments)
        self.key = jax.random.key(0, impl="rbg")
        self.rng, number = np.random.default_rng(0), jnp.float32(0)
        large = {like for _, like in self.leaves if self._is_large(like)}
        self.made = {like: _drawn.lower(self.key, number, number, like).compile() for like in large}

    @staticmethod
    def _is_large(like: Any) -> bool:
        return like.size > _ON_HOST and not jnp.issubdtype(like.dtype, jax.dtypes.prng_key)

    def __call__(self) -> tuple[Any, ...]:
        """The arguments; the largest first, when there is most room."""
        found: list[Any] = [None] * len(self.leaves)
        for at in sorted(range(len(self.leaves)), key=lambda at: -self.leaves[at][1].size):
            path, like = self.leaves[at]
            found[at] = self._one(at, path, like)
        return jax.block_until_ready(jax.tree.unflatten(self.structure, found))

    def _one(self, at: int, path: tuple[Any, ...], like: Any) -> jax.Array:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), like.sharding)
        if path[0].idx in self.fixed:
            return jax.device_put(np.full(like.shape, self.fixed[path[0].idx], like.dtype), like.sharding)
        if like.dtype == bool:
            return jax.device_put(np.ones(like.shape, bool), like.sharding)
        middle, half = _range(path, like)
        if self._is_large(like):
            key = jax.random.fold_in(self.key, at)
            return self.made[like](key, jnp.float32(middle), jnp.float32(half))
        value = middle + half * self.rng.uniform(-1, 1, like.shape)
        return jax.device_put(value.astype(like.dtype), like.sharding)


@dataclasses.dataclass
class Prepared:
    """A program that is compiled, and what draws its arguments.

    Attributes:
        name: of the program.
        case: what it is of.
        program: with its shapes.
        compiled: of jax.
        values: gives its arguments.
        mesh: that it is compiled for.
        figures: what is known before it runs, as the last line of the command has it.
    """

    name: str
    case: Case
    program: Program
    compiled: Any
    values: Values
    mesh: Mesh
    figures: dict[str, Any]


def settings_of(case: Case) -> config.Settings:
    """A run's settings with the case's choices: CogVideoX-5B-I2V, whose published sizes count without weights."""
    values = config.get_default()
    values.video, values.weights, values.base_dtype = "clip.mp4", "none", case.base
    values.finetune.rank, values.finetune.batch_size = case.rank, case.videos
    values.execution.remat = case.remat
    return config.parse(values)


def prepare(name: str, case: Case, *, text: str = "auto", layout: str = "divided") -> Prepared:
    """Compiles a program for the devices at hand.

    Args:
        name: one of ``RUNS``.
        case: sizes and choices; its ``remat`` may be ``auto``, as a run chooses for this device.
        text: the mesh, as ``config.mesh`` has it.
        layout: as ``config.base_layout``.
    """
    settings = settings_of(case)
    if case.remat == "auto":
        case = case._replace(remat=chosen_models.remat(settings)[0])
        execution = dataclasses.replace(settings.execution, remat=case.remat)
        settings = dataclasses.replace(settings, execution=execution)
    with called(mesh="--mesh"):
        mesh = meshes.make_mesh(text, batch_size=case.videos)
    start = time.perf_counter()
    with meshes.use(mesh, base=layout):
        _say(f"{name}: tracing for {mesh.size} x {jax.devices()[0].device_kind}")
        program = PROGRAMS[name](case, mesh)
        lowered = program.trace().lower()
        traced = time.perf_counter() - start
        _say("compiling, which takes minutes")
        compiled = lowered.compile()
        seconds = time.perf_counter() - start - traced
        values = Values(program)
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes  # for CPUs it leaves the temporaries out
    known = peak if peak >= memory.temp_size_in_bytes else None
    stage, phase = _PLANNED.get(name, (None, None))
    full = stage is not None and not case.short
    estimate = plan.estimate(settings)[stage].phases[phase] if full and stage and phase else None
    figures = {
        "program": name,
        "device": jax.devices()[0].device_kind,
        "mesh": text,
        "base": case.base,
        "remat": case.remat if name == "finetune" else None,
        "videos": case.videos,
        "short": case.short,
        "trace_s": round(traced, 1),
        "compile_s": round(seconds, 1),
        "arguments_gib": round(memory.argument_size_in_bytes / GIB, 2),
        "temporaries_gib": round(memory.temp_size_in_bytes / GIB, 2),
        "peak_planned_gib": known and round(known / GIB, 2),
        "plan_gib": estimate and round(estimate / GIB, 2),
    }
    return Prepared(name, case, program, compiled, values, mesh, figures)


def execute(prepared: Prepared, steps: int, seconds: float = math.inf, kernels_told: int = 0) -> dict[str, Any]:
    """Runs a program once to warm up, then so many times, or as often as the time allows.

    Args:
        prepared: from `prepare`.
        steps: at most, at least one.
        seconds: after which no other step is begun.
        kernels_told: how many of the dearest kernels of one more step are among the figures.

    Returns:
        All figures.
    """
    begun = time.perf_counter()
    _say("drawing the weights")
    with meshes.use(prepared.mesh):
        arguments = prepared.values()
        made, before = time.perf_counter() - begun, measure.device_bytes("peak_bytes_in_use")
        took: list[float] = []
        while len(took) < 1 + steps and (len(took) < 2 or time.perf_counter() - begun < seconds):
            start = time.perf_counter()
            result = jax.block_until_ready(prepared.compiled(*arguments))
            took.append(time.perf_counter() - start)
            _say(f"step {len(took)} took {measure.human_seconds(took[-1])}")
            arguments = prepared.program.following(arguments, result)
        after = measure.device_bytes("peak_bytes_in_use")
        finite = all(map(_finite, jax.tree.leaves(result)))
        told = None
        if kernels_told:
            told = kernels.slowest(lambda: prepared.compiled(*arguments), prepared.compiled.as_text(), kernels_told)
    step = statistics.median(took[1:])
    operations, kind = flops(prepared.name, prepared.case), measure.devices()["kind"]
    peak = next((peak for name, (peak, _) in plan.CHIPS.items() if name in kind), None)  # by its data sheet
    share = operations and peak and operations / step / peak / prepared.mesh.size
    return {
        **prepared.figures,
        "weights_s": round(made, 1),
        "first_s": round(took[0], 3),
        "step_s": round(step, 4),
        "steps_s": [round(each, 4) for each in took[1:]],
        "peak_gib": round(after / GIB, 2) if after is not None and after > (before or 0) else None,
        "peak_before_gib": before and round(before / GIB, 2),
        "tflop": operations and round(operations / 1e12, 1),
        "share_of_peak": share and round(share, 3),
        "finite": finite,
        **({} if told is None else {"kernels": [kernel._asdict() for kernel in told]}),
    }


def _say(words: str) -> None:
    """At once, and not among the figures: a step may take minutes, the first of all on a CPU."""
    print(words, file=sys.stderr, flush=True)


def flops(name: str, case: Case) -> float | None:
    """Operations of one call, without what is computed again; None where nobody has counted."""
    forward = needs.transformer_flops(case.transformer, case.tokens)
    frame = case.clip.height * case.clip.width
    encode, decode = needs.vae_flops(case.vae, frame)
    if name == "finetune":
        return case.videos * (forward * needs.PASSES["none"] + encode)
    return {"sample": 2 * case.videos * forward, "decode": decode * case.clip.num_frames}.get(name)


def _finite(x: Any) -> bool:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.size > _LOOKED_AT:
        return True
    return bool(np.isfinite(np.asarray(x, np.float32)).all())


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = commands.parser(__doc__)
    parser.add_argument("--program", choices=RUNS, default="finetune")
    parser.add_argument("--base", choices=("auto", "int8"), default="auto", help="as config.base_dtype")
    parser.add_argument("--remat", choices=("auto", *REMATS), default="auto", help="as config.execution.remat")
    parser.add_argument("--mesh", default="auto", help="as config.mesh")
    parser.add_argument("--layout", choices=("divided", "replicated"), default="divided", help="as config.base_layout")
    parser.add_argument("--videos", type=commands.positive, default=1, help="of a batch")
    parser.add_argument("--rank", type=commands.positive, default=128)
    parser.add_argument("--steps", type=commands.positive, default=5, help="that are timed, after one")
    parser.add_argument("--kernels", type=commands.positive, default=0, help="how many of the dearest are told")
    parser.add_argument("--short", action="store_true", help="two blocks and 2,026 tokens")
    parser.add_argument("--json", action="store_true", help="the figures as the last line")
    return parser


def main() -> None:
    """Prints the figures of one program."""
    args = parser().parse_args()
    case = Case(args.base, args.remat, args.rank, args.videos, args.short)
    prepared = prepare(args.program, case, text=args.mesh, layout=args.layout)
    found = execute(prepared, args.steps, kernels_told=args.kernels)
    print(in_words(found))
    if args.kernels:
        print(kernels.in_words([kernels.Kernel(**kernel) for kernel in found["kernels"]]))
    if args.json:
        print(json.dumps(found))


def in_words(found: dict[str, Any]) -> str:
    """Figures on a line."""
    kept = f", remat {found['remat']}" if found["remat"] else ""
    share = f", {100 * found['share_of_peak']:.0f} % of the peak" if found["share_of_peak"] else ""
    memory = {"XLA planned": found["peak_planned_gib"], "measured": found["peak_gib"], "by --plan": found["plan_gib"]}
    words = ", ".join(f"{name} {value} GiB" for name, value in memory.items() if value is not None)
    return (
        f"{found['program']} (base {found['base']}{kept}) on {found['device']}: {found['step_s']} s a step, median of "
        f"{len(found['steps_s'])}{share}; {words}; compiled in {found['compile_s']} s"
    )


if __name__ == "__main__":
    commands.run(main)
