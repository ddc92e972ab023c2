"""Resizing as PyTorch does it: each function is one separable matrix per axis, exact at any size."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64

from reangle_jax.nn.products import einsum

Matrix = Float64[np.ndarray, "{size_out} {size_in}"]


def bilinear_matrix(size_in: int, size_out: int, *, align_corners: bool) -> Matrix:
    """Weights [out, in] of linear interpolation without antialiasing, float64."""
    i = np.arange(size_out, dtype=np.float64)
    if align_corners:
        x = i * ((size_in - 1) / (size_out - 1)) if size_out > 1 else np.zeros(1)
    else:
        x = np.clip((i + 0.5) * (size_in / size_out) - 0.5, 0.0, size_in - 1)
    low = np.minimum(np.floor(x).astype(int), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out), low), 1.0 - (x - low))
    np.add.at(matrix, (np.arange(size_out), high), x - low)
    return matrix


def bicubic_matrix(size_in: int, size_out: int, *, step: float | None = None) -> Matrix:
    """Weights [out, in] of PyTorch's bicubic (a = -0.75, edge clamped, no antialiasing), float64.

    `step` is input positions per output position, in / out by default; PyTorch uses 1 / ``scale_factor`` if given.
    """
    a = -0.75
    step = size_in / size_out if step is None else step
    x = (np.arange(size_out, dtype=np.float64) + 0.5) * step - 0.5
    base = np.floor(x).astype(int)
    matrix = np.zeros((size_out, size_in))
    for offset in range(-1, 3):
        d = np.abs(x - (base + offset))
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weight = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        np.add.at(matrix, (np.arange(size_out), np.clip(base + offset, 0, size_in - 1)), weight)
    return matrix


def pillow_matrix(size_in: int, size_out: int, kernel: str) -> Matrix:
    """Weights [out, in] of Pillow's resizing, which widens the kernel when it shrinks, float64; each row adds up to 1.

    The kernel is ``lanczos`` (three lobes) or ``bicubic`` (a = -0.5).
    """
    support = {"lanczos": 3.0, "bicubic": 2.0}[kernel]
    step = size_in / size_out
    stretch = max(step, 1.0)
    centre = (np.arange(size_out, dtype=np.float64)[:, None] + 0.5) * step
    i = np.arange(size_in, dtype=np.float64)[None, :]
    # Pillow takes the pixels between two truncated bounds; a kernel's support may end just outside them.
    low = np.maximum(np.trunc(centre - support * stretch + 0.5), 0.0)
    high = np.minimum(np.trunc(centre + support * stretch + 0.5), size_in)
    d = np.abs((i + 0.5 - centre) / stretch)
    if kernel == "lanczos":
        weight = np.sinc(d) * np.sinc(d / 3.0)
    else:
        a = -0.5
        weight = np.where(d < 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4))
    weight = np.where((i >= low) & (i < high) & (d < support), weight, 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def adaptive_mean_matrix(size_in: int, size_out: int) -> Matrix:
    """Weights [out, in] of PyTorch's adaptive average pooling, float64; windows may overlap or repeat."""
    k = np.arange(size_out)[:, None]
    i = np.arange(size_in)[None, :]
    inside = (i >= k * size_in // size_out) & (i < -(-(k + 1) * size_in // size_out))
    return inside / inside.sum(axis=1, keepdims=True)


def apply_separable(
    x: Float[Array, "B H W C"], rows: Float[np.ndarray, "h H"], columns: Float[np.ndarray, "w W"]
) -> Float32[Array, "B h w C"]:
    """Applies ``rows`` [h, H] and ``columns`` [w, W] to the two middle axes, in float32."""
    y = einsum("hH,bHWc->bhWc", jnp.asarray(rows, jnp.float32), x.astype(jnp.float32))
    return einsum("wW,bhWc->bhwc", jnp.asarray(columns, jnp.float32), y)


def resize_bilinear(
    x: Float[Array, "B H W C"], height: int, width: int, *, align_corners: bool
) -> Float[Array, "B {height} {width} C"]:
    """Bilinear resize without antialiasing; the dtype is kept."""
    rows = bilinear_matrix(x.shape[1], height, align_corners=align_corners)
    columns = bilinear_matrix(x.shape[2], width, align_corners=align_corners)
    return apply_separable(x, rows, columns).astype(x.dtype)
