"""What choosing needs, against the operations in the programs themselves, traced at full size from shapes alone."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.models.dust3r import Dust3r, Dust3rConfig
from reangle_jax.scoring import needs
from reangle_jax.scoring.met3r import Met3r
from tests.jaxprs import operations

ROWS, COLUMNS = 256, 384


@pytest.fixture(scope="module")
def full():
    """The published networks, without parameters."""
    geometry = checkpoints.abstract(lambda: Dust3r(Dust3rConfig.large("dpt", 512), rngs=nnx.Rngs(0)))
    semantics = checkpoints.abstract(lambda: FeatUp(FeatUpConfig.vits16(), rngs=nnx.Rngs(0)))
    graphs, states = zip(nnx.split(geometry), nnx.split(semantics), strict=True)
    return Met3r(*graphs), states


def test_operations_are_those_of_the_programs(full):
    metric, states = full
    picture = jax.ShapeDtypeStruct((1, ROWS, COLUMNS, 3), jnp.float32)
    described = jax.make_jaxpr(metric.describe)(states, picture)
    found = needs.describing(Dust3rConfig.large("dpt", 512), FeatUpConfig.vits16(), ROWS, COLUMNS)
    assert found == pytest.approx(operations(described.jaxpr), rel=0.03)

    def decode(state, first, second):
        return nnx.merge(metric.dust3r, state).decode(first, second)

    tokens = jax.ShapeDtypeStruct((1, ROWS // 16, COLUMNS // 16, 1024), jnp.float32)
    one_way = jax.make_jaxpr(decode)(states[0], tokens, tokens)
    found = needs.comparing(Dust3rConfig.large("dpt", 512), ROWS, COLUMNS)
    assert found == pytest.approx(2 * operations(one_way.jaxpr), rel=0.03)


def test_choosing_adds_the_networks_and_each_comparison(tmp_path):
    alone, _ = needs.of_choosing(tmp_path, 480, 720, 0, 1)
    assert alone == pytest.approx(4 * (569e6 + 21.8e6) + 4 * 384 * ROWS * COLUMNS * 6, rel=0.01)
    flops = [needs.of_choosing(tmp_path, 480, 720, finished, 25)[1] for finished in (0, 1, 2)]
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0])
    assert math.isclose(flops[1] - flops[0], 25 * needs.comparing(Dust3rConfig.large("dpt", 512), ROWS, COLUMNS))
