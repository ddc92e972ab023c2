"""float32 products keep all bits, 16-bit convolutions round once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from reangle_jax.nn.conv import Conv2D, Conv3D
from reangle_jax.nn.products import REDUCED, conv2d, precision

BFLOAT16 = jnp.dtype("bfloat16")


def test_precision_follows_the_type():
    assert precision("float32") == lax.Precision.HIGHEST
    assert precision("bfloat16") == precision("float16") == lax.Precision.DEFAULT


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, ((1, 1), (1, 1))), (3, 2, ((0, 1), (1, 0))), (4, 4, ((0, 0), (0, 0))), (1, 1, ((0, 0), (0, 0)))],
)
def test_where_less_is_asked_for_convolutions_are_products(rng, size, stride, padding):
    """No convolution is left, forwards or backwards, and all is as it was; on CPUs to the last bits."""
    x = jnp.asarray(rng.normal(size=(2, 9, 11, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 3, 5)), jnp.float32)

    def both(x, kernel):
        y, back = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride, padding), x, kernel)
        return y, back(jnp.sin(y))

    want = jax.jit(both)(x, kernel)
    with jax.default_matmul_precision(REDUCED):
        assert precision("float32") == lax.Precision.DEFAULT
        assert "conv_general_dilated" not in str(jax.make_jaxpr(both)(x, kernel))
        got = jax.jit(both)(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want)
    assert precision("float32") == lax.Precision.HIGHEST


def on_16_bits(layer, x, rng):
    """Gives a layer parameters that bfloat16 holds; returns it in float32 and in bfloat16, and the input likewise."""
    for variable in jax.tree.leaves(nnx.state(layer), is_leaf=lambda v: isinstance(v, nnx.Variable)):
        values = jnp.asarray(rng.normal(size=variable.shape), BFLOAT16)
        variable.set_value(values.astype(jnp.float32))
    graphdef, state = nnx.split(layer)
    exact, rounded = nnx.merge(graphdef, state), nnx.merge(graphdef, state)
    rounded.dtype = BFLOAT16
    return exact, rounded, x.astype(BFLOAT16).astype(jnp.float32)


FORMS = {
    "2d": (lambda rngs: Conv2D(8, 8, 3, padding=1, rngs=rngs), (2, 6, 6, 8), lambda layer, x: layer(x)),
    "3d": (lambda rngs: Conv3D(8, 8, 3, rngs=rngs), (2, 5, 6, 6, 8), lambda layer, x: layer(x)),
    "from rest": (lambda rngs: Conv3D(8, 8, 3, rngs=rngs), (2, 5, 6, 6, 8), lambda layer, x: layer.from_rest(x)),
}


@pytest.mark.parametrize("form", FORMS)
def test_16_bit_convolutions_round_once(rng, form):
    """The products of bfloat16 numbers are exact in float32: only the result's rounding may differ from float32's."""
    build, shape, call = FORMS[form]
    exact, rounded, x = on_16_bits(build(nnx.Rngs(0)), jnp.asarray(rng.normal(size=shape), jnp.float32), rng)
    want = np.asarray(call(exact, x).astype(BFLOAT16), np.float32)
    got = np.asarray(call(rounded, x), np.float32)
    # Sums in another order may fall to the other side of a tie, by one unit in the last place of few values.
    assert (got != want).mean() < 1e-3
    np.testing.assert_allclose(got, want, rtol=2**-7, atol=1e-3)


def test_doubled_images_and_still_videos_sum_their_taps_in_float32(rng):
    """Folded taps are rounded once before the products: within that rounding of the unfolded kernel's."""
    layer = Conv2D(8, 8, 3, padding=1, param_dtype=BFLOAT16, dtype=BFLOAT16, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(1, 4, 4, 8)), BFLOAT16)
    plain = np.asarray(layer(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)), np.float32)
    np.testing.assert_allclose(np.asarray(layer.of_doubled(x), np.float32), plain, atol=2**-7)
    jaxpr = jax.make_jaxpr(layer.of_doubled)(x)
    kernels = [e.invars[1].aval for e in jaxpr.jaxpr.eqns if e.primitive.name == "add" and e.outvars[0].aval.ndim == 4]
    assert {str(aval.dtype) for aval in kernels} == {"float32"}


@pytest.mark.parametrize("stride", [1, 2])
def test_16_bit_convolutions_gradients_are_the_plain_ones(rng, stride):
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), BFLOAT16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), BFLOAT16)
    padding = ((1, 1), (1, 1))

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def loss(conv, *operands):
        y = conv(*operands).astype(jnp.float32)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    got = jax.grad(lambda *o: loss(lambda x, k: conv2d(x, k, stride, padding), *o), (0, 1))(x, kernel)
    want = jax.grad(lambda *o: loss(plain, *o), (0, 1))(x, kernel)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == BFLOAT16
        np.testing.assert_array_equal(np.asarray(mine, np.float32), np.asarray(theirs, np.float32))
