"""A stack of equal blocks: built once with a leading axis for the layer, run by scanning a rematerialised body."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reangle_jax.nn import layouts
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.remat import rematerialised


class Stack(nnx.Module):
    """``depth`` blocks of one kind, made as ``block(config, execution, rngs=...)`` and applied in turn to a carry.

    Every parameter of ``layers`` has a leading axis of size ``depth``. One compiled body serves all layers, so that
    compile time does not grow with depth; for the backward pass it keeps what the execution's ``remat`` says.

    With ``tokens`` the carry's arrays [B, S, C] are tokens that lie divided over the mesh (`reangle_jax.nn.layouts`),
    and so they enter and leave each block; a block's parameters are gathered while it is computed.
    """

    def __init__(
        self,
        block: Callable[..., nnx.Module],
        config: Any,
        execution: Execution,
        depth: int,
        *,
        tokens: bool = False,
        rngs: nnx.Rngs,
    ):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def build(layer_rngs: nnx.Rngs) -> nnx.Module:
            return block(config, execution, rngs=layer_rngs)

        self.layers = build(rngs)
        self.depth = depth
        self.remat = execution.remat
        self.tokens = tokens

    def __call__(self, carry, *shared):
        """Applies ``carry = block(carry, *shared)`` for every block; each keeps the carry's shapes and dtypes."""
        graphdef, state = nnx.split(self.layers)

        def body(carry, layer):
            return self._apply(graphdef, layer, carry, shared), None

        carry, _ = jax.lax.scan(self._rematerialised(body), carry, state)
        return carry

    def with_taps(self, carry, *shared, depth: int | None = None):
        """Like calling, of the first ``depth`` blocks; also returns every block's output, stacked on a leading axis."""
        graphdef, state = nnx.split(self.layers)

        def body(carry, layer):
            carry = self._apply(graphdef, layer, carry, shared)
            return carry, carry

        if depth in (None, self.depth):
            return jax.lax.scan(self._rematerialised(body), carry, state)
        # Layers are taken one by one: a part of the stack would be copied.
        pick = self._rematerialised(lambda carry, k: body(carry, jax.tree.map(lambda x: x[k], state)))
        return jax.lax.scan(pick, carry, jnp.arange(depth))

    def at(self, blocks: Sequence[int], carry, *shared):
        """Like calling, but gives a list of some blocks' outputs, without keeping the others'.

        Raises:
            ValueError: ``blocks``, counted from 1, is not ascending, or does not end with the last block.
        """
        if list(blocks) != sorted(set(blocks)) or blocks[0] < 1 or blocks[-1] != self.depth:
            raise ValueError(f"blocks {tuple(blocks)} must ascend from 1 or more to {self.depth}")
        graphdef, state = nnx.split(self.layers)
        # A block that nobody asked for writes where the next one asked for will write over it.
        places = jnp.asarray(np.searchsorted(blocks, np.arange(1, self.depth + 1)), jnp.int32)
        apply = self._rematerialised(lambda carry, layer: self._apply(graphdef, layer, carry, shared))

        def body(kept, layer):
            (carry, outputs), (place, layer) = kept, layer
            carry = apply(carry, layer)
            return (carry, jax.tree.map(lambda o, c: o.at[place].set(c), outputs, carry)), None

        outputs = jax.tree.map(lambda c: jnp.zeros((len(blocks), *c.shape), c.dtype), carry)
        (_, outputs), _ = jax.lax.scan(body, (carry, outputs), (places, state))
        return [jax.tree.map(lambda o, k=k: o[k], outputs) for k in range(len(blocks))]

    def _apply(self, graphdef, layer, carry, shared):
        if not self.tokens:
            return nnx.merge(graphdef, layer)(carry, *shared)
        block = nnx.merge(graphdef, layouts.gather(layer))
        return _as_tokens(block(_as_tokens(carry), *shared))

    def _rematerialised(self, body: Callable) -> Callable:
        return rematerialised(body, self.remat)


def _as_tokens(carry):
    return jax.tree.map(lambda x: layouts.constrain(x, layouts.TOKENS) if x.ndim == 3 else x, carry)
