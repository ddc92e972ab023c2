"""Where arrays lie on a mesh: logical axes, mapped to mesh axes by rules that the caller brings.

Layers name their axes (``heads``, ``batch``) and know no mesh. The rules are ``reangle_jax.mesh``'s, in force inside
its ``use``.
"""

import contextlib
import contextvars
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

Rules = Mapping[str, tuple[str, ...]]
Axes = tuple[str | None, ...]

_rules: contextvars.ContextVar[Rules | None] = contextvars.ContextVar("rules", default=None)
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def activation_rules(rules: Rules) -> Iterator[None]:
    """Within it, activations' logical axes go to these mesh axes."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def spec(axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules) -> PartitionSpec:
    """Where an array's axes go.

    Args:
        axes: logical names of the last axes; those before them (a stack's layers) and those named None stay whole.
        shape: the array's.
        sizes: of the mesh axes (``mesh.shape``).
        rules: logical axis to mesh axes. An axis that its mesh axes do not divide evenly stays whole.

    Raises:
        ValueError: a logical axis without a rule, more of them than the array has, or two that want one mesh axis.
    """
    if len(axes) > len(shape):
        raise ValueError(f"axes {tuple(axes)} are more than the array of shape {tuple(shape)} has")
    taken: dict[str, str] = {}
    entries: list[tuple[str, ...] | None] = [None] * (len(shape) - len(axes))
    for name, length in zip(axes, shape[len(shape) - len(axes) :], strict=True):
        if name is not None and name not in rules:
            raise ValueError(f"logical axis {name!r} has no rule: add it to reangle_jax.mesh")
        wanted = rules[name] if name is not None else ()
        for axis in wanted:
            if axis in taken:
                raise ValueError(f"logical axes {taken[axis]!r} and {name!r} both want the mesh axis {axis!r}")
            taken[axis] = str(name)
        entries.append(wanted if wanted and length % math.prod(sizes[axis] for axis in wanted) == 0 else None)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def on_each_device(kernel: Callable[..., Array], axes: Axes, *operands: tuple[Array, Axes]) -> Array:
    """Calls a kernel on each device's share of its operands: what the compiler cannot divide by itself.

    An axis that the mesh does not divide evenly stays whole: then every device computes all of it, and a line in the
    log says so.

    Args:
        kernel: any function for which the divided axes are independent.
        axes: logical axes of its result; the result has the first operand's shape.
        *operands: arrays, each with its logical axes.

    Raises:
        RuntimeError: the mesh has several devices and no rules are in force.
    """
    arrays = [array for array, _ in operands]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(*arrays)
    rules = _rules.get()
    if rules is None:
        raise RuntimeError(f"a kernel on {mesh.size} devices must be told its layout: enter reangle_jax.mesh.use(mesh)")
    specs = tuple(spec(names, array.shape, mesh.shape, rules) for array, names in operands)
    result = spec(axes, arrays[0].shape, mesh.shape, rules)
    for name, length, entry in zip(axes, arrays[0].shape, (*result, *[None] * len(axes)), strict=False):
        ways = math.prod(mesh.shape[axis] for axis in rules[name]) if name is not None else 1
        if entry is None and ways > 1 and length > 1:
            over = ", ".join(f"{axis}:{mesh.shape[axis]}" for axis in rules[str(name)])
            _log.warning("%s: %d do not divide over %s; every device computes all of them", name, length, over)
    # The mesh's axes are Auto, and a kernel's outputs vary over all of them: there is nothing to check.
    return jax.shard_map(kernel, in_specs=specs, out_specs=result, check_vma=False)(*arrays)
