"""The cheaper forms of convolutions against the plain ones; equal up to the order of float32 sums."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.nn.conv import Conv2D, Conv3D


@pytest.mark.parametrize("use_bias", [False, True])
def test_doubled_image(rng, use_bias):
    layer = Conv2D(3, 4, 3, padding=1, use_bias=use_bias, rngs=nnx.Rngs(0))
    if use_bias:
        layer.bias.set_value(jnp.asarray(rng.normal(size=4), jnp.float32))
    x = rng.normal(size=(2, 3, 5, 3)).astype(np.float32)
    doubled = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(layer.of_doubled(jnp.asarray(x)), layer(jnp.asarray(doubled)), atol=2e-6)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("use_bias", [False, True])
def test_video_from_rest(rng, frames, use_bias):
    layer = Conv3D(3, 4, 3, use_bias=use_bias, rngs=nnx.Rngs(0))
    if use_bias:
        layer.bias.set_value(jnp.asarray(rng.normal(size=4), jnp.float32))
    x = rng.normal(size=(2, frames, 4, 5, 3)).astype(np.float32)
    rest = np.concatenate([x[:, :1], x[:, :1], x], axis=1)
    np.testing.assert_allclose(layer.from_rest(jnp.asarray(x)), layer(jnp.asarray(rest)), atol=2e-6)
