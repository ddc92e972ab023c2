"""Schedules and samplers against diffusers, step by step, from equal noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.diffusion.samplers import coefficients, init_state, make_step
from reangle_jax.diffusion.schedule import Schedule

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SCHEDULES = {1.0: Schedule(), 3.0: Schedule(snr_shift_scale=3.0)}
CLASSES = {"ddim": diffusers.CogVideoXDDIMScheduler, "dpm": diffusers.CogVideoXDPMScheduler}
SHAPE = (2, 3, 4, 4, 5)


# Settings that the classes have and that no published model changes.
OTHERS = {
    "leading": Schedule(spacing="leading", steps_offset=1),
    "linspace": Schedule(spacing="linspace"),
    "ends_noisy": Schedule(ends_clean=False, snr_shift_scale=3.0),
}


def original(sampler, snr_shift_scale, timestep_spacing="trailing", **fields):
    return CLASSES[sampler](
        **{"set_alpha_to_one": True, **fields},
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift_scale,
        timestep_spacing=timestep_spacing,
    )


@pytest.mark.parametrize("shift", SCHEDULES)
def test_tables(shift):
    ours, theirs = SCHEDULES[shift], original("ddim", shift)
    # Float64 on both sides; linspace rounds its values in another order.
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-11, atol=1e-16)
    for steps in (1, 5, 7, 30, 40, 48, 50, 1000):
        theirs.set_timesteps(steps)
        np.testing.assert_array_equal(ours.timesteps(steps), theirs.timesteps.numpy())


@pytest.mark.parametrize("shift", SCHEDULES)
def test_noising(rng, shift):
    ours, theirs = SCHEDULES[shift], original("ddim", shift)
    z, eps = (rng.normal(size=(6, 3, 4)).astype(np.float32) for _ in range(2))
    t = np.array([0, 1, 250, 700, 998, 999], np.int32)
    theirs_t = torch.from_numpy(t.astype(np.int64))
    # The original rounds abar to float32 before it takes 1 - abar, which costs 3e-5 of it at t = 0; ours does not.
    for ours_fn, theirs_fn in ((ours.add_noise, theirs.add_noise), (ours.velocity, theirs.get_velocity)):
        expected = theirs_fn(torch.from_numpy(z), torch.from_numpy(eps), theirs_t).numpy()
        np.testing.assert_allclose(ours_fn(jnp.asarray(z), jnp.asarray(eps), jnp.asarray(t)), expected, atol=3e-6)


def wavy(latents, t, step):
    return jnp.sin(latents * 1.5 + t.astype(jnp.float32) * 0.01) + 0.1 * latents


def wavy_original(latents, t):
    return torch.sin(latents * 1.5 + t.float() * 0.01) + 0.1 * latents


@pytest.mark.parametrize("shift", SCHEDULES)
@pytest.mark.parametrize("sampler", CLASSES)
@pytest.mark.parametrize("steps", [1, 5, 7, 50])
def test_step_by_step(rng, monkeypatch, sampler, shift, steps):
    assert_same_steps(rng, monkeypatch, sampler, original(sampler, shift), SCHEDULES[shift], steps)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("sampler", CLASSES)
@pytest.mark.parametrize("steps", [1, 6, 7])
def test_step_by_step_with_other_settings(rng, monkeypatch, sampler, name, steps):
    ours = OTHERS[name]
    theirs = original(
        sampler,
        ours.snr_shift_scale,
        ours.spacing,
        steps_offset=ours.steps_offset,
        set_alpha_to_one=ours.ends_clean,
    )
    assert Schedule.from_published(theirs.config) == ours
    assert_same_steps(rng, monkeypatch, sampler, theirs, ours, steps)


def test_eta_changes_nothing(rng):
    """The published DDIM step takes it and makes no use of it."""
    theirs = original("ddim", 1.0)
    theirs.set_timesteps(5)
    v, z = (torch.from_numpy(rng.normal(size=SHAPE).astype(np.float32)) for _ in range(2))
    for t in theirs.timesteps:
        plain, noisy = (theirs.step(v, t, z, eta=eta, return_dict=False)[0] for eta in (0.0, 1.0))
        assert torch.equal(plain, noisy)


def assert_same_steps(rng, monkeypatch, sampler, theirs, schedule, steps):
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(schedule.timesteps(steps), theirs.timesteps.numpy())
    step = make_step(wavy, sampler=sampler, steps=steps, schedule=schedule)
    key = jax.random.key(5)
    start = rng.normal(size=SHAPE).astype(np.float32)
    state, latents, clean = init_state(jnp.asarray(start)), torch.from_numpy(start), None
    current = 0

    def ours_noise(shape, **_):
        return torch.from_numpy(np.array(jax.random.normal(jax.random.fold_in(key, current), tuple(shape))))

    monkeypatch.setattr("diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor", ours_noise)
    for current, t in enumerate(theirs.timesteps):
        # Every step starts from the original's state, so that an error cannot hide in, or grow with, the others.
        state = state._replace(latents=jnp.asarray(latents.numpy()))
        state = step(state, jnp.int32(current), key)
        v = wavy_original(latents, t)
        if sampler == "ddim":
            latents, clean = theirs.step(v, t, latents, return_dict=False)
        else:
            back = theirs.timesteps[current - 1] if current > 0 else None
            latents, clean = theirs.step(v, clean, t, back, latents, return_dict=False)
        # Equal coefficients and order of operations; fused multiply-adds and the two sines differ in the last bits.
        np.testing.assert_allclose(state.latents, latents.numpy(), atol=5e-6)
        np.testing.assert_allclose(state.clean, clean.numpy(), atol=5e-6)


@pytest.mark.parametrize("steps", [5, 7, 48, 50])
def test_dpm_coefficients(steps):
    ours, theirs = coefficients("dpm", SCHEDULES[1.0], steps), original("dpm", 1.0)
    theirs.set_timesteps(steps)
    for i, t in enumerate(theirs.timesteps):
        target = t - 1000 // steps
        here = theirs.alphas_cumprod[t]
        there = theirs.alphas_cumprod[target] if target >= 0 else torch.tensor(1.0)
        back = theirs.alphas_cumprod[theirs.timesteps[i - 1]] if i > 0 and target >= 0 else None
        h, r, _, _ = theirs.get_variables(here, there, back)
        expected = [float(x) for x in theirs.get_mult(h, r, here, there, back)] + [1.0, 0.0] * (back is None)
        got = [ours.keep[i], -ours.pull[i], ours.now[i], ours.before[i]]
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
