"""Times and Euler's step against diffusers' FlowMatchEulerDiscreteScheduler, as FLUX's pipelines use it."""

import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.diffusion import flow
from reangle_jax.diffusion.flow import Coefficients, Shift

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHIFTS = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


@pytest.mark.parametrize(("steps", "tokens"), [(4, 256), (28, 1350), (50, 4056)])
def test_times_and_steps(rng, steps, tokens):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **SHIFTS)
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    assert Shift().exponent(tokens) == pytest.approx(mu, rel=1e-12)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    times = flow.times(steps, tokens)
    np.testing.assert_allclose(times, scheduler.sigmas.numpy(), atol=2e-7)  # theirs are rounded to float32
    table = Coefficients.of(times, np.zeros(steps))
    x = rng.normal(size=(2, 6)).astype(np.float32)
    theirs, ours = torch.from_numpy(x), jnp.asarray(x)
    for index in range(steps):
        v = rng.normal(size=(2, 6)).astype(np.float32)
        theirs = scheduler.step(torch.from_numpy(v), scheduler.timesteps[index], theirs).prev_sample
        ours = flow.advance(ours, jnp.asarray(v), table.step(index))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)
