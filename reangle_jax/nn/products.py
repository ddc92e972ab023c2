"""Matrix products and convolutions at the precision of their type: the one place that decides it.

float32 means float32 here. Left to themselves, GPUs round such operands to 10 bits of mantissa (TF32) and TPUs to 7
(bfloat16): point maps, depth and the published figures of scores need all 23. A training that can do with less asks for
it, ``jax.config.update("jax_default_matmul_precision", REDUCED)``; convolutions then are products of matrices too, for
cuDNN's own are slow until they have been tuned.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from reangle_jax.arrays import AnyArray

Padding = tuple[tuple[int, int], tuple[int, int]]
REDUCED = "tensorfloat32"


def reduced() -> bool:
    """Whether the caller has asked for the device's own rounding of float32 operands."""
    # JAX makes its options attributes when it is imported: no type checker sees them.
    return jax.config.jax_default_matmul_precision == REDUCED  # type: ignore[attr-defined]


def precision(dtype: DTypeLike) -> lax.Precision:
    """Of products of this type: all bits of float32; 16-bit operands are multiplied as they are."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize > 2 and not reduced() else lax.Precision.DEFAULT


def einsum(subscripts: str, x: AnyArray, y: AnyArray, *, preferred_element_type: DTypeLike | None = None) -> Array:
    """``jnp.einsum`` of two operands of one type."""
    return jnp.einsum(subscripts, x, y, precision=precision(x.dtype), preferred_element_type=preferred_element_type)


def matmul(x: Array, y: Array, *, preferred_element_type: DTypeLike | None = None) -> Array:
    """``jnp.matmul`` of two operands of one type."""
    return jnp.matmul(x, y, precision=precision(x.dtype), preferred_element_type=preferred_element_type)


def conv2d(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """Convolution of [B, H, W, C] with a kernel [kh, kw, in, out] of its type, summed and returned in float32.

    The caller adds what there is to add and rounds once.
    """
    if reduced():
        return _conv2d_by_products(x, kernel, stride, padding)
    return (
        _conv2d(x, kernel, stride, padding) if x.dtype == jnp.float32 else _conv2d_widened(x, kernel, stride, padding)
    )


def _windows(x: Array, size: tuple[int, ...], stride: int, padding: Padding) -> Array:
    """What each place of a convolution sees, [B, h, w, kh * kw * in]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], size, strict=True))
    if size == (stride, stride):
        x = x[:, : stride * height, : stride * width].reshape(len(x), height, stride, width, stride, -1)
        return x.swapaxes(2, 3).reshape(len(x), height, width, -1)
    rows, columns = (stride * (n - 1) + 1 for n in (height, width))
    taps = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(size[0]) for j in range(size[1])]
    return jnp.concatenate(taps, -1)


# The windows are made again for the backward pass: kept, they would be as many times the picture as there are taps.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_by_products(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    seen = _windows(x, kernel.shape[:2], stride, padding)
    return matmul(seen, kernel.reshape(-1, kernel.shape[-1]), preferred_element_type=jnp.float32)


def _conv2d_by_products_forward(x: Array, kernel: Array, stride: int, padding: Padding):
    return _conv2d_by_products(x, kernel, stride, padding), (x, kernel)


def _conv2d_by_products_backward(stride: int, padding: Padding, saved: tuple[Array, Array], dy: Array):
    x, kernel = saved
    dy = dy.astype(x.dtype)
    seen, back = jax.vjp(lambda x: _windows(x, kernel.shape[:2], stride, padding), x)
    dx = back(matmul(dy, kernel.reshape(-1, kernel.shape[-1]).T))[0]
    # A small matrix, summed over very many places: by pictures, for one product would keep but few processors busy.
    each = einsum("bnc,bnd->bcd", *(y.reshape(len(x), -1, y.shape[-1]) for y in (seen, dy)))
    return dx, jnp.sum(each, axis=0).reshape(kernel.shape)


_conv2d_by_products.defvjp(_conv2d_by_products_forward, _conv2d_by_products_backward)


def _conv2d(x: Array, kernel: Array, stride: int, padding: Padding, result: DTypeLike | None = None) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision(x.dtype),
        preferred_element_type=result,
    )


# JAX cannot differentiate a convolution whose result is wider than its operands: the gradient's own convolutions would
# mix two types. They take the result's gradient in the operands' type, as the plain convolution's do.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_widened(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return _conv2d(x, kernel, stride, padding, jnp.float32)


def _conv2d_widened_forward(x: Array, kernel: Array, stride: int, padding: Padding):
    return _conv2d_widened(x, kernel, stride, padding), (x, kernel)


def _conv2d_widened_backward(stride: int, padding: Padding, saved: tuple[Array, Array], dy: Array):
    _, gradients = jax.vjp(lambda x, kernel: _conv2d(x, kernel, stride, padding), *saved)
    return gradients(dy.astype(saved[0].dtype))


_conv2d_widened.defvjp(_conv2d_widened_forward, _conv2d_widened_backward)
