"""Times, and samplers of Gaussian data, whose exact velocity is affine: mean and spread follow without a draw."""

import jax.numpy as jnp
import numpy as np
import pytest
from manifests import manifest

from reangle_jax.diffusion import flow
from reangle_jax.diffusion.flow import Coefficients, Shift

MEAN, SPREAD = 0.5, 0.3
STEPS = (10, 28, 50)
# Final spread of what is sampled at 10, 28 and 50 steps with FLUX's times (exponent 0.85) and noise until the end.
SPREADS = {
    ("ddim", 0.0): (0.205, 0.264, 0.279),
    ("constant", 0.1): (0.205, 0.263, 0.279),
    ("constant", 0.2): (0.204, 0.262, 0.277),
    ("constant", 0.5): (0.201, 0.254, 0.268),
    ("constant", 0.8): (0.191, 0.235, 0.247),
    ("constant", 1.0): (0.164, 0.186, 0.194),
    ("ddim", 0.3): (0.204, 0.262, 0.278),
    ("ddim", 0.5): (0.202, 0.259, 0.275),
    ("ddim", 1.0): (0.186, 0.238, 0.259),
}


def test_times_are_the_published_golden_numbers():
    golden = manifest("schedulers")["golden"]["flux_sigmas_28_seq1350 (480x720)"]
    assert Shift().exponent(1350) == pytest.approx(golden["mu"], abs=1e-12)
    found = flow.times(28, 1350)
    assert found.shape == (29,)
    np.testing.assert_allclose(found[[0, 1, 14, 27, 28]], golden["sigmas"], rtol=3e-7)
    assert [round(Shift().exponent(n), 4) for n in (48**2, 48 * 72, 52 * 78, 4096)] == [0.8467, 1.0417, 1.1432, 1.15]


def exact_velocity(x, t):
    """The velocity of data N(MEAN, SPREAD^2), as E[eps - z0 | z_t = x]."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    clean = MEAN + (1 - t) * SPREAD**2 / variance * (x - (1 - t) * MEAN)
    return (x - (1 - t) * clean) / t - clean


def sampled(form, eta, steps, quiet):
    """Mean and spread at the end."""
    times = flow.times(steps, 0, Shift(base_tokens=0, base=0.85, max=0.85))
    table = Coefficients.of(times, flow.noise_levels(times, eta, form, quiet))
    mean, variance = 0.0, 1.0
    for index in range(steps):
        # Of x = 0 and x = 1 without noise, and of x = 0 with some: all that there is to an affine step.
        x = jnp.array([0.0, 1.0, 0.0])
        velocity = jnp.asarray([exact_velocity(float(value), times[index]) for value in x], jnp.float32)
        shift, sum_, noised = map(float, flow.propose(x, velocity, table.step(index), jnp.array([0.0, 0.0, 1.0])))
        mean = shift + (sum_ - shift) * mean
        variance = (sum_ - shift) ** 2 * variance + (noised - shift) ** 2
    return mean, variance**0.5


@pytest.mark.parametrize(("form", "eta"), SPREADS)
def test_mean_and_spread_of_gaussian_data(form, eta):
    for steps, spread in zip(STEPS, SPREADS[form, eta], strict=True):
        found = sampled(form, eta, steps, quiet=0)
        # Three digits are given.
        assert found == pytest.approx((MEAN, spread), abs=6e-4)


def test_the_ddim_form_keeps_the_spread_as_steps_grow_and_the_constant_form_does_not():
    assert sampled("ddim", 1.0, 800, quiet=2)[1] == pytest.approx(SPREAD, abs=0.004)
    assert sampled("constant", 1.0, 800, quiet=2)[1] < 0.7 * SPREAD


@pytest.mark.parametrize("form", flow.NOISES)
def test_the_last_two_steps_add_no_noise_and_no_noise_is_eulers_step(form, rng):
    times = flow.times(10, 1350)
    levels = flow.noise_levels(times, 1.0, form)
    assert (levels[:-2] > 0).all()
    assert (levels <= times[1:]).all()
    assert (levels[-2:] == 0).all()
    assert (flow.noise_levels(times, 0.0, form) == 0).all()
    x, v, xi = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(3))
    c = Coefficients.of(times, levels).step(8)
    np.testing.assert_array_equal(flow.propose(x, v, c, xi), flow.advance(x, v, c))
    np.testing.assert_allclose(flow.advance(x, v, c), x + np.float32(times[9] - times[8]) * v, rtol=1e-6)


def test_a_candidate_keeps_the_marginal(rng):
    """From z_t of a known picture and noise, a noisy step gives (1 - t') z0 and noise of spread t'."""
    times = flow.times(20, 1350)
    c = Coefficients.of(times, flow.noise_levels(times, 0.7, "ddim")).step(9)
    clean, eps, xi = (rng.normal(size=200_000) for _ in range(3))
    x = jnp.asarray((1 - times[9]) * clean + times[9] * eps, jnp.float32)
    following = flow.propose(x, jnp.asarray(eps - clean, jnp.float32), c, jnp.asarray(xi, jnp.float32))
    noise = np.asarray(following) - (1 - times[10]) * clean
    assert noise.std() == pytest.approx(times[10], rel=0.01)
    assert abs(np.corrcoef(noise, clean)[0, 1]) < 0.01
    np.testing.assert_allclose(flow.clean(x, jnp.asarray(eps - clean, jnp.float32), c.time), clean, atol=1e-5)


def test_what_begins_at_something_noised_goes_straight_to_what_is_clean(rng):
    clean, near, eps = jnp.asarray(rng.normal(size=(3, 4, 8)), jnp.float32)
    times = flow.times(6, 1350, strength=0.4)
    np.testing.assert_allclose(times, 0.4 * flow.times(6, 1350))
    begin = x = flow.noised(near, eps, 0.4)
    np.testing.assert_allclose(begin, 0.6 * near + 0.4 * eps, rtol=1e-6)
    for index in range(6):
        x = flow.advance(x, (begin - clean) / 0.4, Coefficients.of(times, np.zeros(6)).step(index))
    np.testing.assert_allclose(x, clean, atol=1e-5)


def test_an_unknown_noise():
    with pytest.raises(ValueError, match="ddim, constant"):
        flow.noise_levels(flow.times(4, 256), 1.0, "pink")
