"""A network split for jax.jit: its parameters are arguments, the rest is static."""

from typing import Any, NamedTuple

from flax import nnx

from reangle_jax.nn.execution import Execution


class Network(NamedTuple):
    """``nnx.merge(graphdef, *states)`` gives the module back inside a traced function.

    The state is its parameters, or shapes in their place.
    """

    config: Any
    execution: Execution
    graphdef: nnx.GraphDef
    state: nnx.State
