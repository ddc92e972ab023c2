"""What a block keeps of its forward pass for the backward one, and what it computes again: policies by name."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

ATTENTION = "attention"
"""Names all that attention's backward pass needs of its forward one, which costs more to compute again than to keep."""
_PRODUCT = "product"
_KEPT = {"full": (), "attention": (ATTENTION,), "matmuls": (ATTENTION, _PRODUCT)}
# cuDNN's results have no names; they are known by their primitive.
_CUDNN_FORWARD = "dot_product_attention_fwd"


def product(x: Array) -> Array:
    """Names what a block's matrix product gave and its backward pass needs."""
    return checkpoint_name(x, _PRODUCT)


def rematerialised(body: Callable, remat: str) -> Callable:
    """The body of a loop over blocks, differentiated as a policy says.

    Args:
        body: to be scanned.
        remat: ``full`` keeps what enters a block and computes all of it again; ``attention`` also keeps what attention
            gave; ``matmuls`` also what the large products gave (`product`); ``none`` keeps everything.
    """
    if remat == "none":
        return body
    # In a scan the backward pass is another loop: XLA cannot merge the two computations, and needs no guard.
    return jax.checkpoint(body, policy=_policy(_KEPT[remat]), prevent_cse=False)


def _policy(names: tuple[str, ...]) -> Callable[..., bool]:
    def is_kept(primitive: Any, *_: Any, **parameters: Any) -> bool:
        if primitive.name == "name":
            return parameters["name"] in names
        return ATTENTION in names and primitive.name.startswith(_CUDNN_FORWARD)

    return is_kept
