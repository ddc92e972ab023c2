"""Attention: one signature, several implementations. ``plain`` is the reference that the others are tested against."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

IMPLEMENTATIONS = ("plain", "xla", "cudnn")


def attention(
    q: Float[Array, "B Sq N D"],
    k: Float[Array, "B Sk N D"],
    v: Float[Array, "B Sk N D"],
    *,
    bias: Float[Array, "b N Sq Sk"] | None = None,
    scale: float | None = None,
    impl: str = "plain",
) -> Float[Array, "B Sq N D"]:
    """Scaled dot-product attention over the sequence axis, head by head.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the logits before the softmax; its leading axis is 1 or B.
        scale: factor on the logits; 1/sqrt(D) by default.
        impl: ``plain`` (any platform, materialises the logits in float32), ``xla`` (jax.nn's, any platform) or
            ``cudnn`` (fused, NVIDIA Ampere and newer, 16-bit types).

    Returns:
        The mix of values, in the queries' dtype.

    Raises:
        ValueError: ``impl`` is unknown.
        RuntimeError: ``cudnn`` was asked for without a GPU.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attention impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if impl == "plain":
        return _plain(q, k, v, bias, scale)
    if impl == "cudnn" and jax.default_backend() != "gpu":
        raise RuntimeError(f"attention impl 'cudnn' needs a GPU, the backend is {jax.default_backend()!r}: use 'xla'")
    return jax.nn.dot_product_attention(q, k, v, bias, scale=scale, implementation=impl)  # type: ignore[arg-type]


def _plain(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias.astype(jnp.float32), logits.shape)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v)
