"""Normalisation layers. Statistics are always float32 and two-pass: the one-pass form loses digits far from zero."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def _standardise(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = jnp.mean(x, axes, keepdims=True)
    centred = x - mean
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + epsilon)


def _along_last(parameter: Array, ndim: int) -> Array:
    return parameter.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, with optional scale and bias."""

    def __init__(
        self,
        features: int,
        *,
        epsilon: float,
        use_affine: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.ones((features,), param_dtype), axes=(None,)) if use_affine else None
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype), axes=(None,)) if use_affine else None
        self.epsilon = epsilon
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        """Normalises."""
        y = _standardise(x.astype(jnp.float32), (-1,), self.epsilon)
        if self.scale is not None and self.bias is not None:
            y = y * _along_last(self.scale[...], y.ndim) + _along_last(self.bias[...], y.ndim)
        return y.astype(self.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, with a scale and no bias."""

    def __init__(
        self, features: int, *, epsilon: float, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
    ):
        self.scale = nnx.Param(jnp.ones((features,), param_dtype), axes=(None,))
        self.epsilon = epsilon
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        """Normalises."""
        x = x.astype(jnp.float32)
        y = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.epsilon)
        return (y * _along_last(self.scale[...], y.ndim)).astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation of channels-last input: statistics over every axis but the batch's, group by group."""

    def __init__(
        self,
        features: int,
        *,
        groups: int,
        epsilon: float,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if features % groups:
            raise ValueError(f"{groups} groups do not divide {features} features")
        self.scale = nnx.Param(jnp.ones((features,), param_dtype), axes=(None,))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype), axes=(None,))
        self.groups = groups
        self.epsilon = epsilon
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
        """Normalises."""
        x = x.astype(jnp.float32)
        centred = x - self._group_mean(x)
        factor = lax.rsqrt(self._group_mean(jnp.square(centred)) + self.epsilon)
        y = centred * (factor * _along_last(self.scale[...], x.ndim)) + _along_last(self.bias[...], x.ndim)
        return y.astype(self.dtype)

    def _group_mean(self, x: Array) -> Array:
        """Mean of each channel's group, [B, 1, ..., C]."""
        # Channel by channel first, and along the rows before all else: on CPUs four times faster than one reduction
        # over the split last axis.
        batch, ndim, channels = x.shape[0], x.ndim, x.shape[-1]
        x = jnp.mean(x, -2) if ndim > 3 else x
        x = jnp.mean(x, tuple(range(1, x.ndim - 1)))
        x = jnp.mean(x.reshape(batch, self.groups, -1), -1, keepdims=True)
        x = jnp.broadcast_to(x, (batch, self.groups, channels // self.groups))
        return x.reshape(batch, *(1,) * (ndim - 2), channels)
