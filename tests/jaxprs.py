"""Reading jaxprs: which operations a program really has."""

import collections
import math
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


def operations(jaxpr: Any) -> float:
    """Those of products, convolutions and elementwise multiplications of a program; a scan's as often as it turns."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inside = [operations(inner) for inner in jaxprs_in_params(equation.params)]
        total += times * sum(inside)
        shape, name = equation.outvars[0].aval.shape if equation.outvars else (), equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * math.prod(shape) * math.prod(equation.invars[0].aval.shape[k] for k in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(shape) * math.prod(kernel) / out
        elif name == "mul":
            total += 2.0 * math.prod(shape)
    return total
