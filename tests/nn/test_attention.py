import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.nn.attention import SAVED, attention

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


def test_rematerialised_block_keeps_its_attention():
    """A block's backward pass does not run its attention again: one exponential of the logits, in the gradient."""

    def block(x):
        return jnp.sum(jnp.sin(attention(jnp.cos(x), x, x, impl="mapped")))

    policy = jax.checkpoint_policies.save_only_these_names(SAVED)
    x = jnp.ones((1, 4, 2, 8))
    counts = {
        remat: str(jax.make_jaxpr(jax.grad(remat(block)))(x)).count("= exp")
        for remat in (jax.checkpoint, lambda f: jax.checkpoint(f, policy=policy))
    }
    assert sorted(counts.values()) == [2, 3]


def test_cudnn_needs_a_gpu():
    with pytest.raises(RuntimeError, match="needs a GPU"):
        attention(*([jnp.zeros((1, 1, 1, 8))] * 3), impl="cudnn")
