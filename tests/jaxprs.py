"""Reading jaxprs: which operations a program really has."""

import collections
from collections.abc import Iterator
from typing import Any

from jax.extend.core import jaxprs_in_params


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those inside it, but for the insides of Pallas kernels and for dead calls.

    A call without results and without effects computes nothing: JAX leaves such behind where a checkpoint policy kept
    all that it gave.
    """
    for equation in jaxpr.eqns:
        if not equation.outvars and not equation.effects:
            continue
        yield equation
        if equation.primitive.name != "pallas_call":
            for inner in jaxprs_in_params(equation.params):
                yield from equations(inner)


def names(jaxpr: Any) -> collections.Counter[str]:
    """How often each primitive occurs; Pallas kernels by their own names."""
    return collections.Counter(
        e.params["name"] if e.primitive.name == "pallas_call" else e.primitive.name for e in equations(jaxpr)
    )
