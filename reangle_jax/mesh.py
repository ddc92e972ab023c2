"""The device mesh and where arrays lie on it: the only place that names mesh axes.

Axes: ``data`` divides the videos of a batch; ``r`` and ``u`` together divide one video: its tokens, from a diffusion
transformer's first block to its last, and the parameters. Attention exchanges heads for tokens over ``u`` and gathers
keys and values over ``r`` (:func:`reangle_jax.nn.layouts.attend`). Parameters declare logical axes (``axes=`` of an
``nnx.Param``); rules map those to mesh axes. All work is done under a mesh (:func:`use`), 1x1x1 where there is one
device.

A diffusion transformer's frozen base lies whole on every device where memory allows (``replicated``), or ``divided``
and gathered block by block inside the scan. Its adapters, and with them the optimiser's state, are always divided.

The axis types are Auto: tokens are told their layout at each block's edges and parameters theirs, and the compiler
finds what lies between. The text encoders, whose tokens are few, lie divided by their heads and widths, and so do the
products with them: no whole parameter is ever gathered.
"""

import contextlib
import contextvars
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reangle_jax.errors import InputError
from reangle_jax.needs import Shares
from reangle_jax.nn import layouts
from reangle_jax.nn.layouts import Layout, Rules

Tree = TypeVar("Tree")
Item = TypeVar("Item")

DATA = "data"
MODEL = ("r", "u")
AXES = (DATA, *MODEL)

# Logical axis -> mesh axes. Every name that a parameter declares is here, so that a misspelt one is found.
FROZEN: Rules = {"heads": MODEL, "mlp": MODEL, "vocab": MODEL, "gathered": MODEL, "embed": (), "lora": ()}
REPLICATED: Rules = {**FROZEN, "gathered": ()}
# Both halves of an adapter have the rank's axis: it is what divides them, and with them the optimiser's state.
ADAPTER: Rules = {name: MODEL if name == "lora" else () for name in FROZEN}
# Videos; tokens of diffusion transformers; rows and columns of pictures in autoencoders; elsewhere heads, where the
# kernels of queries, keys and values are divided.
ACTIVATIONS: Rules = {
    "batch": (DATA,),
    "heads": FROZEN["heads"],
    "tokens": MODEL,
    "rows": MODEL[1:],
    "columns": MODEL[:1],
}

# Heads of every published diffusion transformer (48, 24) divide by it.
HEADS = 8
# Of a device's memory, that a replicated base may take: of 11 GiB, v6e, v5p and GPUs of 40 GiB have it, v5e has not.
REPLICATED_SHARE = 0.4

_log = logging.getLogger(__name__)
_frozen: contextvars.ContextVar[Rules] = contextvars.ContextVar("frozen", default=FROZEN)


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
        text: as :func:`parse` takes it. ``auto`` gives each device an equal share of the batch's videos, and divides
            each video over the devices that are left, over ``u`` as far as heads of the published models divide. On
            CPUs, whose devices are one processor's cores, it takes one of each process.
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
        others = math.gcd(able // share, HEADS)
        sizes = {DATA: share, "r": able // share // others, "u": others}
    count = math.prod(sizes.values())
    if count > len(devices):
        raise InputError(
            f"config.mesh={text!r} needs {count} devices and there are {len(devices)}: use smaller sizes, or auto"
        )
    if count % processes:
        words = f"its {count} devices must be a multiple of the {processes} processes: use other sizes, or auto"
        raise InputError(f"config.mesh={text!r} is not possible: {words}")
    grid = _grid(_evenly(devices, count // processes), tuple(sizes[name] for name in AXES))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_own_mesh(text: str = "auto", *, batch_size: int = 1) -> Mesh:
    """The mesh of what one process does alone: of one of several it is its own devices, whatever the setting is."""
    if jax.process_count() == 1:
        return make_mesh(text, batch_size=batch_size)
    return make_mesh(batch_size=math.gcd(batch_size, jax.local_device_count()), devices=jax.local_devices())


def _grid(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Devices so that neighbours on a mesh axis are neighbours in the machine, and slices apart on the first that can.

    Only TPUs know their places; a part of them, which may be no rectangle, is taken as it comes.
    """
    plain = np.asarray(devices).reshape(shape)
    if devices[0].platform != "tpu" or len(devices) == 1:
        return plain
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        across = next(axis for axis, size in enumerate(shape) if size % slices == 0)
        apart = tuple(slices if axis == across else 1 for axis in range(len(shape)))
        inside = tuple(size // n for size, n in zip(shape, apart, strict=True))
        return mesh_utils.create_hybrid_device_mesh(inside, apart, devices, allow_split_physical_axes=True)
    except (StopIteration, NotImplementedError, ValueError, AssertionError) as error:
        _log.warning("devices stand in their own order: %s", error)
        return plain


def base_layout(setting: str, mesh: Mesh, base_bytes: Callable[[], int], device_bytes: int | None) -> str:
    """How a frozen base of so many bytes lies over ``r`` and ``u``: ``replicated``, ``divided``, or as ``auto`` says.

    That is replicated where it leaves most of a device's memory to the rest; divided on CPUs, whose devices share one
    memory, and where the memory is unknown.
    """
    if setting != "auto":
        return setting
    if device_bytes is None or mesh.devices.flat[0].platform == "cpu":
        return "divided"
    return "replicated" if base_bytes() <= REPLICATED_SHARE * device_bytes else "divided"


def shares(mesh: Mesh, base: str) -> Shares:
    """Over how many devices a mesh divides what they work on; ``base`` as :func:`base_layout` gives it."""
    batch, rows, columns = (
        math.prod(mesh.shape[axis] for axis in ACTIVATIONS[name]) for name in ("batch", "rows", "columns")
    )
    return Shares(batch, rows, columns, base_whole=base == "replicated")


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
def use(mesh: Mesh, *, base: str = "divided") -> Iterator[None]:
    """All work within it is done on this mesh: ``jax.set_mesh``, and the rules for activations and parameters.

    A diffusion transformer's frozen base lies ``replicated`` over ``r`` and ``u``, else ``divided``.
    """
    token = _frozen.set(REPLICATED if base == "replicated" else FROZEN)
    try:
        with jax.set_mesh(mesh), layouts.use(Layout(ACTIVATIONS, spec_for)):
            yield
    finally:
        _frozen.reset(token)


def current() -> Mesh | None:
    """The mesh set with :func:`use`; None without one. Not while a function is traced."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def room() -> int:
    """How many videos lie beside each other on the current mesh."""
    mesh = current()
    return 1 if mesh is None else mesh.shape[DATA]


def filled(some: Sequence[Item], size: int) -> list[Item]:
    """So many things to lie beside each other, the first ones again where there are too few: one program serves all."""
    return list(itertools.islice(itertools.cycle(some), size))


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
    return layouts.spec(axes, variable.shape, sizes, ADAPTER if isinstance(variable, nnx.LoRAParam) else _frozen.get())


def divides(variable: Any) -> bool:
    """Whether a parameter of a frozen base is divided where it is long enough."""
    return any(FROZEN[name] for name in variable.get_metadata().get("axes") or () if name)


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


def from_own_rows(read: Callable[[int], Tree], rows: Sequence[int]) -> Tree:
    """What ``read`` gives of each row, one after the other along a new axis that is divided over ``data``.

    A process reads only the rows that its own devices hold, each once; all processes must ask for them together.
    Devices that do not divide the rows read them all. ``read`` gives NumPy's arrays, of the same shapes for every row.
    """
    mesh = current()
    if mesh is None:
        return jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *map(read, rows))
    place = NamedSharding(mesh, PartitionSpec(DATA) if len(rows) % mesh.shape[DATA] == 0 else PartitionSpec())
    parts = place.addressable_devices_indices_map((len(rows),)).values()
    own = sorted({row for part in parts if part for row in rows[part[0]]})
    made = [read(row) for row in own]

    def array(*values: np.ndarray) -> jax.Array:
        of = dict(zip(own, values, strict=True))

        def share(index: Any) -> np.ndarray:
            return np.stack([of[row] for row in rows[index[0]]])

        return jax.make_array_from_callback((len(rows), *values[0].shape), place, share)

    return jax.tree.map(array, *made)


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
