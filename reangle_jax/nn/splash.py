"""Attention on TPUs: JAX's splash kernel, fed sequences of any length.

The kernel wants whole blocks, and 17,776 tokens (CogVideoX) have no divisor to speak of. The sequence is padded to
whole blocks. A head of 64 channels fills half of the lanes that it is computed in: one of the free ones, 1 in queries
and far below 0 in the keys of pads, takes these out of every softmax at no cost. Where heads fill their lanes, pads
form a segment of their own, which the kernel compares logit by logit. Rows of pads among the queries are cut off.

JAX's kernel takes no bound of the logits in place of their running maximum (tokamax's ``max_logit_const``).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jaxtyping import Array, Float

LANES = 128
_NEVER = -30000.0  # a logit beside which any other is infinite
_UNIT = 512


class Blocks(NamedTuple):
    """The largest rectangle of logits in on-chip memory: queries, keys, and keys of one product."""

    q: int
    kv: int
    compute: int


# By the compiler's schedules (`benchmarks/splash_schedule.py`). Long blocks of keys mean few partial sums of the
# queries' gradient in the fused backward pass, which are kept in float32 and added up at the end.
FORWARD, BACKWARD = Blocks(1280, 3584, 256), Blocks(512, 3584, 512)


def padded_length(length: int) -> int:
    """The next length that blocks divide: a multiple of 512, of 128 for shorter sequences."""
    unit = _UNIT if length > _UNIT else LANES
    return -(-length // unit) * unit


def _divisor(length: int, limit: int) -> int:
    return next(size for size in range(min(limit, length), 0, -LANES) if length % size == 0)


def fitting(most: Blocks, queries: int, keys: int) -> Blocks:
    """The largest blocks, multiples of 128, that divide padded sequences and are no larger than ``most``."""
    kv = _divisor(keys, most.kv)
    return Blocks(_divisor(queries, most.q), kv, _divisor(kv, most.compute))


@functools.lru_cache
def _block_sizes(queries: int, keys: int) -> kernels.BlockSizes:
    forward, backward = (fitting(most, queries, keys) for most in (FORWARD, BACKWARD))
    return kernels.BlockSizes(
        block_q=forward.q,
        block_kv=forward.kv,
        block_kv_compute=forward.compute,
        block_q_dkv=backward.q,
        block_kv_dkv=backward.kv,
        block_kv_dkv_compute=backward.compute,
        use_fused_bwd_kernel=True,
    )


def splash(
    q: Float[Array, "B Sq N D"],
    k: Float[Array, "B Sk N D"],
    v: Float[Array, "B Sk N D"],
    *,
    scale: float,
    saved: str,
    interpret: bool = False,
) -> Float[Array, "B Sq N D"]:
    """Attention over the sequence axis with the splash kernel, differentiable; the logits are scaled.

    The output and the softmax's log-sum can be kept by a checkpoint policy under the name ``saved``. For tests,
    ``interpret`` runs the kernel's arithmetic without a TPU, slowly.
    """
    heads, queries, keys = q.shape[2], padded_length(q.shape[1]), padded_length(k.shape[1])
    in_lanes = keys > k.shape[1] and q.shape[-1] % LANES != 0

    def head_major(x: Array, lane: Array | None = None) -> Array:
        """[B, N, padded, D], or with one channel more in lanes that are filled up with zeros."""
        padded, width = padded_length(x.shape[1]), x.shape[-1]
        free = 0 if lane is None else -width % LANES
        x = jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0), (0, free))).swapaxes(1, 2)
        if lane is None:
            return x
        # Added, not joined: one pass over x, where a joined part would be written out for every head before.
        is_lane = jnp.arange(width + free) == width
        return x + jnp.where(is_lane, lane[:, None], 0.0).astype(x.dtype)

    mask = kernels.MultiHeadMask([kernels.FullMask((queries, keys))] * heads)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # the kernel's own code needs both
        kernel = kernels.make_splash_mha_single_device(
            mask, block_sizes=_block_sizes(queries, keys), residual_checkpoint_name=saved, interpret=interpret
        )
        is_pad = jnp.arange(keys) >= k.shape[1]
        segmented = keys > k.shape[1] and not in_lanes
        real = jnp.zeros((queries,), jnp.int32)
        segments = kernels.SegmentIds(q=real, kv=is_pad.astype(jnp.int32)) if segmented else None
        always, never = (jnp.ones((queries,)), jnp.where(is_pad, _NEVER, 0.0)) if in_lanes else (None, None)
        batched = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))
        # The scale goes into the queries: the kernel has none.
        y: Any = batched(head_major(q * jnp.asarray(scale, q.dtype), always), head_major(k, never), head_major(v))
    return y.swapaxes(1, 2)[:, : q.shape[1]].astype(q.dtype)
