"""FlowEdit, against Gaussian data, of which the result is known, and against the algorithm written out."""

import jax
import jax.numpy as jnp
import numpy as np

from reangle_jax.diffusion import flow
from reangle_jax.diffusion.edit import edit_step
from reangle_jax.diffusion.flow import Coefficients

SHAPE = (3, 4)


def table(steps):
    times = flow.times(steps, 1350)
    return Coefficients.of(times, np.zeros(steps))


def edited(source, velocities, steps, skip, key):
    result = source
    for index in range(skip, steps):
        result = edit_step(result, source, velocities, table(steps).step(index), key=jax.random.fold_in(key, index))
    return result


def gaussian(x, t, mean, spread=0.3):
    variance = (1 - t) ** 2 * spread**2 + t**2
    clean = mean + (1 - t) * spread**2 / variance * (x - (1 - t) * mean)
    return (x - (1 - t) * clean) / t - clean


def test_gaussian_data_are_carried_from_one_mean_to_the_other(rng):
    """Between two Gaussians of one spread everything moves by the difference of the means, whatever the noise."""
    source = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)

    def velocities(noised, edit, t):
        return gaussian(noised, t, -0.4), gaussian(edit, t, 0.7)

    for seed in (0, 1):
        found = edited(source, velocities, 12, 0, jax.random.key(seed))
        np.testing.assert_allclose(found, source + 1.1, atol=2e-5)
    less = np.asarray(edited(source, velocities, 12, 6, jax.random.key(0)) - source)
    assert (less > 0.05).all()
    assert (less < 1.0).all()  # the more steps are skipped, the less changes
    alike = edited(
        source, lambda noised, edit, t: (gaussian(noised, t, 0.1), gaussian(edit, t, 0.1)), 12, 0, jax.random.key(0)
    )
    np.testing.assert_allclose(alike, source, atol=1e-6)  # equal texts change nothing, but for rounding


def test_the_algorithm_written_out(rng):
    source = rng.normal(size=SHAPE).astype(np.float32)
    steps, skip, key = 7, 2, jax.random.key(3)
    times = flow.times(steps, 1350)

    def model(x, t, text, scale, np=np):
        return np.sin(3 * x + text) * scale + t * x

    z = source.astype(np.float64)
    for index in range(steps):
        if steps - index > steps - skip:
            continue
        t, after = times[index], times[index + 1]
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, index), SHAPE), np.float64)
        noised_source = (1 - t) * source + t * noise
        noised_edit = z + noised_source - source
        z = z + (after - t) * (model(noised_edit, t, 2.0, 5.5) - model(noised_source, t, 0.5, 1.5))

    def velocities(noised, edit, t):
        return model(noised, t, 0.5, 1.5, np=jnp), model(edit, t, 2.0, 5.5, np=jnp)

    found = edited(jnp.asarray(source), velocities, steps, skip, key)
    # Float32 against float64, through a function that is steep where it is not flat.
    np.testing.assert_allclose(found, z, atol=2e-4)
    assert np.abs(z - source).max() > 0.5
