import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.nn.linear import Linear, LoRAConfig, uniform_fan_in

LORA = LoRAConfig(rank=3, alpha=6.0)


def exact(x):
    return np.asarray(x).astype(np.float64)


def with_adapter(rng, **kwargs):
    layer = Linear(5, 4, lora=LORA, rngs=nnx.Rngs(0), **kwargs)
    layer.bias.set_value(jnp.asarray(rng.normal(size=4), layer.bias.dtype))
    layer.lora_b.set_value(jnp.asarray(rng.normal(size=(3, 4)), jnp.float32))
    return layer


def test_affine(rng):
    layer = Linear(5, 4, rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.asarray(rng.normal(size=4), jnp.float32))
    x = rng.normal(size=(2, 3, 5)).astype(np.float32)
    want = exact(x) @ exact(layer.kernel[...]) + exact(layer.bias[...])
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, rtol=1e-6, atol=1e-6)


def test_without_bias(rng):
    layer = Linear(5, 4, use_bias=False, rngs=nnx.Rngs(0))
    assert layer.bias is None
    np.testing.assert_array_equal(layer(jnp.zeros((2, 5))), np.zeros((2, 4)))


def test_adapter_adds_the_scaled_product(rng):
    layer = with_adapter(rng)
    x = rng.normal(size=(7, 5)).astype(np.float32)
    kernel = exact(layer.kernel[...]) + 2.0 * exact(layer.lora_a[...]) @ exact(layer.lora_b[...])
    np.testing.assert_allclose(layer(jnp.asarray(x)), exact(x) @ kernel + exact(layer.bias[...]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapter_changes_no_bit(rng, dtype):
    kwargs = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype)}
    plain, adapted = Linear(5, 4, rngs=nnx.Rngs(0), **kwargs), Linear(5, 4, lora=LORA, rngs=nnx.Rngs(0), **kwargs)
    x = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
    np.testing.assert_array_equal(exact(plain(x)), exact(adapted(x)))


def test_adapter_of_a_bfloat16_base_is_float32(rng):
    layer = with_adapter(rng, dtype=jnp.dtype("bfloat16"), param_dtype=jnp.dtype("bfloat16"))
    assert layer.kernel.dtype == layer.bias.dtype == jnp.bfloat16
    assert layer.lora_a.dtype == layer.lora_b.dtype == jnp.float32
    assert layer(jnp.ones((2, 5))).dtype == jnp.bfloat16


def test_adapters_are_their_own_kind_of_parameter(rng):
    layer = with_adapter(rng)
    assert set(nnx.state(layer, nnx.LoRAParam)) == {"lora_a", "lora_b"}
    assert set(nnx.state(layer, nnx.Param)) == {"kernel", "bias", "lora_a", "lora_b"}


def test_logical_axes():
    layer = Linear(5, 4, axes=("embed", "heads"), lora=LORA, rngs=nnx.Rngs(0))
    axes = {name: variable.axes for name, variable in nnx.state(layer, nnx.Param).items()}
    assert axes == {
        "kernel": ("embed", "heads"),
        "bias": ("heads",),
        "lora_a": ("embed", "lora"),
        "lora_b": ("lora", "heads"),
    }


def test_initial_values():
    values = uniform_fan_in(jax.random.key(0), (4, 25, 1000), jnp.dtype(jnp.float32))
    assert 0.099 < float(jnp.abs(values).max()) <= 0.1
    assert abs(float(values.mean())) < 1e-3
    small, full = (Linear(5, 4, init_scale=s, rngs=nnx.Rngs(0)).kernel[...] for s in (0.1, 1.0))
    np.testing.assert_allclose(small, 0.1 * full, rtol=1e-6)
