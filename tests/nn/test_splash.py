"""The TPU kernel, run by its interpreter, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.nn import attention as attention_module
from reangle_jax.nn.attention import SAVED, attention, compiling_for
from reangle_jax.nn.splash import _block_sizes, padded_length, splash
from tests import jaxprs


def random_inputs(rng, length, heads=1, width=64):
    return (jnp.asarray(rng.normal(size=(1, length, heads, width)), jnp.float32) for _ in range(3))


# Padded in the free lanes of a head, by a segment where there are none, a whole block, several of queries and keys; a
# part of the queries.
@pytest.mark.parametrize(
    ("length", "width", "queries"), [(100, 64, 100), (100, 128, 100), (128, 64, 128), (1500, 64, 1500), (300, 64, 70)]
)
def test_equals_plain_attention_with_its_gradients(rng, length, width, queries):
    q, k, v = random_inputs(rng, length, width=width)
    q = q[:, :queries]
    weights = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def loss(attend, *operands):
        y = attend(*operands)
        return jnp.sum(y * weights), y

    def kernel(q, k, v):
        return splash(q, k, v, scale=width**-0.5, saved=SAVED, interpret=True)

    def value_and_gradients(attend):
        return jax.jit(jax.grad(lambda *x: loss(attend, *x), (0, 1, 2), has_aux=True))(q, k, v)

    (got_gradients, got), (gradients, want) = map(value_and_gradients, (kernel, attention))
    np.testing.assert_allclose(got, want, atol=2e-6)
    for mine, theirs in zip(got_gradients, gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_only_heads_that_fill_their_lanes_need_segments(rng):
    """The mask is an operand of the kernel then: 100 tokens, padded to 128."""
    for width, has_segments in ((64, False), (128, True)):
        trace = jax.make_jaxpr(lambda *x: splash(*x, scale=1.0, saved=SAVED))(*random_inputs(rng, 100, width=width))
        (kernel,) = (e for e in jaxprs.equations(trace.jaxpr) if e.primitive.name == "pallas_call")
        segments = [o.aval for o in kernel.invars if o.aval.dtype == jnp.int32 and 128 in o.aval.shape]
        assert len(segments) == (2 if has_segments else 0)
        operands = [o.aval.shape[-2:] for o in kernel.invars if o.aval.dtype == jnp.float32]
        assert operands == [(128, 128), (128, 128), (128, width)]  # queries and keys in whole lanes


def test_blocks_at_full_size():
    sizes = _block_sizes(padded_length(17776), padded_length(17776))
    assert (sizes.block_q, sizes.block_kv, sizes.block_kv_compute) == (1280, 3584, 256)
    assert (sizes.block_q_dkv, sizes.block_kv_dkv, sizes.block_kv_dkv_compute) == (512, 3584, 512)


def test_sequences_are_padded_to_whole_blocks():
    assert [padded_length(n) for n in (1, 128, 500, 600, 1024, 17776)] == [128, 128, 512, 1024, 1024, 17920]


@pytest.mark.parametrize(("impl", "platform"), attention_module.PLATFORMS.items())
def test_another_platform_is_refused(rng, impl, platform):
    q, k, v = random_inputs(rng, 128)
    with pytest.raises(RuntimeError, match=f"'{impl}' needs a {platform.upper()}, the backend is 'cpu': use 'xla'"):
        attention(q, k, v, impl=impl)


def test_programs_for_tpus_are_traced_without_one(rng):
    q, k, v = (x.astype(jnp.bfloat16) for x in random_inputs(rng, 128))
    with compiling_for("tpu"):
        assert "splash" in str(jax.make_jaxpr(lambda *x: attention(*x, impl="splash"))(q, k, v))
