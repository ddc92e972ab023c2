import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reangle_jax.errors import TooSmallError
from reangle_jax.scoring.image import psnr, ssim, ssim_map


@pytest.fixture
def pair(rng):
    smooth = np.cumsum(np.cumsum(rng.normal(size=(40, 56, 3)), 0), 1)
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255)
    return smooth.astype(np.uint8), noisy.astype(np.uint8)


def test_psnr_is_scikit_images(pair):
    # The same formula in float64.
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(*pair), rel=1e-12)


def test_ssim_is_scikit_images(pair):
    expected, expected_map = structural_similarity(
        *pair, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    # scikit-image computes in float64 too, with another order of the sums; its borders reflect likewise.
    assert ssim(*pair) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(ssim_map(*pair), expected_map.mean(-1), atol=1e-6)


def test_ssim_of_flat_bright_images_is_scikit_images():
    """Variances are small differences of large squares: float32 would be wrong in the fourth digit."""
    flat = np.full((40, 56, 3), 250, np.uint8)
    striped = flat.copy()
    striped[::2] = 251
    expected = structural_similarity(
        flat, striped, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert expected < 0.9965  # not all alike to it
    # Sums of squares near 6e4 in float64, in another order.
    assert ssim(flat, striped) == pytest.approx(expected, abs=1e-9)


def test_equal_images(pair):
    assert psnr(pair[0], pair[0]) == math.inf
    assert ssim(pair[0], pair[0]) == pytest.approx(1.0)


def test_mask_counts_visible_pixels_only(pair, rng):
    reference, image = pair
    mask = rng.random(reference.shape[:2]) < 0.6
    spoiled = np.where(mask[..., None], image, 255 - image)
    assert psnr(spoiled, reference, mask) == pytest.approx(psnr(image, reference, mask))
    assert ssim(spoiled, reference, mask) == pytest.approx(ssim(image, reference, mask))
    squared = (image.astype(float) - reference)[mask] ** 2
    assert psnr(image, reference, mask) == pytest.approx(10 * np.log10(255**2 / squared.mean()))
    assert psnr(spoiled, reference) < psnr(image, reference)


def test_ssim_full_mask_is_the_mean_of_the_map(pair):
    mask = np.ones(pair[0].shape[:2], bool)
    assert ssim(*pair, mask) == pytest.approx(ssim_map(*pair).mean())


def test_videos_weigh_every_visible_pixel_alike(pair):
    reference, image = (np.stack([a, a[::-1], a]) for a in pair)
    assert psnr(image, reference) == pytest.approx(psnr(*pair))
    mask = np.ones(reference.shape[:3], bool)
    mask[2] = False
    assert ssim(image, reference, mask) == pytest.approx(ssim(image[:2], reference[:2], mask[:2]))


def test_nothing_visible_is_nan(pair):
    mask = np.zeros(pair[0].shape[:2], bool)
    assert math.isnan(psnr(*pair, mask))
    assert math.isnan(ssim(*pair, mask))


def test_refuses_images_smaller_than_the_window(pair):
    with pytest.raises(TooSmallError, match="larger than 10 pixels, not 10 x 56"):
        ssim(pair[0][:10], pair[1][:10])


@pytest.mark.usefixtures("unchecked")
def test_refuses_shapes_that_differ(pair):
    with pytest.raises(ValueError, match="one shape"):
        psnr(pair[0], pair[1][:-1])
    with pytest.raises(ValueError, match="mask"):
        psnr(*pair, np.ones((3, 3), bool))
