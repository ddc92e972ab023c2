import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import mesh as meshes
from reangle_jax.nn.attention import attention, compiling_for
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.stack import Stack
from tests import jaxprs

SHAPE_Q, SHAPE_K = (2, 7, 3, 8), (2, 5, 3, 8)
BIASES = {"none": None, "shared": (1, 3, 7, 5), "per_video": (2, 3, 7, 5)}


CASES = [(impl, bias) for impl in ("plain", "mapped", "xla") for bias in BIASES if impl != "mapped" or bias == "none"]


def random_inputs(rng, bias):
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in (SHAPE_Q, SHAPE_K, SHAPE_K))
    shape = BIASES[bias]
    return q, k, v, None if shape is None else rng.normal(size=shape).astype(np.float32)


def exact(q, k, v, bias, scale):
    logits = np.einsum("bqnd,bknd->bnqk", q.astype(np.float64), k.astype(np.float64)) * scale
    logits = logits if bias is None else logits + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnqk,bknd->bqnd", weights / weights.sum(-1, keepdims=True), v.astype(np.float64))


@pytest.mark.parametrize(("impl", "bias"), CASES)
@pytest.mark.parametrize("scale", [None, 1.0])
def test_implementations(rng, impl, bias, scale):
    q, k, v, bias = random_inputs(rng, bias)
    got = jax.jit(lambda q, k, v, bias: attention(q, k, v, bias=bias, scale=scale, impl=impl))(q, k, v, bias)
    np.testing.assert_allclose(got, exact(q, k, v, bias, scale or 8**-0.5), atol=2e-6)


@pytest.mark.parametrize(("impl", "bias"), CASES[len(BIASES) :])
def test_gradients_are_the_plain_ones(rng, impl, bias):
    q, k, v, bias = random_inputs(rng, bias)
    weights = np.cos(np.arange(q.size)).astype(np.float32).reshape(q.shape)

    def gradients(impl):
        def loss(*args):
            return jnp.sum(attention(*args[:3], bias=args[3] if bias is not None else None, impl=impl) * weights)

        arguments = (q, k, v) if bias is None else (q, k, v, bias)
        return jax.jit(jax.grad(loss, tuple(range(len(arguments)))))(*arguments)

    for got, want in zip(gradients(impl), gradients("plain"), strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.parametrize("impl", ["plain", "mapped"])
def test_large_logits_do_not_overflow(impl):
    q = jnp.full((1, 2, 1, 4), 1e3)
    v = jnp.arange(8.0).reshape(1, 2, 1, 4)
    np.testing.assert_allclose(attention(q, q, v, impl=impl), np.asarray(v.mean(1, keepdims=True).repeat(2, 1)))


@pytest.mark.parametrize("impl", ["plain", "mapped", "xla"])
def test_16_bit_input(rng, impl):
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in (SHAPE_Q, SHAPE_K, SHAPE_K))
    got = attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), impl=impl)
    assert got.dtype == jnp.bfloat16
    # Inputs, weights and result are rounded to 8 bits.
    np.testing.assert_allclose(np.asarray(got, np.float32), exact(q, k, v, None, 8**-0.5), atol=0.03)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="'flash' is not one of plain, mapped"):
        attention(*([jnp.zeros((1, 1, 1, 8))] * 3), impl="flash")


def test_mapped_takes_no_bias():
    with pytest.raises(ValueError, match="'mapped' takes no bias"):
        attention(*([jnp.zeros((1, 1, 1, 8))] * 3), bias=jnp.zeros((1, 1, 1, 1)), impl="mapped")


# Two products forward, five backward: the logits are not kept, so that the gradient makes them once more.
PRODUCTS = {"dot_general": 7}
FORWARD_ONCE = {
    "plain": ("cpu", PRODUCTS),
    "mapped": ("cpu", PRODUCTS),
    "xla": ("cpu", PRODUCTS),
    "cudnn": ("gpu", {"dot_product_attention_fwd_wrapper": 1, "dot_product_attention_bwd_wrapper": 1}),
    "splash": ("tpu", {"splash_mha_fwd_residuals": 1, "splash_mha_dkv_no_residuals": 1}),
}


@pytest.mark.parametrize("text", ["data:1", "data:2,u:2"])
@pytest.mark.parametrize("impl", FORWARD_ONCE)
def test_rematerialised_stack_runs_its_attention_once(cudnn, impl, text):
    """Whatever else is computed again in the backward pass of a scanned, rematerialised block, attention is not."""
    platform, expected = FORWARD_ONCE[impl]

    class Block(nnx.Module):
        def __init__(self, config, execution, *, rngs):
            self.scale = nnx.Param(jnp.ones((64,), jnp.bfloat16))

        def __call__(self, x):
            q = jnp.sin(x * self.scale[...].reshape(1, 1, 1, -1))
            return x + jnp.sin(attention(q, jnp.cos(q), 2 * q, impl=impl))

    graphdef, state = nnx.split(Stack(Block, None, Execution(remat="attention"), 3, rngs=nnx.Rngs(0)))

    def loss(state, x):
        return jnp.sum(nnx.merge(graphdef, state)(x).astype(jnp.float32))

    with meshes.use(meshes.make_mesh(text)), compiling_for(platform):
        jaxpr = jax.make_jaxpr(jax.grad(loss))(state, jnp.ones((2, 128, 2, 64), jnp.bfloat16))
    counts = jaxprs.names(jaxpr.jaxpr)
    assert {name: counts[name] for name in expected} == expected
    assert counts["sin"] == 4  # the rest of the block is computed again
    # Kept of each of the three layers: what came in, what attention gave and, but for two, its softmax's log-sums.
    loop = next(equation for equation in jaxprs.equations(jaxpr.jaxpr) if equation.primitive.name == "scan")
    kept = sorted(out.aval.size // 3 for out in loop.outvars if out.aval.shape[0] == 3)
    assert kept == ([] if impl in ("plain", "xla") else [2 * 128 * 2]) + [2 * 128 * 2 * 64] * 2


def test_mapped_on_a_mesh_is_the_same(rng):
    q, k, v, _ = random_inputs(rng, "none")

    def value_and_gradients(*operands):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(attention(*x, impl="mapped"))), (0, 1, 2)))(
            *operands
        )

    want = value_and_gradients(q, k, v)
    with meshes.use(meshes.make_mesh("data:2,r:3")):
        got = value_and_gradients(q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.parametrize(("impl", "platform"), [("cudnn", "gpu"), ("splash", "tpu")])
def test_fused_kernels_take_16_bits(impl, platform):
    with compiling_for(platform), pytest.raises(ValueError, match="is for 16-bit types, not float32: use 'mapped'"):
        attention(*([jnp.zeros((1, 1, 1, 64))] * 3), impl=impl)


def test_cudnn_needs_a_gpu():
    with pytest.raises(RuntimeError, match="needs a GPU"):
        attention(*([jnp.zeros((1, 1, 1, 8))] * 3), impl="cudnn")
