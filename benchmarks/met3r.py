"""Pairs a second of the score of S candidates against K finished views, in one compiled call and pair by pair.

    python benchmarks/met3r.py [--views 1,2,3,4,5,6] [--size 64] [--config tiny|full|packaged] [--cheap]

For each K all score random images, in turn in one run, with one program for every K: `Met3r.against` with room for the
largest K. The finished views are described beforehand, each candidate once. Beside it stands what a caller without it
does: one compiled call a pair, from both images, timed over the first `--pairs` pairs. The scores are checked to agree.
--cheap adds the cheap mode for guidance (every second point, one way), and how alike it ranks the candidates: each is a
finished view altered further than the one before. Weights are random, or with `packaged` those of the small family.

Compilations are those that XLA reports: one for each way before the sweep over K and none in it. The memory is what
XLA plans beside arguments and results. --compile-only stops there: `--config full --size 256 --compile-only`.
"""

import argparse
import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints, commands
from reangle_jax.errors import InputError
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.scoring import networks
from reangle_jax.scoring.met3r import Met3r, pad_views

MIB = 2.0**20


def random_networks(config: str, *, abstract: bool) -> tuple[Met3r, tuple[nnx.State, nnx.State]]:
    """DUSt3R and FeatUp of random weights, or of none.

    DUSt3R's points lie in front of the camera, and its two decoders and heads are equal, so that a picture's copy
    scores 0, as it would if they were trained.
    """
    tiny = config == "tiny"
    geometry = Dust3rConfig.tiny() if tiny else Dust3rConfig.large("linear", 512)
    semantics = FeatUpConfig.tiny() if tiny else FeatUpConfig.vits16()
    rng = np.random.default_rng(0)
    graphs, states = [], []
    for build in (lambda: Dust3r(geometry, rngs=nnx.Rngs(0)), lambda: FeatUp(semantics, rngs=nnx.Rngs(0))):
        model = checkpoints.abstract(build)
        variables = {} if abstract else checkpoints.parameter_paths(model)
        for path, variable in variables.items():
            value = rng.normal(size=variable.shape).astype(np.float32)
            value = 1 + 0.1 * value if path.endswith("scale") else value / np.sqrt(max(variable.shape[-2:]))
            if path.endswith(("head1.proj.bias", "head2.proj.bias")):
                value = value.reshape(4, -1)
                value[2] += 2.0
                value = value.reshape(-1)
            variable.set_value(jnp.asarray(value, variable.dtype))
        for path, variable in variables.items():
            if ".first." in path or path.startswith("head1."):
                twin = path.replace(".first.", ".second.").replace("head1.", "head2.")
                variables[twin].set_value(variable[...])
        graphdef, state = nnx.split(model)
        graphs.append(graphdef)
        states.append(state)
    return Met3r(*graphs), (states[0], states[1])


def compilations() -> list[float]:
    """The seconds of every compilation from now on, in a list that grows."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def pictures(rng: np.random.Generator, views: int, candidates: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Finished views, parts of one smooth picture, and candidates that turn from the first into another picture."""
    side = size + views  # each view is shifted by a pixel
    coarse = rng.uniform(size=(2, 6, 6, 3)).astype(np.float32)
    one, other = np.asarray(jax.image.resize(coarse, (2, side, side, 3), "cubic"))
    finished = np.stack([one[k : k + size, k : k + size] for k in range(views)])
    shares = np.linspace(0, 1, candidates, dtype=np.float32).reshape(-1, 1, 1, 1)
    return finished, (1 - shares) * finished[:1] + shares * other[None, :size, :size]


def ranks_alike(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation."""
    return float(np.corrcoef(*(np.argsort(np.argsort(x)) for x in (first, second)))[0, 1])


class Together:
    """One compiled program that scores all candidates against as many finished views as there are so far."""

    def __init__(self, name: str, metric: Met3r, states, views, candidates, counts: list[int], chunk: int):
        self.name, self.states, self.candidates = name, states, candidates
        describe = jax.jit(metric.describe)
        room = jax.eval_shape(describe, states, views)
        start = time.perf_counter()
        against = jax.jit(functools.partial(metric.against, chunk=chunk)).lower(states, candidates, room, jnp.int32(1))
        self.program = against.compile()
        seconds, memory = time.perf_counter() - start, self.program.memory_analysis()
        kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(room)) / MIB / len(views)
        print(
            f"  {name}: compiled in {seconds:.1f} s, {memory.temp_size_in_bytes / MIB:.1f} MiB of temporary memory, "
            f"{kept:.1f} MiB kept for each finished view"
        )
        self.described = {}
        if not isinstance(views, jax.ShapeDtypeStruct):
            found = describe(states, views)
            for count in counts:
                some = jax.tree.map(lambda x, n=count: x[:n], found)
                self.described[count] = jax.block_until_ready(pad_views(some, len(views)))
        self.counts = {count: jnp.int32(count) for count in counts}

    def __call__(self, count: int) -> np.ndarray:
        """Scores [S, room]."""
        return np.asarray(self.program(self.states, self.candidates, self.described[count], self.counts[count]))


class Apart:
    """One compiled call a pair, from both images."""

    def __init__(self, metric: Met3r, states, views, candidates):
        self.metric, self.states = metric, states
        self.singles = [x[None] for x in views], [x[None] for x in candidates]
        arguments = states, self.singles[0][0], self.singles[1][0]
        self.program = jax.jit(self._pair).lower(*arguments).compile()
        memory = self.program.memory_analysis().temp_size_in_bytes / MIB
        print(f"  a call a pair: {memory:.1f} MiB of temporary memory")

    def _pair(self, states, first, second):
        describe = self.metric.describe
        return self.metric.compare(states, describe(states, first), describe(states, second)).met3r

    def __call__(self, count: int, limit: int) -> dict[tuple[int, int], float]:
        """The scores of so many pairs of (candidate, view)."""
        views, candidates = self.singles
        pairs = [(s, k) for s in range(len(candidates)) for k in range(count)][:limit]
        return {(s, k): float(self.program(self.states, views[k], candidates[s])[0]) for s, k in pairs}


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def parse() -> argparse.Namespace:
    parser = commands.parser(__doc__)
    parser.add_argument("--candidates", type=commands.positive, default=25)
    parser.add_argument(
        "--views", type=counts, default="1,2,3,4,5,6", help="the numbers of finished views, in this order"
    )
    parser.add_argument(
        "--size", type=commands.positive, default=64, help="pixels per side; a multiple of 8, or 16 (full)"
    )
    parser.add_argument("--config", choices=("tiny", "full", "packaged"), default="tiny")
    parser.add_argument("--cheap", action="store_true", help="the cheap mode too")
    parser.add_argument("--chunk", type=commands.positive, default=1, help="candidates at a time")
    parser.add_argument("--pairs", type=commands.positive, default=8, help="calls a pair that are timed for each K")
    parser.add_argument("--repeats", type=commands.positive, default=3)
    parser.add_argument("--compile-only", action="store_true")
    arguments = parser.parse_args()
    multiple = 16 if arguments.config == "full" else 8
    if arguments.size % multiple:
        raise InputError(
            f"--size={arguments.size}: with --config={arguments.config} it must be a multiple of {multiple}"
        )
    return arguments


def counts(text: str) -> list[int]:
    """Numbers of views with commas between them."""
    return [commands.positive(word) for word in text.split(",")]


def main() -> None:
    """Prints the programs' memory, then a line for each K and way."""
    arguments = parse()
    counts = arguments.views
    if arguments.config == "packaged":
        metric, states = networks.load(networks.TINY)
    else:
        metric, states = random_networks(arguments.config, abstract=arguments.compile_only)
    views, candidates = pictures(np.random.default_rng(1), max(counts), arguments.candidates, arguments.size)
    print(
        f"{arguments.candidates} candidates, {arguments.size}x{arguments.size}, {arguments.config}, "
        f"{jax.default_backend()}, median of {arguments.repeats}:"
    )
    if arguments.compile_only:
        views, candidates = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (views, candidates))
    else:
        views, candidates = jnp.asarray(views), jnp.asarray(candidates)
    kinds = {"one call": metric}
    if arguments.cheap:
        kinds["cheap"] = dataclasses.replace(metric, stride=2, both=False)
    compiled = compilations()
    ways = [Together(name, kind, states, views, candidates, counts, arguments.chunk) for name, kind in kinds.items()]
    if arguments.compile_only:
        return
    apart = Apart(metric, states, views, candidates)
    ways[0](1), apart(1, 1)  # warm
    before = len(compiled)
    for count in counts:
        seconds: dict[str, list[float]] = {}
        tables = {}
        for _ in range(arguments.repeats):
            took, singles = timed(apart, count, arguments.pairs)
            seconds.setdefault("a call a pair", []).append(took / len(singles))
            for way in ways:
                took, tables[way.name] = timed(way, count)
                seconds.setdefault(way.name, []).append(took / (arguments.candidates * count))
        full = tables["one call"][:, :count]
        np.testing.assert_allclose([full[pair] for pair in singles], list(singles.values()), atol=1e-3)
        middle = {name: statistics.median(times) for name, times in seconds.items()}
        line = f"  K = {count}: " + ", ".join(f"{name} {1 / each:.1f}" for name, each in middle.items())
        line += f" pairs a second; one call {middle['a call a pair'] / middle['one call']:.2f} times as fast"
        if "cheap" in middle:
            alike = ranks_alike(*(np.nansum(tables[name][:, :count], axis=1) for name in ("one call", "cheap")))
            line += f"; cheap {middle['one call'] / middle['cheap']:.2f} times one call, ranks alike {alike:.3f}"
        print(line, flush=True)
    print(f"  compilations: {before} to begin with, {len(compiled) - before} while K went through {counts}")


if __name__ == "__main__":
    commands.run(main, stopped="it begins anew")
