"""Resizing against torch.nn.functional.interpolate; float32 sums of at most 16 products on either side."""

import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.nn.resize import apply_separable, bicubic_matrix, resize_bilinear

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

SIZES = [((7, 9), (14, 18)), ((7, 9), (5, 21)), ((16, 12), (7, 5)), ((4, 4), (1, 9)), ((37, 37), (37, 56))]


def interpolate(x, **kwargs):
    y = torch.nn.functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), **kwargs)
    return y.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def image(rng, request):
    return rng.normal(size=(2, *request.param, 3)).astype(np.float32)


@pytest.mark.parametrize(("image", "size"), SIZES, indirect=["image"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear(image, size, align_corners):
    want = interpolate(image, size=size, mode="bilinear", align_corners=align_corners)
    got = resize_bilinear(jnp.asarray(image), *size, align_corners=align_corners)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(("image", "size"), SIZES, indirect=["image"])
def test_bicubic(image, size):
    want = interpolate(image, size=size, mode="bicubic", align_corners=False)
    matrices = [bicubic_matrix(n, m) for n, m in zip(image.shape[1:3], size, strict=True)]
    np.testing.assert_allclose(apply_separable(jnp.asarray(image), *matrices), want, atol=5e-5)


@pytest.mark.parametrize("image", [(37, 37)], indirect=True)
def test_bicubic_by_scale_factor(image):
    factors = (40.1 / 37, 51.1 / 37)
    want = interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
    assert want.shape[1:3] == (40, 51)
    matrices = [bicubic_matrix(37, m, step=1 / f) for m, f in zip((40, 51), factors, strict=True)]
    np.testing.assert_allclose(apply_separable(jnp.asarray(image), *matrices), want, atol=5e-5)
