"""Attention: one signature, several implementations. ``plain`` is the reference that the others are tested against."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from reangle_jax.nn.choices import IMPLEMENTATIONS, PLATFORMS
from reangle_jax.nn.layouts import Axes, attend, on_each_device
from reangle_jax.nn.products import einsum, matmul, precision
from reangle_jax.nn.remat import ATTENTION as SAVED

_TOKENS: Axes = ("batch", None, "heads", None)
_LOGITS: Axes = ("batch", "heads", None, None)

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Traces for a platform (``tpu``, ``gpu``) that this process does not run on, for compilation ahead of time."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """What programs are traced for: this process's backend, or that of `compiling_for`."""
    return _target.get() or jax.default_backend()


def attention(
    q: Float[Array, "B Sq N D"],
    k: Float[Array, "B Sk N D"],
    v: Float[Array, "B Sk N D"],
    *,
    bias: Float[Array, "b N Sq Sk"] | None = None,
    scale: float | None = None,
    impl: str = "plain",
    lengths: Sequence[int] | None = None,
) -> Float[Array, "B Sq N D"]:
    """Scaled dot-product attention over the sequence axis, head by head.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the logits before the softmax; its leading axis is 1 or B.
        scale: factor on the logits; 1/sqrt(D) by default.
        impl: ``plain`` (any platform, materialises the logits in float32), ``mapped`` (one head at a time, without
            bias: the fastest on CPUs), ``xla`` (jax.nn's, any platform), ``cudnn`` (fused, NVIDIA Ampere and newer)
            or ``splash`` (fused, TPUs, self-attention without bias). The fused ones are for 16-bit types. On a mesh
            (``reangle_jax.mesh.use``) each device computes its share of the batch and of the heads.
        lengths: of the sequences that q, k and v hold, where they lie divided over the mesh as tokens do
            (`reangle_jax.nn.layouts.attend`); None where each device has all tokens.

    Returns:
        The mix of values, in the queries' dtype.

    Raises:
        ValueError: ``impl`` is unknown, or cannot take a bias or the dtype; divided tokens have one.
        RuntimeError: ``cudnn`` was asked for without a GPU, or ``splash`` without a TPU.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attention impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if bias is not None and (impl in ("mapped", "splash") or lengths is not None):
        raise ValueError(f"attention impl {impl!r} takes no bias here: use 'plain' or 'xla', on undivided tokens")
    needed, here = PLATFORMS.get(impl), platform()
    if needed and here != needed:
        raise RuntimeError(f"attention impl {impl!r} needs a {needed.upper()}, the backend is {here!r}: use 'xla'")
    if needed and q.dtype.itemsize != 2:
        raise ValueError(f"attention impl {impl!r} is for 16-bit types, not {q.dtype}: use 'mapped' or 'xla'")
    kernel = _kernel(impl, scale)
    if lengths is not None:
        return attend(kernel, q, k, v, lengths)
    if impl in ("plain", "xla"):
        return kernel(q, k, v, bias)  # the compiler divides it
    operands = [(q, _TOKENS), (k, _TOKENS), (v, _TOKENS)] + ([] if bias is None else [(bias, _LOGITS)])
    return on_each_device(kernel, _TOKENS, *operands)


def _kernel(impl: str, scale: float) -> Callable[..., Array]:
    """An implementation, of (q, k, v, bias=None)."""
    if impl == "splash":
        from reangle_jax.nn.splash import splash  # late: it brings Pallas, half a second for those who need none

        return functools.partial(splash, scale=scale, saved=SAVED)
    if impl in ("plain", "mapped"):
        return functools.partial(_plain if impl == "plain" else _mapped, scale=scale)
    return functools.partial(_library, scale=scale, impl=impl)


def _library(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float, impl: Any) -> Array:
    # jax.nn's own code promotes 16-bit types by itself, and says nothing of the precision of its products.
    highest = precision(q.dtype).name.lower()
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision(highest):
        y = jax.nn.dot_product_attention(q, k, v, bias, scale=scale, implementation=impl)
    return checkpoint_name(y, SAVED) if impl == "xla" else y


def _plain(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float) -> Array:
    logits = einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias.astype(jnp.float32), logits.shape)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return checkpoint_name(einsum("bnqk,bknd->bqnd", weights, v), SAVED)


def _head_major(x: Array) -> Array:  # [B, S, N, D] -> [B * N, S, D]
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _transposed(x: Array) -> Array:  # [B, S, N, D] -> [B * N, D, S]
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[3], x.shape[1])


def _token_major(x: Array, heads: int) -> Array:  # [B * N, S, D] -> [B, S, N, D]
    return x.reshape(-1, heads, *x.shape[1:]).swapaxes(1, 2)


_dot = functools.partial(matmul, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mapped(q: Array, k: Array, v: Array, scale: float) -> Array:
    """A loop over videos and heads that keeps each softmax's log-sum for the backward pass, and no logits.

    One head's logits stay in a core's cache, and every product inside the loop reads its operands row by row: the
    gradient's arithmetic is FlashAttention's (Dao et al., 2022, arXiv 2205.14135), with a whole head for a block.
    """
    return _mapped_forward(q, k, v, scale)[0]


def _mapped_forward(q: Array, k: Array, v: Array, scale: float):
    def one_head(operands):
        q, k_t, v = operands
        logits = _dot(q, k_t) * scale
        top = jnp.max(logits, -1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = jnp.sum(weights, -1, keepdims=True)
        # The sum divides the few channels of the result instead of the many weights.
        return (_dot(weights.astype(v.dtype), v) / total).astype(q.dtype), top + jnp.log(total)

    y, log_sum = jax.lax.map(one_head, (_head_major(q), _transposed(k), _head_major(v)))
    y, log_sum = checkpoint_name(_token_major(y, q.shape[2]), SAVED), checkpoint_name(log_sum, SAVED)
    return y, (q, k, v, y, log_sum)


def _mapped_backward(scale: float, saved, dy: Array):
    q, k, v, y, log_sum = saved

    def one_head(operands):
        q, q_t, k, k_t, v_t, y, dy, dy_t, log_sum = operands
        weights = jnp.exp(_dot(q, k_t) * scale - log_sum)
        inner = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), -1, keepdims=True)
        dlogits = (weights * (_dot(dy, v_t) - inner) * scale).astype(q.dtype)
        return _dot(dlogits, k), _dot(q_t, dlogits), _dot(dy_t, weights.astype(dy.dtype))

    operands = (_head_major(q), _transposed(q), _head_major(k), _transposed(k), _transposed(v))
    operands += (_head_major(y), _head_major(dy), _transposed(dy), log_sum)
    dq, dk, dv = jax.lax.map(one_head, operands)
    heads = q.shape[2]
    dk, dv = dk.swapaxes(1, 2), dv.swapaxes(1, 2)
    return tuple(_token_major(d, heads).astype(x.dtype) for d, x in ((dq, q), (dk, k), (dv, v)))


_mapped.defvjp(_mapped_forward, _mapped_backward)
