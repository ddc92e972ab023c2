import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.diffusion.losses import masked_loss
from reangle_jax.diffusion.schedule import Schedule, look_up

SHAPE = (2, 3, 4, 5, 6)


def _normal(rng, shape=SHAPE):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("times", [(0, 1), (500, 900), (998, 999), (999, 999)])
@pytest.mark.parametrize("masked", [False, True])
def test_v_loss_equals_the_released_form(rng, times, masked):
    schedule = Schedule()
    z0, eps, v_pred = _normal(rng), _normal(rng), _normal(rng)
    mask = jnp.asarray(rng.random(SHAPE[:-1]) < 0.6) if masked else None
    t = jnp.array(times, jnp.int32)
    z_t = schedule.add_noise(z0, eps, t)
    ours = masked_loss(v_pred, schedule.velocity(z0, eps, t), mask)
    # As the released scripts write it: the mean of mask * (z0_hat - z0)^2 / (1 - abar).
    root = look_up((1.0 - schedule.alphas_cumprod) ** -0.5, t, z_t.ndim)
    signal, noise = (look_up(np.sqrt(a), t, z_t.ndim) for a in (schedule.alphas_cumprod, 1 - schedule.alphas_cumprod))
    square = jnp.square(root * (signal * z_t - noise * v_pred - z0))
    released = jnp.mean(square if mask is None else square * mask.astype(jnp.float32)[..., None])
    assert np.isfinite(released)
    # At t = 0 the released form divides a difference of nearly equal numbers by sqrt(1 - abar) = 0.03.
    np.testing.assert_allclose(ours, released, rtol=2e-6)


def test_mean_is_over_all_elements_not_the_visible_ones(rng):
    v_pred, v_true = _normal(rng), _normal(rng)
    mask = jnp.zeros(SHAPE[:-1]).at[0, 0, 0, 0].set(1.0)
    expected = np.sum(np.square(np.asarray(v_pred - v_true)[0, 0, 0, 0])) / np.prod(SHAPE)
    np.testing.assert_allclose(masked_loss(v_pred, v_true, mask), expected, rtol=1e-6)


def test_no_gradient_reaches_hidden_latents(rng):
    v_pred, v_true = _normal(rng), _normal(rng)
    mask = jnp.asarray(rng.random(SHAPE[:-1]) < 0.5)
    grad = jax.grad(masked_loss)(v_pred, v_true, mask)
    hidden = np.broadcast_to(~np.asarray(mask)[..., None], SHAPE)
    assert (np.asarray(grad)[hidden] == 0).all()
    assert (np.asarray(grad)[~hidden] != 0).all()


def test_half_precision_is_summed_in_float32(rng):
    v_pred, v_true = _normal(rng).astype(jnp.bfloat16), _normal(rng).astype(jnp.bfloat16)
    expected = np.mean(np.square(np.asarray(v_pred, np.float32) - np.asarray(v_true, np.float32)))
    loss = masked_loss(v_pred, v_true, None)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
