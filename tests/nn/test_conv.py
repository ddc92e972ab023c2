import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from reangle_jax.nn.conv import Conv2D, Conv3D


def test_conv2d_is_a_sum_over_taps(rng):
    layer = Conv2D(3, 4, 3, stride=2, padding=((0, 1), (0, 1)), rngs=nnx.Rngs(0))
    layer.bias.set_value(jnp.asarray(rng.normal(size=4), jnp.float32))
    x = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))).astype(np.float64)
    kernel = np.asarray(layer.kernel[...], np.float64)
    want = np.zeros((2, 3, 4, 4)) + np.asarray(layer.bias[...], np.float64)
    for i in range(3):
        for j in range(3):
            want += padded[:, i : i + 6 : 2, j : j + 8 : 2] @ kernel[i, j]
    np.testing.assert_allclose(layer(jnp.asarray(x)), want, atol=2e-6)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("use_bias", [False, True])
def test_conv3d_equals_the_native_one(rng, size, use_bias):
    layer = Conv3D(3, 4, size, use_bias=use_bias, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 7, 3)), jnp.float32)
    pad = size // 2
    want = lax.conv_general_dilated(
        x,
        layer.kernel[...],
        (1, 1, 1),
        ((0, 0), (pad, pad), (pad, pad)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    if use_bias:
        layer.bias.set_value(jnp.asarray(rng.normal(size=4), jnp.float32))
        want = want + layer.bias[...].reshape(1, 1, 1, 1, 4)
    got = layer(x)
    assert got.shape == (2, 5 - size + 1, 6, 7, 4)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_conv3d_keeps_the_computing_dtype():
    layer = Conv3D(2, 2, 3, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
    assert layer(jnp.ones((1, 3, 4, 4, 2))).dtype == jnp.bfloat16
