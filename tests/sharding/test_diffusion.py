"""Noising, the loss and sampling on latents spread over devices: equal numbers, and the layout kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reangle_jax.diffusion.guidance import guidance_scales, guided
from reangle_jax.diffusion.losses import masked_loss
from reangle_jax.diffusion.samplers import SAMPLERS, sample
from reangle_jax.diffusion.schedule import Schedule

pytestmark = pytest.mark.sharding
SCHEDULE = Schedule()
LAYOUTS = [PartitionSpec("data"), PartitionSpec(None, None, "r"), PartitionSpec("data", None, "r")]


def predict(latents, t):
    return jnp.sin(latents + t.astype(jnp.float32).reshape(-1, 1, 1, 1, 1))


DENOISE = guided(predict, guidance_scales(SCHEDULE.timesteps(3), 3, 6.0, True))


@jax.jit
def loss(z, eps, t):
    z_t = SCHEDULE.add_noise(z, eps, t)
    return masked_loss(predict(z_t, t), SCHEDULE.velocity(z, eps, t), None)


def run(z, eps, t):
    key = jax.random.key(0)
    return loss(z, eps, t), [sample(DENOISE, z, sampler=s, steps=3, schedule=SCHEDULE, key=key) for s in SAMPLERS]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_agree_with_one_device(rng, layout):
    z, eps = (rng.normal(size=(4, 3, 4, 4, 8)).astype(np.float32) for _ in range(2))
    t = np.array([0, 10, 500, 999], np.int32)
    expected_loss, expected = run(jnp.asarray(z), jnp.asarray(eps), jnp.asarray(t))
    mesh = jax.make_mesh((2, 2), ("data", "r"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, layout)
        z, eps = jax.device_put((z, eps), sharding)
        t = jax.device_put(t, NamedSharding(mesh, PartitionSpec(*layout[:1])))
        got_loss, got = run(z, eps, t)
    np.testing.assert_allclose(got_loss, expected_loss, rtol=1e-6)  # sums in another order
    for ours, one in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-5)
        assert ours.sharding.is_equivalent_to(sharding, 5)
