"""From logical axes to mesh axes, and kernels on each device's share."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from reangle_jax import mesh as meshes
from reangle_jax.nn import layouts

SIZES = {"data": 1, "r": 2, "u": 4}
AXES = ("batch", None, "heads", None)


def test_rules():
    assert layouts.spec(("embed", "heads"), (42, 64, 64), SIZES, meshes.FROZEN) == P(None, None, ("r", "u"))
    assert layouts.spec(("heads", "embed"), (42, 64, 64), SIZES, meshes.FROZEN) == P(None, ("r", "u"))
    assert layouts.spec((None, None), (3, 4), SIZES, meshes.FROZEN) == P()
    # Nine do not go into eight: whole.
    assert layouts.spec(("heads",), (9,), SIZES, meshes.FROZEN) == P()
    assert layouts.spec(("lora", "heads"), (42, 16, 64), SIZES, meshes.ADAPTER) == P(None, ("r", "u"))


def test_clashes_and_unknown_axes_raise():
    with pytest.raises(ValueError, match="'mlp' and 'heads' both want the mesh axis 'r'"):
        layouts.spec(("mlp", "heads"), (8, 8), SIZES, meshes.FROZEN)
    with pytest.raises(ValueError, match="'color' has no rule"):
        layouts.spec(("color",), (8,), SIZES, meshes.FROZEN)
    with pytest.raises(ValueError, match="more than the array"):
        layouts.spec(("mlp", None), (8,), SIZES, meshes.FROZEN)


@pytest.mark.parametrize(
    ("text", "share"), [("data:1", (2, 3, 4, 5)), ("data:2", (1, 3, 4, 5)), ("data:2,r:2,u:2", (1, 3, 1, 5))]
)
def test_a_kernel_sees_its_devices_share(text, share):
    shapes = []

    def kernel(x, bias):
        shapes.append(x.shape)
        return x + jnp.broadcast_to(bias, x.shape)

    x, bias = jnp.arange(120.0).reshape(2, 3, 4, 5), jnp.arange(4.0).reshape(1, 1, 4, 1)
    with meshes.use(meshes.make_mesh(text)):
        got = jax.jit(lambda x, bias: layouts.on_each_device(kernel, AXES, (x, AXES), (bias, AXES)))(x, bias)
    assert shapes == [share]
    np.testing.assert_array_equal(got, x + bias)


def test_what_does_not_divide_stays_whole_and_is_said(caplog):
    x = jnp.arange(90.0).reshape(1, 6, 3, 5)
    with meshes.use(meshes.make_mesh("data:2,u:2")), caplog.at_level(logging.WARNING):
        got = jax.jit(lambda x: layouts.on_each_device(jnp.sin, AXES, (x, AXES)))(x)
    assert [record.getMessage() for record in caplog.records] == [
        "heads: 3 do not divide over r:1, u:2; every device computes all of them"
    ]
    np.testing.assert_array_equal(got, jnp.sin(x))


def test_a_mesh_without_rules_is_refused():
    with (
        jax.set_mesh(meshes.make_mesh("u:2")),
        pytest.raises(RuntimeError, match=r"2 devices .* reangle_jax\.mesh\.use"),
    ):
        layouts.on_each_device(jnp.sin, AXES, (jnp.ones((1, 1, 2, 1)), AXES))
