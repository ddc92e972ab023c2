import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.nn.embeddings import (
    grid_rope,
    place_waves,
    rope_angles,
    rotate_grid,
    rotate_halves,
    sincos_1d,
    timestep_embedding,
)


def test_timestep_embedding():
    times = np.array([0.0, 19.0, 999.0])
    angles = times[:, None] * np.exp(-np.log(1e4) * np.arange(4) / 4)
    got = timestep_embedding(jnp.asarray(times, jnp.float32), 8)
    # 999 rad in float32 is known to 6e-5.
    np.testing.assert_allclose(got, np.concatenate([np.cos(angles), np.sin(angles)], -1), atol=1e-4)


def test_whole_timesteps_may_be_integers():
    np.testing.assert_array_equal(
        timestep_embedding(jnp.asarray([7, 500]), 8), timestep_embedding(jnp.asarray([7.0, 500.0]), 8)
    )


def test_sincos():
    table = sincos_1d(np.arange(3), 4)
    want = [[np.sin(p), np.sin(p / 100), np.cos(p), np.cos(p / 100)] for p in range(3)]
    np.testing.assert_allclose(table, want, atol=1e-12)


def test_rope_angles():
    np.testing.assert_allclose(rope_angles(np.array([0, 3]), 4), [[0, 0], [3, 0.03]], atol=1e-12)


def rotate(x, angles):
    return rotate_halves(x, jnp.cos(angles), jnp.sin(angles))


def test_halves_and_neighbours_are_one_rotation(rng):
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    angles = rng.normal(size=(5, 4)).astype(np.float32)
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[None, :, None, :]
    want = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)[..., order]
    np.testing.assert_allclose(rotate(jnp.asarray(x[..., order]), angles), want, atol=1e-6)


def test_rotation_is_complex_multiplication(rng):
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    angles = rng.normal(size=(5, 4)).astype(np.float32)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[None, :, None, :]
    want = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotate(jnp.asarray(x), jnp.asarray(angles)), want, atol=1e-6)


def test_products_depend_on_distance_alone(rng):
    q, k = (jnp.asarray(np.tile(rng.normal(size=(1, 1, 1, 8)), (1, 6, 1, 1)), jnp.float32) for _ in range(2))
    angles = jnp.asarray(rope_angles(np.arange(6), 8), jnp.float32)
    products = np.einsum("qd,kd->qk", rotate(q, angles)[0, :, 0], rotate(k, angles)[0, :, 0])
    np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], atol=1e-5)


def test_rotation_keeps_the_dtype():
    assert rotate(jnp.ones((1, 2, 1, 4), jnp.bfloat16), jnp.ones((2, 2))).dtype == jnp.bfloat16


def test_grid_rotation_turns_by_row_and_by_column(rng):
    x = rng.normal(size=(2, 6, 3, 8)).astype(np.float32)
    got = rotate_grid(jnp.asarray(x), grid_rope(2, 3, 8, 100.0))
    frequencies = np.array([1.0, 0.1])  # 100 ** (0, -1/2)
    for token in range(6):
        for half, place in ((slice(0, 4), token // 3), (slice(4, 8), token % 3)):
            part = x[:, token, :, half]
            want = (part[..., :2] + 1j * part[..., 2:]) * np.exp(1j * place * frequencies)
            np.testing.assert_allclose(got[:, token, :, half], np.concatenate([want.real, want.imag], -1), atol=1e-6)
    assert rotate_grid(jnp.ones((1, 6, 1, 8), jnp.bfloat16), grid_rope(2, 3, 8)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_rope(2, 3, 6)


def test_a_place_in_the_picture_is_the_same_at_any_resolution():
    """Tokens of twice the size have places half-way between those of the small ones they cover."""
    waves = place_waves(6, 8, 16)
    assert waves.shape == (6, 8, 16)
    fine = place_waves(18, 24, 16)
    np.testing.assert_allclose(fine[1::3, 1::3], waves, atol=1e-6)  # every third one's middle is a large one's
    assert len(np.unique(waves.reshape(48, -1).round(5), axis=0)) == 48


def test_a_place_in_the_picture_is_the_same_after_a_crop_of_its_longer_side():
    np.testing.assert_allclose(place_waves(6, 10, 16)[:, 2:8], place_waves(6, 6, 16), atol=1e-6)
    rows, columns = place_waves(6, 10, 16)[..., :8], place_waves(6, 10, 16)[..., 8:]
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
