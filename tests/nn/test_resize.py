import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from reangle_jax.nn.resize import (
    adaptive_mean_matrix,
    apply_separable,
    bicubic_matrix,
    bilinear_matrix,
    pillow_matrix,
    resize_bilinear,
)

MATRICES = {
    "bilinear": lambda n, m: bilinear_matrix(n, m, align_corners=False),
    "corners": lambda n, m: bilinear_matrix(n, m, align_corners=True),
    "bicubic": bicubic_matrix,
    "adaptive": adaptive_mean_matrix,
    "lanczos": lambda n, m: pillow_matrix(n, m, "lanczos"),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 9), (9, 4), (3, 1), (1, 4)])
def test_constants_are_kept(name, n, m):
    matrix = MATRICES[name](n, m)
    assert matrix.shape == (m, n)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-12)
    if n == m:
        np.testing.assert_allclose(matrix, np.eye(n), atol=1e-12)


def test_corners_stay_corners():
    ramp = np.arange(5.0)
    np.testing.assert_allclose(bilinear_matrix(5, 9, align_corners=True) @ ramp, np.linspace(0, 4, 9), atol=1e-12)


def test_bicubic_weights_are_those_of_a_075():
    # Half way between pixels: -3/32, 19/32, 19/32, -3/32; the tap outside falls on the edge.
    want = np.array([[16, 19, -3, 0], [0, -3, 19, 16]]) / 32
    np.testing.assert_allclose(bicubic_matrix(4, 2), want, atol=1e-12)
    # A given step moves the samples, not their number.
    np.testing.assert_allclose(bicubic_matrix(4, 2, step=1.0), np.eye(4)[:2], atol=1e-12)


def test_separable(rng):
    x = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    rows, columns = rng.normal(size=(6, 4)), rng.normal(size=(7, 5))
    want = np.einsum("hH,wW,bHWc->bhwc", rows, columns, x.astype(np.float64))
    np.testing.assert_allclose(apply_separable(jnp.asarray(x), rows, columns), want, atol=1e-5)


def test_resize_keeps_the_dtype():
    y = resize_bilinear(jnp.ones((1, 4, 6, 2), jnp.bfloat16), 8, 3, align_corners=False)
    assert (y.shape, y.dtype) == ((1, 8, 3, 2), jnp.bfloat16)


def test_adaptive_mean_windows_overlap_where_sizes_do_not_divide():
    want = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]) / np.array([[2], [3], [2]])
    np.testing.assert_allclose(adaptive_mean_matrix(5, 3), want)
    np.testing.assert_allclose(adaptive_mean_matrix(2, 4), np.repeat(np.eye(2), 2, axis=0))


@pytest.mark.parametrize("kernel", ["lanczos", "bicubic"])
@pytest.mark.parametrize(("n", "m"), [(40, 17), (17, 40), (30, 30)])
def test_pillow(rng, kernel, n, m):
    pixels = rng.uniform(size=(1, n)).astype(np.float32)  # mode F: no rounding to bytes
    resampling = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}[kernel]
    want = np.asarray(Image.fromarray(pixels).resize((m, 1), resampling))
    np.testing.assert_allclose(pillow_matrix(n, m, kernel) @ pixels[0], want[0], atol=1e-6)
