"""From a depth map, relative or metric, to scene depth: one scale for the whole clip, and the pivot's distance.

Host-side NumPy: it runs once for a clip.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from reangle_jax.arrays import AnyArray
from reangle_jax.errors import InputError

DEPTH_KINDS = ("inverse", "metric")

# Scene depth lies within this factor of the clip's median depth. The released scripts clip 10000 / d to [1e-4, 1e4].
_RANGE = 100.0
_FARTHEST = 1e9  # metric or inverse, in any unit that people use
_SAMPLES = 20_000  # pixels a frame that take part in the alignment


def scene_depth(
    depth: AnyArray,
    kind: str = "inverse",
    *,
    align: bool = True,
    expect_shape: tuple[int, int, int] | None = None,
) -> Float[np.ndarray, "T H W"]:
    """Scene depth z of a clip, finite and above 0, from inverse (larger is nearer) or metric depth, neither negative.

    Inverse depth is known up to its unit, so z = s / d with a single s for the clip: the median over all frames of the
    inverse depth above zero becomes z = 1 (the released scripts' 10000 / max(d, 1e-5) has another unit and nothing
    else; method.md). z is clipped to [0.01, 100], where zero inverse depth, the sky, ends up. Metric depth keeps its
    unit; what is not above zero (no measurement) is taken for far away.

    A network sees one frame at a time and its scale drifts. With ``align`` the inverse depth of each frame is first
    mapped, by a robust scale and shift, to the aligned frame before it, so that what stands still keeps its depth
    (ours).

    Raises:
        InputError: not of the expected shape, not finite, negative, beyond all units, constant, or zero in the whole of
            a frame.
    """
    if kind not in DEPTH_KINDS:
        raise InputError(f"depth_kind: {kind!r} is unknown; use {' or '.join(DEPTH_KINDS)}")
    values = _checked(depth, expect_shape)
    _check_frames(values > (0 if kind == "metric" else 1e-6 * values.max()))
    if kind == "metric":
        measured = values[values > 0]
        far = _RANGE * float(np.median(measured))
        return np.where(values > 0, np.clip(values, far / _RANGE**2, far), far).astype(np.float32)
    if align:
        values = align_frames(values)
    above = values[values > 1e-6 * values.max()]
    unit = float(np.median(above))
    return (unit / np.clip(values, unit / _RANGE, unit * _RANGE)).astype(np.float32)


def _checked(depth: AnyArray, expect_shape: tuple[int, int, int] | None) -> Float[np.ndarray, "T H W"]:
    depth = np.asarray(depth)
    if depth.ndim != 3 or 0 in depth.shape or not (np.issubdtype(depth.dtype, np.number)) or np.iscomplexobj(depth):
        raise InputError(
            f"{depth.dtype} of shape {depth.shape} is no depth; give an array of numbers of shape (T, H, W)"
        )
    if expect_shape is not None and depth.shape != tuple(expect_shape):
        raise InputError(
            f"its shape is {depth.shape}, the video's is {tuple(expect_shape)}; give one depth map of the "
            "video's size a frame"
        )
    values = depth.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError("holds NaN or infinite values; replace them (0 stands for infinitely far)")
    if values.min() < 0:
        raise InputError("holds negative values; give inverse depth or metric depth of 0 or more")
    typical = float(np.median(values[values > 0])) if values.any() else 1.0
    if not 1 / _FARTHEST <= typical <= _FARTHEST:
        raise InputError(
            f"a typical value is {typical:g}, which float32 geometry cannot hold beside its products: give it "
            f"in a unit that makes it {1 / _FARTHEST:g} to {_FARTHEST:g}, such as metres"
        )
    if values.max() - values.min() <= 1e-6 * values.max():
        raise InputError("is constant over the whole clip, so nothing lies before anything; give a real depth")
    return values


def _check_frames(known: Bool[np.ndarray, "T H W"]) -> None:
    """Refuses frames of which nothing is known: their points would lie at the far limit, and the pivot with them."""
    empty = np.flatnonzero(~known.any(axis=(1, 2)))
    if empty.size:
        which = f"frame {empty[0]} is" if empty.size == 1 else f"{empty.size} frames, the first of them {empty[0]}, are"
        raise InputError(
            f"{which} zero everywhere (counted from 0, of {len(known)}), and zero is no depth: give depth for "
            "every frame, or take a part of the clip that has it (config.start)"
        )


def align_frames(inverse: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T H W"]:
    """Maps each frame's inverse depth by a scale and a shift to the aligned frame before it.

    The line is fitted to the pixels that agree with it (what moves does not) by the ratio of spreads, which is unbiased
    between two frames of equal noise. Least squares, or a reference averaged over frames, would pull the scale below 1
    at every frame, and depth would shrink away over the clip.
    """
    aligned = np.empty_like(inverse)
    aligned[0] = inverse[0]
    stride = max(1, inverse[0].size // _SAMPLES)
    for t in range(1, len(inverse)):
        scale, shift = _fit(inverse[t].reshape(-1)[::stride], aligned[t - 1].reshape(-1)[::stride])
        aligned[t] = np.where(inverse[t] > 0, np.maximum(scale * inverse[t] + shift, 0), 0)  # the sky stays there
    return aligned


def _fit(x: np.ndarray, y: np.ndarray, rounds: int = 10) -> tuple[float, float]:
    """Robust scale and shift with ``scale * x + shift`` near y; (1, 0) where the pixels determine none."""
    known = (x > 0) & (y > 0)
    x, y = x[known], y[known]
    if x.size < 16:
        return 1.0, 0.0
    weight = np.ones_like(x)
    scale, shift = 1.0, 0.0
    for _ in range(rounds):
        total = weight.sum()
        mean_x, mean_y = (weight @ x) / total, (weight @ y) / total
        spread_x, spread_y = weight @ (x - mean_x) ** 2, weight @ (y - mean_y) ** 2
        if not (spread_x > 0 and spread_y > 0):
            return 1.0, 0.0
        scale = float(np.sqrt(spread_y / spread_x))
        shift = float(mean_y - scale * mean_x)
        residual = np.abs(scale * x + shift - y)
        noise = 1.4826 * np.median(residual) + 1e-9 * np.abs(y).max()
        weight = 1 / (1 + (residual / (2 * noise)) ** 2) ** 2
    return scale, shift


def pivot_depth(depth: Float[AnyArray, "T H W"]) -> float:
    """The distance of the first frame's subject, which the cameras travel about, scene units.

    The subject is taken to be the nearer half of the frame's middle (the central half of its rows and columns), and its
    distance the median there: the middle's lower quartile. So neither the wall behind a person counts nor the ground at
    the lower edge. Nor does what lies at the far limit, the sky or what was not measured: if there is nothing else in
    the middle, the rest of the frame is looked at, and then the clip.
    """
    depth = np.asarray(depth)
    height, width = depth.shape[1:]
    middle = np.s_[0, height // 4 : height - height // 4, width // 4 : width - width // 4]
    near = depth < depth.max()
    if not near.any() or depth.max() < _RANGE / 2 * np.median(depth[near]):
        near[:] = True  # nothing lies at the limit
    where = next(where for where in (middle, 0, ...) if near[where].any())
    return float(np.quantile(depth[where][near[where]], 0.25))
