"""What blocks keep for the backward pass, by policy: the same gradients, and the values that each policy names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.nn.choices import REMATS
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear, LoRAConfig
from reangle_jax.nn.remat import product
from reangle_jax.nn.stack import Stack
from tests import jaxprs
from tests.networks import TRANSFORMER_SMALL

DEPTH, VIDEOS, TOKENS = 2, 1, 16 + 2 * 4 * 4
CONFIG = dataclasses.replace(TRANSFORMER_SMALL, lora_rank=2, lora_alpha=2.0)
WIDTH = CONFIG.inner_dim
# Of each block, in float32 values: what enters it; what attention gave with its log-sums; queries, keys, values and the
# feed-forward's hidden layer, and the narrow products of four adapters.
ENTERS = [TOKENS * WIDTH]
OF_ATTENTION = [TOKENS * WIDTH, TOKENS * CONFIG.num_attention_heads]
OF_PRODUCTS = [TOKENS * WIDTH] * 3 + [TOKENS * 4 * WIDTH] + [TOKENS * 2] * 4
KEPT = {"full": ENTERS, "attention": ENTERS + OF_ATTENTION, "matmuls": ENTERS + OF_ATTENTION + OF_PRODUCTS}


@pytest.mark.parametrize("remat", KEPT)
def test_a_policy_keeps_what_it_names(remat):
    """Of the real transformer's blocks with their adapters, the base frozen."""
    model = checkpoints.abstract(
        lambda: Transformer(CONFIG, execution=Execution("mapped", remat=remat), rngs=nnx.Rngs(0))
    )
    graphdef, lora, base = nnx.split(model, nnx.LoRAParam, ...)

    def loss(lora, base, latents, text, times):
        return jnp.sum(nnx.merge(graphdef, lora, base)(latents, text, times))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((VIDEOS, 2, 16, 16, 8), (VIDEOS, 16, 16), (VIDEOS,))]
    jaxpr = jax.make_jaxpr(jax.grad(loss))(lora, base, *shapes).jaxpr
    loop = next(equation for equation in jaxprs.equations(jaxpr) if equation.primitive.name == "scan")
    kept = [out.aval.size // DEPTH for out in loop.outvars if out.aval.shape[:1] == (DEPTH,)]
    assert sorted(kept) == sorted(KEPT[remat])


class Block(nnx.Module):
    def __init__(self, config, execution, *, rngs):
        self.linear = Linear(4, 4, lora=LoRAConfig(2, 2.0), rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(product(self.linear(x)))


def test_gradients_are_equal(rng):
    x, found = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32), {}
    for remat in REMATS:
        stack = Stack(Block, None, Execution(remat=remat), 3, rngs=nnx.Rngs(0))
        stack.layers.linear.lora_b.set_value(jnp.cos(jnp.arange(24.0)).reshape(3, 2, 4))
        graphdef, state = nnx.split(stack)
        found[remat] = jax.jit(jax.grad(lambda s, g=graphdef: jnp.sum(jnp.sin(nnx.merge(g, s)(x)))))(state)
    for remat in REMATS:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[remat], found["none"])
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[remat]))
