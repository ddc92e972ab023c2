"""Affine map with an optional low-rank adapter (LoRA, Hu et al., 2021, arXiv 2106.09685) inside."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from reangle_jax.nn import quantised, remat
from reangle_jax.nn.products import matmul


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Rank and strength of an adapter: the layer adds ``alpha / rank * (x @ a) @ b``."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor on the adapter's output."""
        return self.alpha / self.rank


def uniform_fan_in(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Uniform in ±1/sqrt(fan in), the fan in being the product of all axes but the last: PyTorch's default."""
    bound = 1.0 / math.sqrt(max(1, math.prod(shape[:-1])))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nnx.Module):
    """``y = x @ kernel + bias``, plus the adapter's term where one is configured.

    The adapter starts at ``b = 0``, so that a fresh one changes no bit of the output. Its parameters are
    ``nnx.LoRAParam``; the base's are plain ``nnx.Param`` (a filter for ``nnx.Param`` catches both).

    Args:
        in_features: width of the input's last axis.
        out_features: width of the output's last axis.
        use_bias: whether to add a bias.
        axes: logical names of the kernel's two axes, for the mesh rules.
        lora: the adapter, or None.
        init_scale: factor on the kernel's initial values.
        dtype: what is computed in.
        param_dtype: what is stored.
        kernel_dtype: what the kernel is stored in: ``int8``, with a scale for each output; empty: in ``param_dtype``.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        axes: tuple[str | None, str | None] = (None, None),
        lora: LoRAConfig | None = None,
        init_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        kernel_dtype: str = "",
        rngs: nnx.Rngs,
    ):
        kernel = uniform_fan_in(rngs.params(), (in_features, out_features), param_dtype) * init_scale
        scale = None
        if kernel_dtype == quantised.INT8:
            kernel, scale = quantised.quantise(kernel)
        self.kernel = nnx.Param(kernel, axes=axes)
        self.kernel_scale = None if scale is None else nnx.Param(scale, axes=axes[1:])
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype), axes=axes[1:]) if use_bias else None
        # Adapters train in float32 whatever the base is stored in: AdamW's steps vanish in bfloat16.
        self.lora_a = (
            nnx.LoRAParam(
                uniform_fan_in(rngs.params(), (in_features, lora.rank), jnp.dtype(jnp.float32)), axes=(axes[0], "lora")
            )
            if lora
            else None
        )
        self.lora_b = (
            nnx.LoRAParam(jnp.zeros((lora.rank, out_features), jnp.float32), axes=("lora", axes[1])) if lora else None
        )
        self.lora_scale = lora.scale if lora else 0.0
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Applies the map."""
        x = x.astype(self.dtype)
        if self.kernel_scale is not None:
            y = quantised.product(x, self.kernel[...], self.kernel_scale[...])
        else:
            y = matmul(x, self.kernel[...].astype(self.dtype))
        if self.bias is not None:
            y = y + jnp.broadcast_to(self.bias[...].astype(self.dtype), y.shape)
        if self.lora_a is not None and self.lora_b is not None:
            narrow = remat.product(matmul(x, self.lora_a[...].astype(self.dtype)))
            y = y + matmul(narrow, self.lora_b[...].astype(self.dtype)) * self.lora_scale
        return y
