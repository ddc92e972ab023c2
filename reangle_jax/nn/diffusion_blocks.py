"""What the blocks of diffusion transformers are made of: embeddings of times, modulations, the feed-forward."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from reangle_jax.nn import remat
from reangle_jax.nn.embeddings import timestep_embedding
from reangle_jax.nn.execution import Execution
from reangle_jax.nn.linear import Linear, LoRAConfig

# Starting modulations and outputs small lets a deep stack train from scratch (adaLN-Zero; Peebles & Xie, 2023).
SMALL_INIT = 0.1
# The axis by which a block's matrix may lie divided; it is gathered before the block is computed.
GATHERED = "gathered"


def linear_builder(
    param_dtype: str, execution: Execution, rngs: nnx.Rngs, *, kernel_dtype: str = ""
) -> Callable[..., Linear]:
    """Builds the maps of one model: what all have in common is said once.

    Returns:
        (in_features, out_features, axes, lora=None, init_scale=1.0) -> `Linear`.
    """

    def build(
        in_features: int,
        out_features: int,
        axes: tuple[str | None, str | None],
        lora: LoRAConfig | None = None,
        init_scale: float = 1.0,
    ) -> Linear:
        return Linear(
            in_features,
            out_features,
            axes=axes,
            lora=lora,
            init_scale=init_scale,
            **execution.dtypes(param_dtype),
            kernel_dtype=kernel_dtype,
            rngs=rngs,
        )

    return build


class EmbeddingMLP(nnx.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, in_features: int, out_features: int, linear: Callable[..., Linear]):
        self.linear_1 = linear(in_features, out_features, (None, None))
        self.linear_2 = linear(out_features, out_features, (None, None))

    def __call__(self, x: Float[Array, "B in"]) -> Float[Array, "B out"]:
        """Applies both."""
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class TimestepMLP(EmbeddingMLP):
    """Two linear layers over the sinusoidal embedding of a time."""

    def __init__(self, features: int, out_features: int, linear: Callable[..., Linear]):
        super().__init__(features, out_features, linear)
        self.features = features

    def __call__(self, times: Float[Array, " B"]) -> Float[Array, "B out"]:
        """Embeds the times, usually 0..1000."""
        return super().__call__(timestep_embedding(times, self.features))


class Modulation(NamedTuple):
    """What the time does to normed tokens, and (the gate) to what is computed from them; float32."""

    shift: Float[Array, "B _ inner"]
    scale: Float[Array, "B _ inner"]
    gate: Float[Array, "B _ inner"]


class FeedForward(nnx.Module):
    """Two linear layers, four times as wide between, with a GELU (tanh form)."""

    def __init__(self, width: int, linear: Callable[..., Any]):
        self.up = linear(width, 4 * width, ("embed", GATHERED))
        self.down = linear(4 * width, width, (GATHERED, "embed"))

    def __call__(self, x: Float[Array, "B S inner"]) -> Float[Array, "B S inner"]:
        """Applies both."""
        return self.down(jax.nn.gelu(remat.product(self.up(x)), approximate=True))
