"""The device mesh and where arrays lie on it: the only place that names mesh axes.

Axes: ``data`` divides the videos of a batch; ``r`` and ``u`` together hold one model's parameters in pieces, and are
the axes over which attention will divide its sequence. Parameters declare logical axes (``axes=`` of an ``nnx.Param``);
rules map those to mesh axes. All work is done under a mesh (``jax.set_mesh``), 1x1x1 where there is one device.

The axis types are Auto: the compiler propagates layouts from the parameters and the batch. Explicit types would have
every product with a divided kernel, every gather and every reshape of the models say its result's layout, which only
sequence-parallel attention needs. With a frozen kernel divided by its output (heads, mlp) the compiler divides that
product too, and sums where ``to_out`` and ``down`` contract: no whole parameter is ever gathered.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reangle_jax.errors import InputError

Tree = TypeVar("Tree")
Rules = Mapping[str, tuple[str, ...]]

DATA = "data"
MODEL = ("r", "u")
AXES = (DATA, *MODEL)

# Logical axis -> mesh axes. Every name that a parameter declares is here, so that a misspelt one is found.
FROZEN: Rules = {"heads": MODEL, "mlp": MODEL, "vocab": MODEL, "modulation": MODEL, "embed": (), "lora": ()}
# Both halves of an adapter have the rank's axis: it is what divides them, and with them the optimiser's state.
ADAPTER: Rules = {name: MODEL if name == "lora" else () for name in FROZEN}


def parse(text: str) -> dict[str, int] | None:
    """Axis sizes of ``config.mesh``: ``"data:1,r:2,u:4"``, axes not named being 1; None for ``"auto"``.

    Raises:
        InputError: another form, an unknown or repeated axis, a size below 1.
    """
    if text == "auto":
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition(":"))
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"config.mesh={text!r} is not possible: it must be auto, or the sizes of {', '.join(AXES)}, such as "
                "data:1,r:1,u:4"
            )
        sizes[name] = int(size)
    return {name: sizes.get(name, 1) for name in AXES}


def make_mesh(text: str = "auto", *, batch_size: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a setting.

    Args:
        text: as :func:`parse` takes it. ``auto`` gives each device an equal share of the batch's videos, and leaves
            devices idle that have none; on CPUs, whose devices are one processor's cores, it takes one.
        batch_size: videos of a training batch, for ``auto``.
        devices: all there are by default; the first ones are taken.

    Raises:
        InputError: as :func:`parse`; or there are too few devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = parse(text)
    if sizes is None:
        share = 1 if devices[0].platform == "cpu" else math.gcd(batch_size, len(devices))
        sizes = {DATA: share, "r": 1, "u": 1}
    count = math.prod(sizes.values())
    if count > len(devices):
        raise InputError(
            f"config.mesh={text!r} needs {count} devices and there are {len(devices)}: use smaller sizes, or auto"
        )
    grid = np.asarray(devices[:count]).reshape([sizes[name] for name in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def current() -> Mesh | None:
    """The mesh set with ``jax.set_mesh``; None without one. Not while a function is traced."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def _divided() -> Mapping[str, int] | None:
    """Axis sizes of the mesh that is set, while tracing too; None where there is nothing to divide among."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh.shape


def spec(
    axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules = FROZEN
) -> PartitionSpec:
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


def spec_for(variable: Any, sizes: Mapping[str, int]) -> PartitionSpec:
    """Where a parameter's axes go, abstract or not; anything that declares none is on every device whole.

    Raises:
        ValueError: as :func:`spec`.
    """
    if not isinstance(variable, nnx.Variable):
        return PartitionSpec()
    axes = variable.get_metadata().get("axes") or ()
    return spec(axes, variable.shape, sizes, ADAPTER if isinstance(variable, nnx.LoRAParam) else FROZEN)


def sharding_for(variable: Any, mesh: Mesh) -> NamedSharding:
    """:func:`spec_for` on a mesh."""
    return NamedSharding(mesh, spec_for(variable, mesh.shape))


def _map_variables(function: Any, tree: Any) -> Any:
    """Maps arrays with the variable around them (or themselves, where there is none), keeping the structure."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            return jax.tree.map(lambda array: function(leaf, array), leaf)
        return function(leaf, leaf)

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _lay(array: Any, layout: PartitionSpec) -> Any:
    if isinstance(array, Tracer):
        return jax.lax.with_sharding_constraint(array, layout)
    mesh = current()
    assert mesh is not None
    return jax.device_put(array, NamedSharding(mesh, layout))  # from wherever it is


def shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Shardings of a state, an optimiser's state or an abstract one, in its structure."""
    return _map_variables(lambda variable, _: sharding_for(variable, mesh), tree)


def constrain(tree: Tree) -> Tree:
    """Keeps a state, or an optimiser's, in its layout on the current mesh, traced or not."""
    sizes = _divided()
    if sizes is None:
        return tree
    return _map_variables(lambda variable, array: _lay(array, spec_for(variable, sizes)), tree)


def split_batch(tree: Tree) -> Tree:
    """Divides arrays by their leading axis over ``data``, traced or not; one that it does not divide stays whole."""
    sizes = _divided()
    if sizes is None:
        return tree

    def split(array: Any) -> Any:
        even = array.ndim and array.shape[0] % sizes[DATA] == 0
        return _lay(array, PartitionSpec(DATA) if even else PartitionSpec())

    return jax.tree.map(split, tree)


def replicate(tree: Tree) -> Tree:
    """Puts arrays on every device of the current mesh, whole; does nothing without one."""
    mesh = current()
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
