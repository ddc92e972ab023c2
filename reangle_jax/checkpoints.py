"""Models from a folder of converted weights and back; the folder itself is :mod:`reangle_jax.data.weights_folder`'s.

Arrays are read one by one into their place on the mesh, in the dtype that config.json says, or as int8 where the model
wants them so: a process reads what its devices hold, and no second copy is ever made.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from reangle_jax import mesh as meshes
from reangle_jax.data import quantised_weights, weights_folder
from reangle_jax.data.weights_folder import load_config as load_config
from reangle_jax.data.weights_folder import save_config
from reangle_jax.errors import InputError
from reangle_jax.nn.quantised import INT8

Model = TypeVar("Model", bound=nnx.Module)


def parameter_paths(tree: Any) -> dict[str, nnx.Variable]:
    """Path (``blocks.attn.to_q.kernel``) and variable of every parameter of a model or state, abstract or not."""
    state = nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def nbytes(tree: Any) -> int:
    """Bytes of a tree's arrays, of a module's parameters too; shapes may stand in their place."""
    leaves = jax.tree.leaves(nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@functools.cache
def bytes_of(network: Callable[..., nnx.Module], config: Any) -> int:
    """Bytes of the parameters of what ``network`` makes of a config."""
    return nbytes(abstract(lambda: network(config, rngs=nnx.Rngs(0))))


def config_or(folder: str | os.PathLike | None, config_class: type, published: Callable[[], Any]) -> Any:
    """The config beside weights; the published one while there are none."""
    try:
        return published() if folder is None else load_config(folder, config_class)
    except InputError:
        return published()


def base_parameters(model: nnx.Module) -> nnx.State:
    """The parameters without the adapters'."""
    return nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))


def as_kept(config: Any, base_dtype: str, folder: str | os.PathLike | None = None) -> Any:
    """A transformer's config, its base kept as ``config.base_dtype`` says.

    ``auto`` keeps it as stored; ``int8`` makes the blocks' kernels int8; else it is a dtype for all parameters.

    Raises:
        InputError: the weights are int8 and shall be wider.
    """
    if base_dtype == "auto" or base_dtype == config.kernel_dtype:
        return config
    if base_dtype == INT8:
        return dataclasses.replace(config, kernel_dtype=INT8)
    if config.kernel_dtype:
        raise InputError(
            f"config.base_dtype={base_dtype}: {folder or 'the weights'} are {config.kernel_dtype}, which cannot be "
            "undone: set config.base_dtype=auto, or convert the published weights again without --dtype=int8"
        )
    return dataclasses.replace(config, param_dtype=base_dtype)


def abstract(build: Callable[[], Model]) -> Model:
    """The model that ``build`` makes, with shapes and dtypes in place of arrays: costs no memory."""
    return nnx.eval_shape(build)


def _misfits(variables: Mapping[str, nnx.Variable], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    faults = [f"{path}: missing" for path in variables if path not in found]
    faults += [f"{path}: unknown" for path in found if path not in variables]
    for path, variable in variables.items():
        if path in found and found[path] != tuple(variable.shape):
            faults.append(f"{path}: shape {found[path]}, the model has {tuple(variable.shape)}")
    return faults


def save_model(folder: str | os.PathLike, model: nnx.Module, config: Any, *, dtype: Any = None) -> None:
    """Writes a model's base parameters and its config as the small family has them: ``model.safetensors``.

    They are stored in a dtype, or each in its own; of the config, a frozen dataclass, the class's name and every field.
    """
    arrays = {}
    for path, variable in parameter_paths(base_parameters(model)).items():
        array = np.asarray(jax.device_get(variable[...]))
        arrays[path] = array.astype(dtype or array.dtype)
    weights_folder.save_arrays(folder, arrays)
    save_config(folder, config)


def load(folder: str | os.PathLike, config_class: type, model_class: Callable[..., Model]) -> Model:
    """The model of a folder, without adapters; ``model_class`` makes it of its config and of ``rngs``.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    config = load_config(folder, config_class)
    return load_into(abstract(lambda: model_class(config, rngs=nnx.Rngs(0))), folder)


def load_into(model: Model, folder: str | os.PathLike, *, mesh: Mesh | None = None) -> Model:
    """Fills an abstract model's base parameters as `load_state` does; adapters, if any, stay abstract."""
    nnx.update(model, load_state(base_parameters(model), folder, mesh=mesh))
    return model


def load_state(state: nnx.State, folder: str | os.PathLike, *, mesh: Mesh | None = None) -> nnx.State:
    """The base parameters of a folder.

    Args:
        state: abstract; its dtypes are what is loaded, whatever is stored: floats are quantised on the way, kernel by
            kernel.
        folder: of either form.
        mesh: where to put the parameters (:func:`reangle_jax.mesh.sharding_for`); the current mesh by default, and
            without one the default device. It need not be the mesh that they were saved from.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    mesh = mesh or meshes.current()
    state = jax.tree.map(lambda shape: shape, state)  # with variables of its own
    variables = parameter_paths(state)
    wanted = {path: np.dtype(variable.dtype) for path, variable in variables.items()}
    stored = quantised_weights.quantised(weights_folder.open_arrays(folder), wanted)
    faults = "; ".join(_misfits(variables, {path: array.shape for path, array in stored.items()}))
    if faults:
        raise InputError(
            f"{folder} does not fit the model: {faults[:300]}{'...' if len(faults) > 300 else ''}; "
            "give the weights of this model"
        )
    for path, variable in variables.items():
        variable.set_value(_place(stored[path], variable, mesh))
    return state


def _place(stored: weights_folder.Stored, variable: nnx.Variable, mesh: Mesh | None) -> jax.Array:
    """One array on its way from the disk to the devices: what lies within their shares is read, once for all."""
    if mesh is None:
        return jnp.asarray(stored.read(()), variable.dtype)
    sharding = meshes.sharding_for(variable, mesh)

    def bounds(index: tuple[slice, ...]) -> list[tuple[int, int]]:
        return [part.indices(size)[:2] for part, size in zip(index, stored.shape, strict=True)]

    shares = [bounds(index or ()) for index in sharding.addressable_devices_indices_map(stored.shape).values()]
    first = [min(start for start, _ in axis) for axis in zip(*shares, strict=True)]
    last = [max(stop for _, stop in axis) for axis in zip(*shares, strict=True)]
    values = stored.read(tuple(map(slice, first, last)))

    def share(index: tuple[slice, ...] | None) -> np.ndarray:
        inner = (slice(a - low, b - low) for (a, b), low in zip(bounds(index or ()), first, strict=True))
        return np.array(values[tuple(inner)], variable.dtype)  # a copy: a view would keep the whole

    return jax.make_array_from_callback(stored.shape, sharding, share)
