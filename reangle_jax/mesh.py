"""The device mesh and where arrays lie on it: the only place that names mesh axes.

Axes: ``data`` divides the videos of a batch; ``r`` and ``u`` together hold one model's parameters in pieces, and are
the axes over which attention will divide its sequence. Parameters declare logical axes (``axes=`` of an ``nnx.Param``);
rules map those to mesh axes. All work is done under a mesh (:func:`use`), 1x1x1 where there is one device.

The axis types are Auto: the compiler propagates layouts from the parameters and the batch. Explicit types would have
every product with a divided kernel, every gather and every reshape of the models say its result's layout, which only
sequence-parallel attention needs. With a frozen kernel divided by its output (heads, mlp) the compiler divides that
product too, and sums where ``to_out`` and ``down`` contract: no whole parameter is ever gathered.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reangle_jax.errors import InputError
from reangle_jax.nn import layouts
from reangle_jax.nn.layouts import Rules

Tree = TypeVar("Tree")

DATA = "data"
MODEL = ("r", "u")
AXES = (DATA, *MODEL)

# Logical axis -> mesh axes. Every name that a parameter declares is here, so that a misspelt one is found.
FROZEN: Rules = {"heads": MODEL, "mlp": MODEL, "vocab": MODEL, "modulation": MODEL, "embed": (), "lora": ()}
# Both halves of an adapter have the rank's axis: it is what divides them, and with them the optimiser's state.
ADAPTER: Rules = {name: MODEL if name == "lora" else () for name in FROZEN}
# What kernels divide: videos, and heads where the kernels of queries, keys and values are divided (FROZEN).
ACTIVATIONS: Rules = {"batch": (DATA,), "heads": FROZEN["heads"]}


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
            devices idle that have none; on CPUs, whose devices are one processor's cores, it takes one. Of several
            processes it takes every device (of a CPU's one each), and divides the parameters over those left.
        batch_size: videos of a training batch, for ``auto``.
        devices: all there are by default; the first ones are taken, of each process as many.

    Raises:
        InputError: as :func:`parse`; or there are too few devices, or they do not divide over the processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    processes = len({device.process_index for device in devices})
    sizes, on_cpu = parse(text), devices[0].platform == "cpu"
    if sizes is None:
        able = processes if on_cpu else len(devices)
        share = math.gcd(batch_size, able)
        sizes = {DATA: share, "r": 1, "u": able // share if processes > 1 else 1}
    count = math.prod(sizes.values())
    if count > len(devices):
        raise InputError(
            f"config.mesh={text!r} needs {count} devices and there are {len(devices)}: use smaller sizes, or auto"
        )
    if count % processes:
        words = f"its {count} devices must be a multiple of the {processes} processes: use other sizes, or auto"
        raise InputError(f"config.mesh={text!r} is not possible: {words}")
    grid = np.asarray(_evenly(devices, count // processes)).reshape([sizes[name] for name in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_own_mesh(text: str = "auto", *, batch_size: int = 1) -> Mesh:
    """The mesh of what one process does alone: of one of several it is its own devices, whatever the setting is."""
    if jax.process_count() == 1:
        return make_mesh(text, batch_size=batch_size)
    return make_mesh(batch_size=math.gcd(batch_size, jax.local_device_count()), devices=jax.local_devices())


def _evenly(devices: Sequence[Any], each: int) -> list[Any]:
    """The first devices of each process, in their order."""
    taken: dict[int, int] = {}
    found = []
    for device in devices:
        taken[device.process_index] = taken.get(device.process_index, 0) + 1
        if taken[device.process_index] <= each:
            found.append(device)
    return found


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """All work within it is done on this mesh: ``jax.set_mesh``, and the rules for activations."""
    with jax.set_mesh(mesh), layouts.activation_rules(ACTIVATIONS):
        yield


def current() -> Mesh | None:
    """The mesh set with :func:`use`; None without one. Not while a function is traced."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def _divided() -> Mapping[str, int] | None:
    """Axis sizes of the mesh that is set, while tracing too; None where there is nothing to divide among."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh.shape


def spec_for(variable: Any, sizes: Mapping[str, int]) -> PartitionSpec:
    """Where a parameter's axes go, abstract or not; anything that declares none is on every device whole.

    Raises:
        ValueError: as :func:`reangle_jax.nn.layouts.spec`.
    """
    if not isinstance(variable, nnx.Variable):
        return PartitionSpec()
    axes = variable.get_metadata().get("axes") or ()
    return layouts.spec(axes, variable.shape, sizes, ADAPTER if isinstance(variable, nnx.LoRAParam) else FROZEN)


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


def by_share(function: Callable[[Any, jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
    """``function(whole, batch)`` on each device's share of the batch over ``data``, which has a multiple of them.

    For what the compiler would not divide by itself, such as a loop over the batch. What it gives is as long as the
    batch; ``whole`` is gathered on every device.
    """
    sizes = _divided()
    if sizes is None or sizes[DATA] == 1:
        return function
    share = PartitionSpec(DATA)
    return jax.shard_map(function, in_specs=(PartitionSpec(), share), out_specs=share, check_vma=False)


def on_host(tree: Any) -> Any:
    """Arrays as NumPy's, each whole, wherever its pieces lie: all processes that hold one must ask for it together."""

    def whole(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            return multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(whole, tree)


def replicate(tree: Tree) -> Tree:
    """Puts arrays on every device of the current mesh, whole; does nothing without one."""
    mesh = current()
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
