"""Likeness of images: PSNR and SSIM, over all pixels or only the visible ones.

They are NumPy's and OpenCV's in float64 and not dm_pix's (0.4.5, Apache-2.0, kept up): that one takes no mask, its
float32 costs 3e-4 of SSIM on flat bright pictures, where variances are differences of large squares, and its SSIM
refuses to run under strict promotion of dtypes. The tests compare with scikit-image.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from reangle_jax.errors import TooSmallError

_SIGMA, _RADIUS = 1.5, 5  # SSIM's Gaussian window of 11 x 11 (Wang et al., 2004)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(
    image: UInt8[np.ndarray, "*batch H W 3"],
    reference: UInt8[np.ndarray, "*batch H W 3"],
    mask: Bool[np.ndarray, "*batch H W"] | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB, of one mean squared error over all images given, or over the mask's pixels.

    It is infinite for equal images, NaN if no pixel counts.
    """
    _check(image, reference, mask)
    squared = (image.astype(np.float64) - reference.astype(np.float64)) ** 2
    counted = squared if mask is None else squared[mask]
    if not counted.size:
        return float("nan")
    error = counted.mean()
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def known(value: float | None) -> float | None:
    """The value, or None where it is not finite: JSON knows neither infinity (equal images) nor NaN."""
    return value if value is not None and math.isfinite(value) else None


def ssim_map(image: UInt8[np.ndarray, "H W 3"], reference: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """Structural similarity at every pixel, the mean of the three channels (Wang et al., 2004; Gaussian window)."""
    x, y = image.astype(np.float64), reference.astype(np.float64)

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (2 * _RADIUS + 1,) * 2, _SIGMA, borderType=cv2.BORDER_REFLECT)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return (luminance * structure).mean(axis=-1)


def ssim(
    image: UInt8[np.ndarray, "*batch H W 3"],
    reference: UInt8[np.ndarray, "*batch H W 3"],
    mask: Bool[np.ndarray, "*batch H W"] | None = None,
) -> float:
    """Mean structural similarity over the pixels that count, at most 1; NaN if none does.

    With a mask, what it leaves out is taken from `reference` in both images first, so that a hole does not spoil the
    windows of its visible neighbours. Without one, the border of half a window is left out, as is usual.

    Raises:
        TooSmallError: there is no mask, and a side is no longer than the borders.
    """
    _check(image, reference, mask)
    height, width = image.shape[-3:-1]
    images, references = (a.reshape(-1, height, width, 3) for a in (image, reference))
    if mask is None:
        if min(height, width) <= 2 * _RADIUS:
            raise TooSmallError(f"images must be larger than {2 * _RADIUS} pixels, not {height} x {width}")
        inner = slice(_RADIUS, -_RADIUS)
        return float(np.mean([ssim_map(a, b)[inner, inner].mean() for a, b in zip(images, references, strict=True)]))
    masks = mask.reshape(-1, height, width)
    if not masks.any():
        return float("nan")
    total = 0.0
    for a, b, m in zip(images, references, masks, strict=True):
        total += ssim_map(np.where(m[..., None], a, b), b)[m].sum()
    return float(total / masks.sum())


def _check(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> None:
    if image.shape != reference.shape or image.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(
            f"need two uint8 images of one shape, got {image.dtype} {image.shape}, {reference.dtype} {reference.shape}"
        )
    if mask is not None and (mask.shape != image.shape[:-1] or mask.dtype != bool):
        raise ValueError(f"the mask must be bool {image.shape[:-1]}, not {mask.dtype} {mask.shape}")
