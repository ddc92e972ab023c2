"""I3D (Carreira and Zisserman, 2017, arXiv 1705.07750): Inception inflated to three dimensions, of RGB.

What FVD compares is the tensor ``RGB/inception_i3d/Mean`` of DeepMind's published module: the logits, averaged over
time, before the softmax.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from reangle_jax.models.i3d.config import I3DConfig, Mixed
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear, uniform_fan_in
from reangle_jax.nn.products import conv2d

SIDE = 224  # pixels of the square that it sees
LEAST = 9  # frames: the last average is over two places in time, each of eight frames


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding SAME: before and behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pooled(x: Array, window: Sequence[int], strides: Sequence[int]) -> Array:
    return lax.reduce_window(x, np.asarray(-np.inf, x.dtype), lax.max, (1, *window, 1), (1, *strides, 1), "SAME")


class Unit(nnx.Module):
    """A cubic convolution, a batch norm without scale by its running statistics, and a ReLU."""

    def __init__(
        self, in_features: int, features: int, size: int, stride: int, config: I3DConfig, execution: Execution, *,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        dtypes = execution.dtypes(config.param_dtype)
        stored, shape = dtypes["param_dtype"], (size, size, size, in_features, features)
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), shape, stored), axes=(None,) * 5)
        self.bias = nnx.Param(jnp.zeros((features,), stored), axes=(None,))
        self.mean = nnx.Param(jnp.zeros((features,), stored), axes=(None,))
        self.variance = nnx.Param(jnp.ones((features,), stored), axes=(None,))
        self.stride, self.epsilon, self.dtype = stride, config.epsilon, jnp.dtype(dtypes["dtype"])

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w out"]:
        """Applies it; a sum of two-dimensional convolutions, one for each tap in time (see `nn.conv.Conv3D`)."""
        kernel, stride = self.kernel[...].astype(self.dtype), self.stride
        size = kernel.shape[0]
        padding = _same(x.shape[1], size, stride), _same(x.shape[2], size, stride), _same(x.shape[3], size, stride)
        frames = -(-x.shape[1] // stride)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
        y = None
        for tap in range(size):
            images = x[:, tap : tap + stride * (frames - 1) + 1 : stride]
            term = conv2d(images.reshape(-1, *x.shape[2:]), kernel[tap], stride, padding[1:])
            y = term if y is None else y + term
        assert y is not None
        mean, variance, bias = (
            p[...].astype(jnp.float32).reshape(1, 1, 1, -1) for p in (self.mean, self.variance, self.bias)
        )
        y = (y - mean) * lax.rsqrt(variance + self.epsilon) + bias
        return jax.nn.relu(y).astype(self.dtype).reshape(x.shape[0], frames, *y.shape[1:])


class InceptionModule(nnx.Module):
    """Four branches side by side; `units` are theirs in the order of the widths."""

    def __init__(self, in_features: int, widths: Mixed, config: I3DConfig, execution: Execution, *, rngs: nnx.Rngs):
        ins = (in_features, in_features, widths[1], in_features, widths[3], in_features)
        sizes = (1, 1, 3, 1, 3, 1)
        shapes = zip(ins, widths, sizes, strict=True)
        self.units = nnx.List([Unit(i, o, size, 1, config, execution, rngs=rngs) for i, o, size in shapes])

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W out"]:
        """Applies it."""
        narrow, before_a, a, before_b, b, pooled = self.units
        branches = [narrow(x), a(before_a(x)), b(before_b(x)), pooled(_pooled(x, (3, 3, 3), (1, 1, 1)))]
        return jnp.concatenate(branches, axis=-1)


class I3D(nnx.Module):
    """The network up to the averaged logits."""

    def __init__(self, config: I3DConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution(dtype=config.param_dtype)
        ins, kinds = (3, *config.stem[:2]), ((7, 2), (1, 1), (3, 1))
        self.stem = nnx.List([
            Unit(i, o, size, stride, config, execution, rngs=rngs)
            for i, o, (size, stride) in zip(ins, config.stem, kinds, strict=True)
        ])  # fmt: skip
        modules, width = [], config.stem[-1]
        for widths in (m for group in config.mixed for m in group):
            modules.append(InceptionModule(width, widths, config, execution, rngs=rngs))
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.mixed = nnx.List(modules)
        self.logits = Linear(
            width, config.classes, axes=(None, None), rngs=rngs, **execution.dtypes(config.param_dtype)
        )
        self.config = config

    def __call__(self, videos: Float[Array, "B T H W 3"]) -> Float[Array, "B classes"]:
        """Averaged logits of RGB videos of values -1 to 1.

        Raises:
            ValueError: the frames are not `SIDE` pixels high and wide, or fewer than `LEAST`.
        """
        if videos.shape[2:4] != (SIDE, SIDE) or videos.shape[1] < LEAST:
            raise ValueError(f"videos of {videos.shape[1:4]}: I3D sees {LEAST} frames or more of {SIDE}x{SIDE}")
        first, second, third = self.stem
        x = _pooled(first(videos), (1, 3, 3), (1, 2, 2))
        x = third(second(x))
        modules = iter(self.mixed)
        pools = (((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)))
        for group, pool in zip(self.config.mixed, pools, strict=True):
            x = _pooled(x, *pool)
            for _ in group:
                x = next(modules)(x)
        # An average pool over 2 x 7 x 7 without padding, then over time.
        x = jnp.mean(x.astype(jnp.float32), axis=(2, 3))
        return self.logits(jnp.mean((x[:, 1:] + x[:, :-1]) / 2, axis=1)).astype(jnp.float32)
