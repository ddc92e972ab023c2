"""All steps of a sampler in one program."""

import jax
import jax.numpy as jnp

from reangle_jax.diffusion.samplers import init_state, make_step


def sample(denoise, latents, *args, sampler, steps, schedule, key):
    """Clean latents of unit noise: a scan over `make_step`'s step."""
    step = make_step(denoise, sampler=sampler, steps=steps, schedule=schedule)

    @jax.jit
    def run(latents, key, *args):
        numbers = jnp.arange(steps, dtype=jnp.int32)
        return jax.lax.scan(lambda state, k: (step(state, k, key, *args), None), init_state(latents), numbers)[0]

    return run(latents, key, *args).latents
