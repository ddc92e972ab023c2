import jax
import jax.numpy as jnp
import numpy as np
import pytest
from manifests import manifest

from reangle_jax.diffusion.schedule import Schedule, look_up
from reangle_jax.errors import InputError

SCHEDULES = {"alphas_cumprod_5b": Schedule(), "alphas_cumprod_2b": Schedule(snr_shift_scale=3.0)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_alphas_equal_golden_numbers(name):
    golden = manifest("schedulers")["golden"][name]
    table = SCHEDULES[name].alphas_cumprod
    assert table.dtype == np.float64
    for t, expected in golden.items():
        # Float64 throughout; near the end the rescaling subtracts nearly equal roots, hence the absolute term.
        np.testing.assert_allclose(table[int(t)], expected, rtol=1e-12, atol=1e-15)
    assert table[999] == 0.0
    assert (np.diff(table) < 0).all()


@pytest.mark.parametrize("steps", [10, 50])
def test_timesteps_equal_golden_numbers(steps):
    expected = manifest("schedulers")["golden"][f"timesteps_{steps}"]
    np.testing.assert_array_equal(Schedule().timesteps(steps), expected)


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 48, 61, 333, 998, 1000])
def test_timesteps_start_at_the_last_and_stay_in_range(steps):
    times = Schedule().timesteps(steps)
    assert len(times) == steps
    assert times[0] == 999
    assert times[-1] >= 0
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_counts_of_steps_are_refused(steps):
    with pytest.raises(InputError, match=r"config\.sample\.steps"):
        Schedule().timesteps(steps)


def test_noised_latents_and_v_give_the_clean_ones(rng):
    schedule = Schedule()
    z, eps = (jnp.asarray(rng.normal(size=(4, 2, 3, 3, 5)), jnp.float32) for _ in range(2))
    t = jnp.array([0, 300, 998, 999], jnp.int32)
    z_t = jax.jit(schedule.add_noise)(z, eps, t)
    v = jax.jit(schedule.velocity)(z, eps, t)
    signal, noise = (look_up(np.sqrt(a), t, z.ndim) for a in (schedule.alphas_cumprod, 1 - schedule.alphas_cumprod))
    clean = signal * z_t - noise * v
    # Coefficients are at most 1 and rounded to float32: a few units in the last place of values up to about 4.
    np.testing.assert_allclose(clean, z, atol=2e-6)


def test_the_last_time_is_pure_noise_and_v_is_minus_the_clean_latents(rng):
    z, eps = (jnp.asarray(rng.normal(size=(1, 7)), jnp.float32) for _ in range(2))
    t = jnp.array([999], jnp.int32)
    np.testing.assert_array_equal(Schedule().add_noise(z, eps, t), eps)
    np.testing.assert_array_equal(Schedule().velocity(z, eps, t), -z)


def test_half_precision_keeps_its_dtype(rng):
    z = jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16)
    t = jnp.array([5, 500], jnp.int32)
    assert Schedule().add_noise(z, z, t).dtype == jnp.bfloat16
    assert Schedule().velocity(z, z, t).dtype == jnp.bfloat16


def test_it_is_hashable_and_a_static_argument():
    assert hash(Schedule()) == hash(Schedule())
    assert Schedule(snr_shift_scale=3.0) != Schedule()
    with pytest.raises(ValueError, match="read-only"):
        Schedule().alphas_cumprod[0] = 0.0


@pytest.mark.parametrize(("kind", "ours"), [("cogvideox-5b / 5b-I2V", Schedule()), ("cogvideox-2b", None)])
def test_published_configs(kind, ours):
    (fields,) = (entry["config"] for name, entry in manifest("schedulers").items() if name.startswith(kind))
    assert Schedule.from_published(fields) == (ours or Schedule(snr_shift_scale=3.0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("prediction_type", "epsilon"), ("beta_schedule", "linear"), ("clip_sample", True), ("timestep_spacing", "even")],
)
def test_schedules_of_other_kinds_are_refused(field, value):
    fields = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False}
    assert Schedule.from_published(fields).spacing == "leading"
    with pytest.raises(InputError, match=field):
        Schedule.from_published(fields | {field: value})


@pytest.mark.parametrize(("spacing", "expected"), [("leading", [750, 500, 250, 0]), ("linspace", [999, 666, 333, 0])])
def test_other_spacings(spacing, expected):
    np.testing.assert_array_equal(Schedule(spacing=spacing).timesteps(4), expected)
