import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear, LoRAConfig
from reangle_jax.nn.quantised import product, quantise
from reangle_jax.nn.stack import Stack
from tests import jaxprs
from tests.conversion import dequantised

DEPTH, WIDTH, HIDDEN = 3, 6, 10


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_nearest_steps_of_each_output_channel(rng, of):
    kernel = rng.normal(size=(2, 7, 5)).astype(np.float32) * np.logspace(-3, 3, 5, dtype=np.float32)
    kernel[1, :, 2] = 0
    steps, scale = quantise(of(kernel))
    assert steps.dtype == np.int8
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale, np.abs(kernel).max(1) / 127, rtol=1e-6)
    np.testing.assert_array_equal(np.abs(steps).max(1), np.where(scale > 0, 127, 0))
    error = np.abs(dequantised(steps, scale) - kernel)
    assert (error <= 0.5001 * np.asarray(scale)[:, None]).all()
    again, _ = quantise(of(dequantised(steps, scale)))
    np.testing.assert_array_equal(again, steps)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_product_and_its_gradient(rng, dtype, atol):
    steps, scale = quantise(jnp.asarray(rng.normal(size=(WIDTH, HIDDEN)), jnp.float32))
    x = jnp.asarray(rng.normal(size=(2, 3, WIDTH)), dtype)
    weights = jnp.asarray(rng.normal(size=(2, 3, HIDDEN)), dtype)
    y, back = jax.vjp(lambda x: product(x, steps, scale), x)
    kernel = dequantised(steps, scale)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), np.asarray(x, np.float32) @ kernel, atol=atol)
    (dx,) = back(weights)
    np.testing.assert_allclose(dx.astype(jnp.float32), np.asarray(weights, np.float32) @ kernel.T, atol=2 * atol)


class Block(nnx.Module):
    def __init__(self, config, execution, *, rngs):
        common = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16, "kernel_dtype": "int8", "rngs": rngs}
        self.up = Linear(WIDTH, HIDDEN, lora=LoRAConfig(2, 2.0), **common)
        self.down = Linear(HIDDEN, WIDTH, **common)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_stack_of_kernels_becomes_floats(remat):
    """Neither in the forward pass nor among what is kept for the backward one."""
    stack = Stack(Block, None, Execution(remat=remat), DEPTH, rngs=nnx.Rngs(0))
    graphdef, lora, base = nnx.split(stack, nnx.LoRAParam, ...)
    assert stack.layers.up.kernel.dtype == jnp.int8
    assert stack.layers.up.kernel_scale.shape == (DEPTH, HIDDEN)
    assert stack.layers.up.bias.dtype == jnp.bfloat16

    def loss(lora, base, x):
        return jnp.sum(nnx.merge(graphdef, lora, base)(x).astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.grad(loss))(lora, base, jnp.ones((4, WIDTH), jnp.bfloat16)).jaxpr
    values = [out.aval for equation in jaxprs.equations(jaxpr) for out in equation.outvars]
    floats = [value.shape for value in values if jnp.issubdtype(value.dtype, jnp.floating)]
    assert (WIDTH, HIDDEN) in floats  # where it is used, one layer's is
    assert not {(DEPTH, WIDTH, HIDDEN), (DEPTH, HIDDEN, WIDTH)} & set(floats)
