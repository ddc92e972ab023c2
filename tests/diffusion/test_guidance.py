import jax.numpy as jnp
import numpy as np
from manifests import manifest

from reangle_jax.diffusion.guidance import guidance_scales, guided
from reangle_jax.diffusion.schedule import Schedule


def test_dynamic_scales_equal_golden_numbers():
    golden = manifest("schedulers")["golden"]["dynamic_cfg_6.0_of_50_steps"]
    times = Schedule().timesteps(50)
    scales = dict(zip(times.tolist(), guidance_scales(times, 50, 6.0, True), strict=True))
    for t, expected in golden.items():
        np.testing.assert_allclose(scales[int(t)], expected, rtol=1e-6)


def test_static_scales_are_constant():
    np.testing.assert_array_equal(guidance_scales(Schedule().timesteps(5), 5, 6.0, False), np.full(5, 6.0, np.float32))


def test_guided_puts_the_unconditional_half_first():
    def predict(latents, t, offset):
        assert latents.shape == (4, 3)
        assert t.shape == (4,)
        return latents + offset[:, None] + t.astype(jnp.float32)[:, None]

    denoise = guided(predict, np.array([1.0, 3.0], np.float32))
    latents = jnp.zeros((2, 3))
    offset = jnp.array([1.0, 2.0, 10.0, 20.0])
    v = denoise(latents, jnp.int32(7), jnp.int32(1), offset)
    np.testing.assert_allclose(v[:, 0], [8 + 3 * 9, 9 + 3 * 18])
    at_one = denoise(latents, jnp.int32(7), jnp.int32(0), offset)
    np.testing.assert_allclose(at_one[:, 0], [17, 27])


def test_without_scales_the_model_sees_the_batch_once():
    seen = []

    def predict(latents, t):
        seen.append((latents.shape, t.shape))
        return latents.astype(jnp.bfloat16)

    v = guided(predict, None)(jnp.ones((2, 3)), jnp.int32(7), jnp.int32(0))
    assert seen == [((2, 3), (2,))]
    assert v.dtype == jnp.float32
