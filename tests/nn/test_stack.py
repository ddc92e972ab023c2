import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear, LoRAConfig
from reangle_jax.nn.stack import Stack

DEPTH = 3


class Residual(nnx.Module):
    def __init__(self, config, execution, *, rngs):
        self.linear = Linear(4, 4, axes=("embed", "mlp"), lora=LoRAConfig(2, 2.0), rngs=rngs)

    def __call__(self, x, shift):
        return x + jnp.tanh(self.linear(x)) + shift


def build(remat):
    stack = Stack(Residual, None, Execution(remat=remat), DEPTH, rngs=nnx.Rngs(0))
    shape = stack.layers.linear.lora_b[...].shape
    stack.layers.linear.lora_b.set_value(jnp.cos(jnp.arange(24.0)).reshape(shape))
    return stack


def loop(stack, x, shift):
    """The same blocks, one after another in Python."""
    graphdef, state = nnx.split(stack.layers)
    outputs = []
    for layer in range(DEPTH):
        x = nnx.merge(graphdef, jax.tree.map(lambda array, layer=layer: array[layer], state))(x, shift)
        outputs.append(x)
    return outputs


@pytest.fixture
def inputs(rng):
    return (jnp.asarray(rng.normal(size=(5, 4)), jnp.float32), jnp.asarray(rng.normal(size=(5, 4)), jnp.float32))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_equals_a_loop(inputs, remat):
    stack = build(remat)
    want = loop(stack, *inputs)
    np.testing.assert_allclose(stack(*inputs), want[-1], atol=1e-6)
    carry, taps = stack.with_taps(*inputs)
    np.testing.assert_allclose(carry, want[-1], atol=1e-6)
    np.testing.assert_allclose(taps, jnp.stack(want), atol=1e-6)
    carry, taps = stack.with_taps(*inputs, depth=2)  # the first two only
    np.testing.assert_allclose(carry, want[1], atol=1e-6)
    np.testing.assert_allclose(taps, jnp.stack(want[:2]), atol=1e-6)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("blocks", [(3,), (1, 3), (2, 3), (1, 2, 3)])
def test_some_blocks_outputs_equal_a_loops(inputs, remat, blocks):
    want = loop(build(remat), *inputs)
    for got, block in zip(build(remat).at(blocks, *inputs), blocks, strict=True):
        np.testing.assert_allclose(got, want[block - 1], atol=1e-6)


@pytest.mark.parametrize("blocks", [(1, 2), (0, 3), (3, 1), (1, 1, 3), (2, 4)])
def test_blocks_that_do_not_ascend_to_the_last_are_refused(inputs, blocks):
    with pytest.raises(ValueError, match="must ascend"):
        build("none").at(blocks, *inputs)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_equal_a_loops(inputs, remat):
    graphdef, state = nnx.split(build(remat))

    def gradient(run):
        return jax.jit(jax.grad(lambda state: jnp.sum(jnp.square(run(nnx.merge(graphdef, state))))))(state)

    got = gradient(lambda stack: stack(*inputs))
    want = gradient(lambda stack: loop(stack, *inputs)[-1])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_layers_are_stacked_and_begin_apart():
    stack = build("none")
    kernel = stack.layers.linear.kernel[...]
    assert kernel.shape == (DEPTH, 4, 4)
    assert not np.array_equal(kernel[0], kernel[1])
    assert stack.layers.linear.lora_a[...].shape == (DEPTH, 4, 2)


def test_integers_may_be_shared(inputs):
    class Shift(nnx.Module):
        def __init__(self, config, execution, *, rngs):
            self.weight = nnx.Param(jnp.ones(()))

        def __call__(self, x, count):
            return jnp.concatenate([x[:count] + self.weight[...], x[count:]])

    x = inputs[0]
    got = Stack(Shift, None, Execution(remat="attention"), DEPTH, rngs=nnx.Rngs(0))(x, 2)
    np.testing.assert_allclose(got[:2], x[:2] + DEPTH, rtol=1e-6)
    np.testing.assert_array_equal(got[2:], x[2:])
