"""Where arrays lie on a mesh: logical axes, mapped to mesh axes by rules that the caller brings.

Layers name their axes (``heads``, ``batch``, ``tokens``) and know no mesh. The rules are ``reangle_jax.mesh``'s, in
force inside its ``use``.

Tokens [B, S, C] of a diffusion transformer lie divided over the axes of ``tokens`` from its first block to its last.
Several sequences (text, picture) may share an array: then each device holds a piece of each, one after the other. A
sequence that the devices do not divide is filled up at its end (:func:`fill`).
"""

import contextlib
import contextvars
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array

Rules = Mapping[str, tuple[str, ...]]
Axes = tuple[str | None, ...]
Tree = TypeVar("Tree")

TOKENS: Axes = ("batch", "tokens", None)
WHOLE: Axes = ("batch", None, None)


class Layout(NamedTuple):
    """What a mesh's owner decides.

    Attributes:
        activations: logical axis to mesh axes. Of those of ``tokens``, attention exchanges heads for tokens over the
            last, and gathers keys and values over the others.
        parameters: a variable and the sizes of the mesh axes to where the variable's axes go.
    """

    activations: Rules
    parameters: Callable[[Any, Mapping[str, int]], PartitionSpec]


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def use(layout: Layout) -> Iterator[None]:
    """Within it, arrays lie on the mesh as this says."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def spec(axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int], rules: Rules) -> PartitionSpec:
    """Where an array's axes go, given the sizes of the mesh axes (``mesh.shape``) and the rules for logical ones.

    The logical names are of the last axes: those before them (a stack's layers) and those named None stay whole, and so
    does an axis that its mesh axes do not divide evenly.

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

    The kernel is any function for which the divided axes are independent. Operands come with their logical axes; the
    result has the first one's shape and ``axes``. An axis that the mesh does not divide evenly stays whole: then every
    device computes all of it, and a line in the log says so.

    Raises:
        RuntimeError: the mesh has several devices and no rules are in force.
    """
    arrays = [array for array, _ in operands]
    found = _in_force()
    if found is None:
        return kernel(*arrays)
    sizes, layout = found
    specs = tuple(spec(names, array.shape, sizes, layout.activations) for array, names in operands)
    result = spec(axes, arrays[0].shape, sizes, layout.activations)
    for name, length, entry in zip(axes, arrays[0].shape, (*result, *[None] * len(axes)), strict=False):
        if entry is None and length > 1 and name is not None and ways(name) > 1:
            _say_whole(name, length, layout.activations[name])
    # The mesh's axes are Auto, and a kernel's outputs vary over all of them: there is nothing to check.
    return jax.shard_map(kernel, in_specs=specs, out_specs=result, check_vma=False)(*arrays)


def _in_force() -> tuple[Mapping[str, int], Layout] | None:
    """Sizes of the mesh axes and the layout; None on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return None
    layout = _layout.get()
    if layout is None:
        raise RuntimeError(f"work on {mesh.size} devices must be told its layout: enter reangle_jax.mesh.use(mesh)")
    return mesh.shape, layout


def _say_whole(name: str, length: int, axes: Sequence[str]) -> None:
    sizes = jax.sharding.get_abstract_mesh().shape
    over = ", ".join(f"{axis}:{sizes[axis]}" for axis in axes)
    _log.warning("%s: %d do not divide over %s; every device computes all of them", name, length, over)


def ways(name: str) -> int:
    """Over how many devices a logical axis of activations is divided."""
    found = _in_force()
    return math.prod(found[0][axis] for axis in found[1].activations[name]) if found else 1


def constrain(x: Array, axes: Axes) -> Array:
    """Keeps an activation where the logical names of its axes say; one that does not divide evenly stays whole."""
    found = _in_force()
    if found is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, found[0], found[1].activations))


def _frames(ndim: int) -> Axes:
    return ("batch", *(None,) * (ndim - 4), "rows", "columns", None)


def constrain_frames(x: Array) -> Array:
    """Keeps pictures [B, H, W, C] or videos [B, T, H, W, C] divided by their rows and columns.

    The compiler exchanges between neighbours what a convolution's window reaches over, and adds up a norm's means.
    """
    return constrain(x, _frames(x.ndim))


def repeatable(x: Array, height: int, width: int) -> Array:
    """Videos [B, T, h, w, C] whose pixels can be repeated to make ``height`` and ``width`` without a word to others.

    Where the devices divide the repeated rows or columns and not those there are, a device's share begins inside of
    one: then it takes its own of the whole, all repeated.
    """
    for axis, (name, length) in enumerate((("rows", height), ("columns", width)), start=2):
        if x.shape[axis] % ways(name) and length % ways(name) == 0:
            own = constrain(jnp.arange(length, dtype=jnp.int32) // (length // x.shape[axis]), (name,))
            x = constrain_frames(jnp.take(x, own, axis=axis, mode="clip"))
    return x


def filled(length: int) -> int:
    """The length of a sequence of tokens that is filled up until the devices divide it."""
    return -(-length // ways("tokens")) * ways("tokens")


def fill(x: Array, axis: int) -> Array:
    """Fills a sequence of tokens up with zeros."""
    missing = filled(x.shape[axis]) - x.shape[axis]
    return jnp.pad(x, [(0, missing if at == axis else 0) for at in range(x.ndim)]) if missing else x


def _pieces(lengths: Sequence[int], each: int) -> list[int]:
    """Where to cut an array that holds a piece of each sequence, of ``each`` devices."""
    return [int(at) for at in np.cumsum([filled(n) // ways("tokens") * each for n in lengths])[:-1]]


def attend(kernel: Callable[..., Array], q: Array, k: Array, v: Array, lengths: Sequence[int]) -> Array:
    """Self-attention over tokens, of sequences of these lengths, that lie divided over the mesh; so does its result.

    Each device exchanges its share of the tokens for a share of the heads with those beside it (all-to-all over the
    last axis of ``tokens``; Jacobs et al., 2023, arXiv 2309.14509), and gathers keys and values over the others. Heads
    that the last axis does not divide stay: then keys and values are gathered over all. What fills a sequence up is
    no key to anything; as queries it gives what nobody reads.

    The kernel is attention of queries [B, Sq, N, D] over keys and values [B, Sk, N, D], any number of heads.

    Raises:
        ValueError: S is not those lengths, each filled up.
    """
    if q.shape[1] != sum(map(filled, lengths)):
        raise ValueError(f"sequences of {tuple(lengths)} tokens are not the {q.shape[1]} that attention was given")
    found = _in_force()
    if found is None:
        return kernel(q, k, v)
    sizes, layout = found
    *gathered, exchanged = layout.activations["tokens"]
    others = sizes[exchanged]
    if q.shape[2] % others:
        over = ", ".join(f"{axis}:{sizes[axis]}" for axis in (exchanged,))
        _log.warning("heads: %d do not divide over %s; keys and values are gathered over it", q.shape[2], over)
        gathered, others = [*gathered, exchanged], 1
    gathered = tuple(axis for axis in gathered if sizes[axis] > 1)

    def to_heads(x: Array) -> Array:
        return x if others == 1 else jax.lax.all_to_all(x, exchanged, split_axis=2, concat_axis=1, tiled=True)

    def to_tokens(x: Array) -> Array:
        return x if others == 1 else jax.lax.all_to_all(x, exchanged, split_axis=1, concat_axis=2, tiled=True)

    def whole(x: Array, length: int) -> Array:
        return (jax.lax.all_gather(x, gathered, axis=1, tiled=True) if gathered else x)[:, :length]

    def local(q: Array, k: Array, v: Array) -> Array:
        q_parts, k_parts, v_parts = ([to_heads(part) for part in _cut(x, lengths, 1)] for x in (q, k, v))
        keys, values = (_joined(list(map(whole, parts, lengths))) for parts in (k_parts, v_parts))
        y = kernel(_joined(q_parts), keys, values)
        return _joined([to_tokens(part) for part in _cut(y, lengths, others)])

    place = spec((*TOKENS, None), q.shape, sizes, layout.activations)
    return jax.shard_map(local, in_specs=(place,) * 3, out_specs=place, check_vma=False)(q, k, v)


def _cut(x: Array, lengths: Sequence[int], each: int) -> list[Array]:
    return jnp.split(x, _pieces(lengths, each), axis=1)


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def join(*sequences: Array) -> Array:
    """Sequences of tokens [B, S, ...] in one array, of which each device holds its piece of each: nothing moves."""
    return _by_device(lambda *parts: jnp.concatenate(parts, axis=1), sequences)


def part(x: Array, lengths: Sequence[int]) -> list[Array]:
    """The inverse of `join`, each sequence filled up: nothing moves."""
    return _by_device(lambda x: _cut(x, lengths, 1), (x,))


def _by_device(function: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    found = _in_force()
    if found is None:
        return function(*arrays)
    places = [spec((*TOKENS[:2], *[None] * (x.ndim - 2)), x.shape, found[0], found[1].activations) for x in arrays]
    return jax.shard_map(function, in_specs=tuple(places), out_specs=places[0], check_vma=False)(*arrays)


def gather(state: Tree) -> Tree:
    """Gathers a block's parameters, which lie divided, on every device; their gradients are scattered again."""
    found = _in_force()
    if found is None:
        return state
    sizes, layout = found

    def one(variable: Any) -> Any:
        place = layout.parameters(variable, sizes)
        return jax.tree.map(lambda x: _whole(x, place), variable) if any(place) else variable

    return jax.tree.map(one, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _whole(x: Array, place: PartitionSpec) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):  # a kernel of integers has no gradient
        return jax.lax.with_sharding_constraint(x, PartitionSpec())
    return _whole_of(x, place)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole_of(x: Array, place: PartitionSpec) -> Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _whole_forward(x: Array, place: PartitionSpec):
    return _whole_of(x, place), None


def _whole_backward(place: PartitionSpec, _: None, dx: Array):
    return (jax.lax.with_sharding_constraint(dx, place),)


_whole_of.defvjp(_whole_forward, _whole_backward)
