"""Convolutions over channels-last images and videos.

Whatever they are computed in, taps and bias are summed in float32 and the sum is rounded once.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reangle_jax.nn.linear import uniform_fan_in
from reangle_jax.nn.products import Padding, conv2d


class Conv2D(nnx.Module):
    """Two-dimensional convolution of [B, H, W, C] input; the kernel is stored as [kh, kw, in, out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | Padding = 0,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), shape, param_dtype), axes=(None,) * 4)
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype), axes=(None,)) if use_bias else None
        self.stride = stride
        self.padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w out"]:
        """Convolves."""
        y = conv2d(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, self.padding)
        return _finished(y, self.bias, self.dtype)

    def of_doubled(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W out"]:
        """Convolves the image of twice the height and width that repeats every pixel; for 3x3 kernels with padding 1.

        A window over repeated pixels sees two distinct rows and two distinct columns, so that each of the four parities
        of the output is a 2x2 convolution of ``x`` itself: 16 products in place of 36, and no doubled image in memory.
        """
        batch, height, width, _ = x.shape
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(jnp.float32)
        rows = []
        for i in (0, 1):
            taller = _fold(kernel, i, axis=0)
            row = [conv2d(x, _fold(taller, j, axis=1).astype(self.dtype), 1, ((1 - i, i), (1 - j, j))) for j in (0, 1)]
            rows.append(jnp.stack(row, axis=3).reshape(batch, height, 2 * width, -1))
        y = jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)
        return _finished(y, self.bias, self.dtype)


def _finished(y: Array, bias: nnx.Param | None, dtype: DTypeLike) -> Array:
    """The sum of all taps with its bias, rounded."""
    y = y if bias is None else y + bias[...].astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(dtype)


def _fold(kernel: Array, parity: int, *, axis: int) -> Array:
    """Three taps as the two left on repeated pixels: the last two coincide at even places, the first two at odd."""
    first, second, third = jnp.split(kernel, 3, axis=axis)
    return jnp.concatenate([first, second + third] if parity == 0 else [first + second, third], axis=axis)


class Conv3D(nnx.Module):
    """Three-dimensional convolution of [B, T, H, W, C] input, stride 1, zero padding in space and none in time.

    The caller supplies the frames on either side: a causal model prepends its own past. It is computed as a sum of
    two-dimensional convolutions, one for each tap in time: the same sum, and on CPUs three times faster than the
    native three-dimensional one. The kernel, of odd size, is stored as [kt, kh, kw, in, out].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(uniform_fan_in(rngs.params(), shape, param_dtype), axes=(None,) * 5)
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype), axes=(None,)) if use_bias else None
        self.kernel_size = kernel_size
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t H W out"]:
        """Convolves; the output has ``kernel_size - 1`` frames fewer than the input."""
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        batch, frames, height, width, channels = x.shape
        frames -= self.kernel_size - 1
        pad = self.kernel_size // 2
        y = None
        for tap in range(self.kernel_size):
            image = x[:, tap : tap + frames].reshape(batch * frames, height, width, channels)
            term = conv2d(image, kernel[tap], 1, ((pad, pad), (pad, pad)))
            y = term if y is None else y + term
        assert y is not None
        return _finished(y, self.bias, self.dtype).reshape(batch, frames, height, width, -1)

    def from_rest(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W out"]:
        """Convolves a video whose first frame stood still before it: as many frames come out as go in.

        The taps' outputs are shifted in time, not their inputs: one copy of the input serves the gradient of all taps.
        """
        if x.shape[1] == 1:
            return self.of_still(x)
        batch, frames, height, width, channels = x.shape
        images = x.astype(self.dtype).reshape(batch * frames, height, width, channels)
        pad = self.kernel_size // 2
        y = None
        for kernel in self.kernel[...].astype(self.dtype):
            term = conv2d(images, kernel, 1, ((pad, pad), (pad, pad))).reshape(batch, frames, height, width, -1)
            y = term if y is None else term + jnp.concatenate([y[:, :1], y[:, :-1]], axis=1)
        assert y is not None
        return _finished(y, self.bias, self.dtype)

    def of_still(self, x: Float[Array, "B 1 H W C"]) -> Float[Array, "B 1 H W out"]:
        """Convolves a video that stands still, given by one frame: the taps in time add up to one 2D kernel."""
        kernel = jnp.sum(self.kernel[...].astype(jnp.float32), axis=0).astype(self.dtype)
        pad = self.kernel_size // 2
        y = conv2d(x[:, 0].astype(self.dtype), kernel, 1, ((pad, pad), (pad, pad)))
        return _finished(y, self.bias, self.dtype)[:, None]
