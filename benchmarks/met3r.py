"""Pairs a second of the score of S candidates against K finished views, in one compiled call and pair by pair.

    python benchmarks/met3r.py [--candidates 5] [--views 2] [--size 64] [--config tiny|full]

Both score the same S x K pairs of random images with random weights, in turn in one run. `Met3r.against` is one call:
the finished views are described beforehand, each candidate once. The other is what a caller without it does: one
compiled call a pair, from both images. The figures differ by nothing else; the scores are checked to agree. The
memory is what XLA plans beside arguments and results.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.scoring.met3r import Met3r

MIB = 2.0**20


def random_networks(config: str) -> tuple[Met3r, tuple[nnx.State, nnx.State]]:
    """DUSt3R and FeatUp of random weights; DUSt3R's points lie in front of the camera."""
    tiny = config == "tiny"
    geometry = Dust3rConfig.tiny() if tiny else Dust3rConfig.linear_512()
    semantics = FeatUpConfig.tiny() if tiny else FeatUpConfig.vits16()
    rng = np.random.default_rng(0)
    graphs, states = [], []
    for build in (lambda: Dust3r(geometry, rngs=nnx.Rngs(0)), lambda: FeatUp(semantics, rngs=nnx.Rngs(0))):
        model = checkpoints.abstract(build)
        for path, variable in checkpoints.parameter_paths(model).items():
            value = rng.normal(size=variable.shape).astype(np.float32)
            value = 1 + 0.1 * value if path.endswith("scale") else value / np.sqrt(max(variable.shape[-2:]))
            if path.endswith(("head1.proj.bias", "head2.proj.bias")):
                value = value.reshape(4, -1)
                value[2] += 2.0
                value = value.reshape(-1)
            variable.set_value(jnp.asarray(value, variable.dtype))
        graphdef, state = nnx.split(model)
        graphs.append(graphdef)
        states.append(state)
    return Met3r(*graphs), (states[0], states[1])


def main() -> None:
    """Prints one line for each way, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="pixels per side; a multiple of 8 (tiny) or 16 (full)")
    parser.add_argument("--config", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    count = arguments.candidates * arguments.views
    metric, states = random_networks(arguments.config)
    rng = np.random.default_rng(1)
    shape = (arguments.size, arguments.size, 3)
    candidates, finished = (
        jnp.asarray(rng.uniform(size=(n, *shape)), jnp.float32) for n in (arguments.candidates, arguments.views)
    )

    def pair(states, first, second):
        return metric.compare(states, metric.describe(states, first), metric.describe(states, second)).met3r

    views = jax.jit(metric.describe)(states, finished)
    together = jax.jit(metric.against).lower(states, candidates, views).compile()
    apart = jax.jit(pair).lower(states, candidates[:1], finished[:1]).compile()
    singles = [
        (candidates[s : s + 1], finished[k : k + 1]) for s in range(len(candidates)) for k in range(len(finished))
    ]

    def run_together():
        return np.asarray(together(states, candidates, views)).reshape(-1)

    def run_apart():
        return np.concatenate([np.asarray(apart(states, *single)) for single in singles])

    np.testing.assert_allclose(run_together(), run_apart(), atol=1e-3)  # warms both up, too
    seconds: dict[str, list[float]] = {"one call": [], "a call a pair": []}
    for _ in range(arguments.repeats):
        for name, function in zip(seconds, (run_together, run_apart), strict=True):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{arguments.candidates} candidates x {arguments.views} views of {arguments.size}x{arguments.size}, "
        f"{arguments.config}, {jax.default_backend()}, median of {arguments.repeats}:"
    )
    for name, program in zip(middle, (together, apart), strict=True):
        memory = program.memory_analysis().temp_size_in_bytes / MIB
        print(f"  {name}: {count / middle[name]:.1f} pairs a second, {memory:.1f} MiB of temporary memory")
    print(f"  one call is {middle['a call a pair'] / middle['one call']:.2f} times as fast")


if __name__ == "__main__":
    main()
