"""LPIPS without torch: taps, sizes, what a distance must be, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.errors import TooSmallError
from reangle_jax.models.lpips import Lpips, LpipsConfig
from reangle_jax.models.lpips import model as lpips
from reangle_jax.models.lpips.config import Pooling
from reangle_jax.nn.execution import Execution
from tests.networks import fill_randomly

BACKBONES = ("alex", "vgg", "squeeze")
WIDTHS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}
# Parameters of torchvision's features, as its documentation counts the whole less the classifiers, and one factor a
# channel.
PARAMETERS = {
    "alex": 61_100_840 - (9216 + 1) * 4096 - (4096 + 1) * 4096 - (4096 + 1) * 1000,
    "vgg": 138_357_544 - (25088 + 1) * 4096 - (4096 + 1) * 4096 - (4096 + 1) * 1000,
    "squeeze": 1_235_496 - (512 + 1) * 1000,
}
apply = jax.jit(lambda model, *inputs: model(*inputs))


def build(config, execution=None, seed=0):
    model = abstract(lambda: Lpips(config, execution=execution, rngs=nnx.Rngs(0)))
    fill_randomly(model, seed)
    for path, variable in parameter_paths(model).items():
        if path.startswith("heads."):
            variable.set_value(jnp.abs(variable[...]))
    return model


def images_of(rng, *shape):
    return jnp.asarray(rng.uniform(size=(*shape, 3)), jnp.float32)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_published_sizes(backbone):
    model = abstract(lambda: Lpips(LpipsConfig(backbone), rngs=nnx.Rngs(0)))
    counts = {path: int(np.prod(v.shape)) for path, v in parameter_paths(model).items()}
    assert sum(counts.values()) == PARAMETERS[backbone] + sum(WIDTHS[backbone])
    images = jax.ShapeDtypeStruct((2, 256, 384, 3), jnp.float32)
    taps = nnx.eval_shape(lambda net, x: net.features(x), model, images)
    assert tuple(tap.shape[-1] for tap in taps) == WIDTHS[backbone]
    assert nnx.eval_shape(lambda net, x: net(x, x), model, images).shape == (2,)


def test_taps_lie_where_torchvision_puts_them():
    """Sides of the taps of a 64x95 image, counted by hand from the layers' windows and strides."""
    sides = {
        "alex": [(15, 23), (7, 11), (3, 5), (3, 5), (3, 5)],
        "vgg": [(64, 95), (32, 47), (16, 23), (8, 11), (4, 5)],
        "squeeze": [(31, 47), (15, 23), (7, 11), (3, 5), (3, 5), (3, 5), (3, 5)],
    }
    for backbone, expected in sides.items():
        model = abstract(lambda backbone=backbone: Lpips(LpipsConfig(backbone, divisor=16), rngs=nnx.Rngs(0)))
        images = jax.ShapeDtypeStruct((1, 64, 95, 3), jnp.float32)
        taps = nnx.eval_shape(lambda net, x: net.features(x), model, images)
        assert [tap.shape[1:3] for tap in taps] == expected


def test_a_pool_that_rounds_up_takes_what_is_left_over():
    x = jnp.arange(8.0).reshape(1, 1, 8, 1) * jnp.ones((1, 8, 1, 1))
    down, up = (lpips._pooled(x, Pooling(3, ceil=ceil)) for ceil in (False, True))
    np.testing.assert_array_equal(down[0, 0, :, 0], [2, 4, 6])
    np.testing.assert_array_equal(up[0, 0, :, 0], [2, 4, 6, 7])
    assert up.shape == (1, 4, 4, 1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_distance(backbone, rng):
    model = build(LpipsConfig(backbone, divisor=16))
    images = images_of(rng, 3, 40, 48)
    noise = jnp.asarray(rng.normal(size=images.shape), jnp.float32)
    near, far = (jnp.clip(images + s * noise, 0.0, 1.0) for s in (0.02, 0.3))
    # Where an image stands in a batch may change its sums' order: features differ in the last bit, distances by its
    # square.
    np.testing.assert_allclose(apply(model, images, images), 0.0, atol=1e-13)
    small, large = apply(model, images, near), apply(model, images, far)
    assert small.dtype == jnp.float32
    assert np.all(small > 1e-9)
    assert np.all(small < large)
    np.testing.assert_allclose(apply(model, far, images), large, rtol=1e-6)  # the same sums
    # Pairs of a batch know nothing of each other.
    np.testing.assert_allclose(apply(model, images.at[0].set(0.0), far)[1:], large[1:], rtol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_smallest_side(backbone):
    config = LpipsConfig(backbone, divisor=16)
    # torchvision's documentation says 17 for SqueezeNet, whose last tap its classifier reads.
    assert config.smallest_side == {"alex": 31, "vgg": 16, "squeeze": 17}[backbone]
    model = abstract(lambda: Lpips(config, rngs=nnx.Rngs(0)))

    def taps(side):
        images = jax.ShapeDtypeStruct((1, side, 64, 3), jnp.float32)
        return nnx.eval_shape(lambda net, x: net(x, x), model, images)

    assert taps(config.smallest_side).shape == (1,)
    short = config.smallest_side - 1
    with pytest.raises(TooSmallError, match=f"{short + 1} pixels or more, not 64x{short}"):
        taps(short)


def test_gradients(rng):
    """Finite, and every parameter has one."""
    graphdef, state = nnx.split(build(LpipsConfig(divisor=16)))
    images = images_of(rng, 2, 31, 36)
    loss = jax.jit(jax.grad(lambda state, x, y: jnp.sum(nnx.merge(graphdef, state)(x, y)), argnums=(0, 1)))
    by_state, by_image = loss(state, images, images[::-1])
    assert np.all(np.isfinite(by_image))
    for path, gradient in parameter_paths(by_state).items():
        assert np.all(np.isfinite(gradient[...])), path
        assert np.any(np.asarray(gradient[...])), path


def test_where_no_channel_responds_the_slope_is_finite():
    x = jnp.zeros((1, 1, 1, 4))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(lpips._unit(jax.nn.relu(x))))))(x)
    np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_allclose(lpips._unit(jnp.asarray([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)


def test_bfloat16_computes_near_float32(rng):
    config = LpipsConfig("vgg", divisor=16)
    images, others = images_of(rng, 2, 32, 40), images_of(rng, 2, 32, 40)
    got = apply(build(config, Execution(dtype="bfloat16")), images, others)
    assert got.dtype == jnp.float32
    # Eight bits of mantissa through thirteen layers.
    np.testing.assert_allclose(got, apply(build(config), images, others), rtol=0.1)
