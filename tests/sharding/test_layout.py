"""Diffusion transformers whose tokens lie divided over the mesh: one device's numbers, and where everything lies."""

import dataclasses
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.nn.execution import Execution
from tests import jaxprs
from tests.networks import TRANSFORMER_SMALL, fill_randomly

pytestmark = pytest.mark.sharding
BATCH, WORDS, GRID = 8, 13, (2, 6, 8)  # 37 tokens, which nothing divides
LENGTH = WORDS + 2 * 3 * 4
RANK = 8
CONFIG = dataclasses.replace(
    TRANSFORMER_SMALL, num_attention_heads=8, use_learned=False, use_rotary=True, max_text_seq_length=WORDS,
    patch_size=2, lora_rank=RANK, lora_alpha=8.0,
)  # fmt: skip
WIDTH = CONFIG.inner_dim
# The last has more devices side by side than heads divide over: keys and values are gathered over all.
MESHES = ["data:8", "u:8", "r:2,u:4", "data:2,u:4", "data:2,r:2,u:2", "u:3"]


class Run(NamedTuple):
    """Of one mesh: the prediction, the loss, its gradient, and what was compiled."""

    prediction: jax.Array
    loss: jax.Array
    gradient: nnx.State
    jaxpr: object
    program: str


def trace(text: str, base: str = "divided"):
    """The step on a mesh, and what goes in."""
    model = checkpoints.abstract(
        lambda: Transformer(CONFIG, execution=Execution("mapped", remat="attention"), rngs=nnx.Rngs(0))
    )
    fill_randomly(model)
    graphdef, lora, frozen = nnx.split(model, nnx.LoRAParam, ...)
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.normal(size=(BATCH, *GRID, 8)), jnp.float32)
    words = jnp.asarray(rng.normal(size=(BATCH, WORDS, 16)), jnp.float32)

    def step(lora, frozen, latents, words):
        def loss(lora):
            prediction = nnx.merge(graphdef, lora, frozen)(latents, words, jnp.linspace(0.0, 999.0, BATCH))
            return jnp.mean((prediction - latents[..., :4]) ** 2), prediction

        (value, prediction), gradient = jax.value_and_grad(loss, has_aux=True)(lora)
        return prediction, value, meshes.constrain(gradient)

    mesh = meshes.make_mesh(text)
    with meshes.use(mesh, base=base):
        states = jax.device_put((lora, frozen), meshes.shardings((lora, frozen), mesh))
        arguments = (*states, *meshes.split_batch((latents, words)))
        return jax.jit(step).trace(*arguments), arguments


def run(text: str) -> Run:
    traced, arguments = trace(text)
    compiled = traced.lower().compile()
    prediction, loss, gradient = compiled(*arguments)
    return Run(prediction, loss, gradient, traced.jaxpr.jaxpr, compiled.as_text() or "")


@pytest.fixture(scope="module")
def one_device():
    return run("data:1")


@pytest.fixture(scope="module", params=MESHES)
def divided(request):
    return request.param, run(request.param)


def close(got, want):
    for ours, one in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, one, atol=2e-5 * float(jnp.abs(one).max()))


def test_the_numbers_are_one_devices(divided, one_device):
    _, found = divided
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(one_device.prediction)) > 0.1
    close((found.prediction, found.loss, found.gradient), (one_device.prediction, one_device.loss, one_device.gradient))


def ways(text):
    sizes = meshes.make_mesh(text).shape
    return sizes, sizes["r"] * sizes["u"]


def constraints(jaxpr):
    """Every array whose layout the program states, and that layout."""
    found = (e for e in jaxprs.equations(jaxpr) if e.primitive.name == "sharding_constraint")
    return [(e.outvars[0].aval.shape, e.params["sharding"].spec) for e in found]


def test_every_block_says_where_its_tokens_lie(divided):
    text, found = divided
    _, shares = ways(text)
    filled = -(-LENGTH // shares) * shares
    tokens = [spec for shape, spec in constraints(found.jaxpr) if shape == (BATCH, filled, WIDTH)]
    # Into and out of a block: forward, once more in the backward pass (but for what comes out), and its gradients.
    assert tokens == [P("data", ("r", "u"))] * (5 if shares == 1 else 6)


def collectives(program, kind):
    """Shapes of what collectives of a kind give, of a compiled program."""
    for line in program.splitlines():
        if match := re.search(rf"= (.*?) {kind}(?:-start)?\(", line):
            for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                yield tuple(int(n) for n in shape.split(",") if n)


def test_only_keys_values_and_single_blocks_are_gathered(divided):
    text, found = divided
    sizes, shares = ways(text)
    videos, filled, heads = BATCH // sizes["data"], -(-LENGTH // shares) * shares, CONFIG.num_attention_heads
    exchanged = sizes["u"] > 1 and heads % sizes["u"] == 0
    keys = (videos, filled, heads // sizes["u"] if exchanged else heads, CONFIG.attention_head_dim)
    narrow = (videos, filled, CONFIG.out_channels * CONFIG.patch_size**2)
    gathered = set(collectives(found.program, "all-gather"))
    rest = {shape for shape in gathered if shape[0] != 1 and len(shape) > 1}  # others: of one layer, the times
    assert (keys in rest) == (sizes["r"] > 1 or (sizes["u"] > 1 and not exchanged))
    assert rest <= {keys, narrow}
    assert max((math.prod(shape) for shape in gathered - rest), default=0) <= 4 * WIDTH**2  # one matrix
    assert max(map(math.prod, collectives(found.program, "all-reduce")), default=0) <= 2 * RANK * WIDTH  # gradients
    share = (videos, filled // shares, heads // sizes["u"], CONFIG.attention_head_dim)
    assert (share in set(collectives(found.program, "all-to-all"))) == exchanged


def test_a_replicated_base_is_not_gathered():
    traced, (lora, frozen, *_) = trace("r:2,u:4", base="replicated")
    assert all(array.is_fully_replicated for array in jax.tree.leaves(frozen))
    assert not any(array.is_fully_replicated for array in jax.tree.leaves(lora))
    whole = {shape for shape, spec in constraints(traced.jaxpr.jaxpr) if spec == P()}
    assert whole == {(WIDTH, RANK), (RANK, WIDTH)}
