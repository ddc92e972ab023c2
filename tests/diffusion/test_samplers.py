import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from manifests import manifest

from reangle_jax.diffusion.samplers import SAMPLERS, coefficients, init_state, make_step, sample
from reangle_jax.diffusion.schedule import Schedule
from reangle_jax.errors import InputError

SCHEDULE = Schedule()
SHAPE = (2, 2, 3, 3, 4)


def exact(clean, latents, t, step):
    """The v of a distribution that is the single point ``clean``."""
    abar = jnp.asarray(SCHEDULE.alphas_cumprod.astype(np.float32))[t]
    return (jnp.sqrt(abar) * latents - clean) / jnp.sqrt(1 - abar)


def wavy(latents, t, step, gain=1.0):
    """Any nonlinear function of all that a denoiser is given."""
    phase = t.astype(jnp.float32) * 0.01 + step.astype(jnp.float32)
    return jnp.sin(latents * gain + phase) + 0.1 * latents


def test_dpm_coefficients_equal_golden_numbers():
    table = coefficients("dpm", SCHEDULE, 50)
    for row in manifest("schedulers")["golden"]["dpm_coefficients_50_steps"]:
        i = row["i"]
        assert table.timestep[i] == row["t"]
        ours = [table.keep[i], -table.pull[i], table.now[i], table.before[i]]
        expected = [x for x in row["mult"] if isinstance(x, float)]
        np.testing.assert_allclose(ours[: len(expected)], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(table.noise[i], row["mult_noise"], rtol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 7, 48, 50, 1000])
def test_coefficients_are_finite(sampler, steps):
    for column in coefficients(sampler, SCHEDULE, steps):
        assert column.shape == (steps,)
        assert np.isfinite(column).all()


def test_dpm_is_first_order_at_both_ends():
    table = coefficients("dpm", SCHEDULE, 50)
    assert table.before[0] == 0.0
    assert table.before[-1] == 0.0
    assert (table.before[2:-1] > 0).all()
    assert (table.keep[-1], table.pull[-1], table.noise[-1]) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_denoiser_ends_on_the_clean_latents(rng, sampler):
    clean = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    noise = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    out = sample(
        functools.partial(exact, clean), noise, sampler=sampler, steps=10, schedule=SCHEDULE, key=jax.random.key(0)
    )
    # The division by sqrt(1 - abar), at least 0.34 here, and float32.
    np.testing.assert_allclose(out, clean, atol=5e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_step_by_step_equals_the_scan_with_one_compilation(rng, sampler):
    latents, gain = jnp.asarray(rng.normal(size=SHAPE), jnp.float32), jnp.float32(0.7)
    settings = {"sampler": sampler, "steps": 6, "schedule": SCHEDULE}
    key = jax.random.key(3)
    expected = sample(wavy, latents, gain, **settings, key=key)
    traces = []

    def counted(*args):
        traces.append(args)
        return wavy(*args)

    step = make_step(counted, **settings)
    state = init_state(latents)
    for i in range(6):
        state = step(state, jnp.int32(i), key, gain)
    # The compiler may fuse the scan's body otherwise than the single step: float32 round-off.
    np.testing.assert_allclose(state.latents, expected, atol=1e-5)
    assert len(traces) == 1


def test_ddim_ignores_the_key_and_dpm_follows_it(rng):
    latents = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)

    def run(sampler, seed):
        return sample(wavy, latents, sampler=sampler, steps=4, schedule=SCHEDULE, key=jax.random.key(seed))

    np.testing.assert_array_equal(run("ddim", 0), run("ddim", 1))
    np.testing.assert_array_equal(run("dpm", 0), run("dpm", 0))
    assert float(jnp.abs(run("dpm", 0) - run("dpm", 1)).max()) > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_a_gaussian_have_its_deviation(sampler):
    # Data N(0, 0.5^2): the ideal v is linear in z_t, and many small steps must give the data's deviation.
    spread = 0.5

    def ideal(latents, t, step):
        abar = jnp.asarray(SCHEDULE.alphas_cumprod.astype(np.float32))[t]
        return jnp.sqrt(abar * (1 - abar)) * (1 - spread**2) / (abar * spread**2 + 1 - abar) * latents

    noise = jax.random.normal(jax.random.key(0), (1, 20000))
    out = sample(ideal, noise, sampler=sampler, steps=500, schedule=SCHEDULE, key=jax.random.key(1))
    # 20000 draws give a deviation to 0.5 % (one sigma); at 50 steps the samplers are 6 % and 2 % off.
    np.testing.assert_allclose(float(out.std()), spread, rtol=0.015)


def test_half_precision_latents_keep_their_dtype(rng):
    latents = jnp.asarray(rng.normal(size=SHAPE), jnp.bfloat16)
    out = sample(wavy_bf16, latents, sampler="dpm", steps=3, schedule=SCHEDULE, key=jax.random.key(0))
    assert out.dtype == jnp.bfloat16


def wavy_bf16(latents, t, step):
    return jnp.sin(latents)


def test_unknown_sampler_is_refused():
    with pytest.raises(InputError, match=r"config\.sample\.sampler.*'euler'"):
        make_step(wavy, sampler="euler", steps=3, schedule=SCHEDULE)
