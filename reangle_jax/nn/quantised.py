"""Kernels in int8: symmetric about zero, with one float32 scale for each output channel.

Half of bfloat16's memory. No float copy of more than one kernel is ever made: the scale is applied to a product's
result, and the kernel becomes a float where that product reads it. An int8 is exact in bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from reangle_jax.arrays import AnyArray
from reangle_jax.nn.products import matmul

INT8 = "int8"
SCALE = "kernel_scale"
"""What the scales' parameter is called, beside ``kernel``."""
_LARGEST = 127


def quantise(
    kernel: Float[AnyArray, "*stack in out"],
) -> tuple[Int8[AnyArray, "*stack in out"], Float[AnyArray, "*stack out"]]:
    """The nearest int8 multiples of each output channel's largest value over 127, and these float32 scales."""
    xp = jnp if isinstance(kernel, jax.Array) else np
    values = kernel.astype(np.float32)
    scale = xp.max(xp.abs(values), axis=-2, keepdims=True) / np.float32(_LARGEST)
    # A channel of zeros has the scale 0, and any divisor gives zeros.
    steps = xp.rint(values / xp.where(scale == 0, np.float32(1), scale))
    return steps.astype(np.int8), scale[..., 0, :]


# Where nothing around it is rematerialised, the backward pass would keep every layer's kernel as a float.
@functools.partial(jax.checkpoint, prevent_cse=False)
def product(
    x: Float[Array, "*batch in"], kernel: Int8[Array, "in out"], scale: Float[Array, " out"]
) -> Float[Array, "*batch out"]:
    """``x @ (kernel * scale)``, in the type of ``x``."""
    y = matmul(x, kernel.astype(x.dtype)).astype(jnp.float32)
    return (y * scale.reshape((1,) * (y.ndim - 1) + (-1,))).astype(x.dtype)
