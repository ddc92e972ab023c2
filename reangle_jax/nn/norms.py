"""Normalisation layers. Statistics are always float32 and two-pass: the one-pass form loses digits far from zero."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
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
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
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
        self, features: int, *, epsilon: float, dtype: jnp.dtype = jnp.float32, param_dtype: jnp.dtype = jnp.float32
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
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
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
        batch, channels = x.shape[0], x.shape[-1]
        grouped = x.astype(jnp.float32).reshape(batch, -1, self.groups, channels // self.groups)
        y = _standardise(grouped, (1, 3), self.epsilon).reshape(x.shape)
        y = y * _along_last(self.scale[...], y.ndim) + _along_last(self.bias[...], y.ndim)
        return y.astype(self.dtype)
