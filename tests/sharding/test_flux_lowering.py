"""FLUX.1-dev at full size: a round of candidates, lowered for accelerators that are not there, on a mesh."""

import math
import re

import jax
import pytest

from benchmarks import full_size_programs
from reangle_jax import mesh as meshes
from reangle_jax.nn.attention import compiling_for
from reangle_jax.nn.splash import padded_length
from tests.sharding.test_lowering import PLATFORMS

pytestmark = [pytest.mark.sharding, pytest.mark.usefixtures("cudnn")]
DEVICES = 4
TOKENS = 512 + 30 * 45
PARAMETERS = 11_901_408_320 + 2_140_889_088 + 83_819_683  # transformer, ControlNet, autoencoder


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_round_of_candidates_is_divided(platform):
    name, impl, call = PLATFORMS[platform]
    mesh = meshes.make_mesh(f"data:{DEVICES}")
    with meshes.use(mesh), compiling_for(platform):
        traced = full_size_programs.choosing(full_size_programs.Case(), mesh).trace()
        lowered = traced.lower(lowering_platforms=(name,)).as_text()
    given = sum(x.size for x in jax.tree.leaves(traced.in_avals) if x.dtype == "bfloat16")
    assert given == PARAMETERS
    best, table = traced.out_info
    assert (best.state.shape, table.shape) == ((60, 90, 16), (DEVICES, 3))
    calls = [line for line in lowered.splitlines() if call in line]
    # One for all joint blocks, one for all single ones, one for the ControlNet's: alike, so that one may serve all.
    assert 1 <= len(calls) <= 3
    tokens = padded_length(TOKENS) if impl == "splash" else TOKENS
    for line in calls:
        queries = next(map(int, shape.split("x")) for shape in re.findall(r"tensor<([\dx]+)xbf16>", line))
        assert math.prod(queries) == 24 * tokens * 128  # of one candidate


@pytest.mark.parametrize(("text", "heads", "share"), [("u:4", 24 // 4, 1), ("r:2,u:2", 24 // 2, 2)])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_one_candidate_is_divided(platform, text, heads, share):
    """A device attends with its heads and its share of the queries; keys and values are gathered over ``r`` alone."""
    name, impl, call = PLATFORMS[platform]
    mesh = meshes.make_mesh(text)
    with meshes.use(mesh), compiling_for(platform):
        traced = full_size_programs.choosing(full_size_programs.Case(), mesh).trace()
        lowered = traced.lower(lowering_platforms=(name,)).as_text()
    # The picture's tokens are filled up to what four devices divide; the text's are divided as they are.
    queries = (padded_length(TOKENS) if impl == "splash" else 512 + 4 * -(-30 * 45 // 4)) // share
    calls = [line for line in lowered.splitlines() if call in line]
    assert 1 <= len(calls) <= 3
    for line in calls:
        shape = next(map(int, shape.split("x")) for shape in re.findall(r"tensor<([\dx]+)xbf16>", line))
        assert math.prod(shape) == heads * queries * 128
    assert "all_to_all" in lowered
    assert ("all_gather" in lowered) == (share > 1)
