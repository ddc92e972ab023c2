import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.nn.norms import GroupNorm, LayerNorm, RMSNorm


def standardised(x, axes, epsilon):
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def affine(norm, rng, features):
    scale, bias = rng.normal(size=(2, features)).astype(np.float32)
    norm.scale.set_value(jnp.asarray(scale))
    norm.bias.set_value(jnp.asarray(bias))
    return scale.astype(np.float64), bias.astype(np.float64)


# Far from zero the one-pass variance E[x^2] - E[x]^2 loses all digits at a mean of 1000: it errs by 0.6. Rounding the
# mean itself leaves 1000 * 2^-24 = 6e-5 of absolute error, times a few for the affine form.
@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 2e-6), (1000.0, 5e-4)])
def test_layer_norm(rng, mean, tolerance):
    norm = LayerNorm(16, epsilon=1e-5)
    scale, bias = affine(norm, rng, 16)
    x = (mean + rng.normal(size=(3, 5, 16))).astype(np.float32)
    want = standardised(x, (-1,), 1e-5) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x)), want, atol=tolerance)


def test_layer_norm_without_affine(rng):
    norm = LayerNorm(16, epsilon=1e-6, use_affine=False)
    x = rng.normal(size=(3, 16)).astype(np.float32)
    np.testing.assert_allclose(norm(jnp.asarray(x)), standardised(x, (-1,), 1e-6), atol=2e-6)


def test_epsilon_matters_on_constant_input():
    assert np.all(np.asarray(LayerNorm(8, epsilon=1e-5)(jnp.full((2, 8), 3.0))) == 0.0)


@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 3e-6), (1000.0, 5e-4)])
def test_group_norm(rng, mean, tolerance):
    norm = GroupNorm(12, groups=3, epsilon=1e-6)
    scale, bias = affine(norm, rng, 12)
    x = (mean + rng.normal(size=(2, 4, 5, 6, 12))).astype(np.float32)
    grouped = standardised(x.reshape(2, 4, 5, 6, 3, 4), (1, 2, 3, 5), 1e-6).reshape(x.shape)
    np.testing.assert_allclose(norm(jnp.asarray(x)), grouped * scale + bias, atol=tolerance)


def test_groups_divide_the_features():
    with pytest.raises(ValueError, match="5 groups do not divide 12 features"):
        GroupNorm(12, groups=5, epsilon=1e-6)


def test_rms_norm(rng):
    norm = RMSNorm(16, epsilon=1e-6)
    scale = rng.normal(size=16).astype(np.float32)
    norm.scale.set_value(jnp.asarray(scale))
    x = rng.normal(size=(3, 16)).astype(np.float32)
    exact = x.astype(np.float64)
    want = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(norm(jnp.asarray(x)), want, atol=2e-6)


@pytest.mark.parametrize("norm", [LayerNorm(16, epsilon=1e-5), RMSNorm(16, epsilon=1e-5)])
def test_statistics_of_16_bit_input_are_float32(rng, norm):
    x = jnp.asarray(100 + rng.normal(size=(4, 16)), jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, norm(x.astype(jnp.float32)), rtol=1e-6)
