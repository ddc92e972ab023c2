"""Models on disk, loaded into an abstract model and checked whole.

A part's folder holds config.json and the arrays, in one of two forms: ``model.safetensors`` (the small family, written
by :func:`save_model`), or ``params/``, an Orbax checkpoint of a flat dict ``{parameter path: array}``, with
manifest.json (what the converters write, and :func:`save_sharded`). Arrays are read one by one into their place on the
mesh, in the dtype that config.json says: a process reads what its devices hold, and no second copy is ever made.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from reangle_jax import mesh as meshes
from reangle_jax.data import files, safetensors
from reangle_jax.errors import InputError

Model = TypeVar("Model", bound=nnx.Module)
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PARAMS = "params"
MANIFEST = "manifest.json"
# What a reader holds of the checkpoint on the host at a time, on the way to the devices.
_IN_FLIGHT_GB = 1
_LARGE = 100_000_000  # elements
_CHUNK_BYTES = 16 << 20


def parameter_paths(tree: Any) -> dict[str, nnx.Variable]:
    """Path (``blocks.attn.to_q.kernel``) and variable of every parameter of a model or state, abstract or not."""
    state = nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def base_parameters(model: nnx.Module) -> nnx.State:
    """The parameters without the adapters'."""
    return nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))


def abstract(build: Callable[[], Model]) -> Model:
    """The model that ``build`` makes, with shapes and dtypes in place of arrays: costs no memory."""
    return nnx.eval_shape(build)


def fill(model: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Puts arrays into a model's base parameters by path, in the dtype of each parameter.

    Raises:
        ValueError: a path is missing or unknown, or a shape differs; all faults are listed.
    """
    state = base_parameters(model)
    variables = parameter_paths(state)
    faults = _misfits(variables, {path: tuple(array.shape) for path, array in arrays.items()})
    if faults:
        raise ValueError("; ".join(faults))
    for path, variable in variables.items():
        # In place: the state shares its variables with the model.
        variable.set_value(jnp.asarray(arrays[path], variable.dtype))
    nnx.update(model, state)


def _misfits(variables: Mapping[str, nnx.Variable], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    faults = [f"{path}: missing" for path in variables if path not in found]
    faults += [f"{path}: unknown" for path in found if path not in variables]
    for path, variable in variables.items():
        if path in found and found[path] != tuple(variable.shape):
            faults.append(f"{path}: shape {found[path]}, the model has {tuple(variable.shape)}")
    return faults


def save_model(folder: str | os.PathLike, model: nnx.Module, config: Any, *, dtype: Any = None) -> None:
    """Writes ``config.json`` and ``model.safetensors`` of a model's base parameters.

    Args:
        folder: made if missing.
        model: the model.
        config: its frozen dataclass; the class's name and every field are kept.
        dtype: stored as this instead of each parameter's own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for path, variable in parameter_paths(base_parameters(model)).items():
        array = np.asarray(jax.device_get(variable[...]))
        arrays[path] = np.ascontiguousarray(array.astype(dtype or array.dtype))
    temporary = folder / (WEIGHTS + ".tmp")
    temporary.write_bytes(safetensors.to_bytes(arrays))
    os.replace(temporary, folder / WEIGHTS)
    save_config(folder, config)


def save_config(folder: str | os.PathLike, config: Any) -> None:
    """Writes ``config.json``: the name of a frozen dataclass and every field of it."""
    text = json.dumps({"class": type(config).__name__, **dataclasses.asdict(config)}, indent=2, default=str)
    files.atomic_write_bytes(Path(folder) / CONFIG, (text + "\n").encode())


def save_sharded(folder: str | os.PathLike, model: nnx.Module, config: Any) -> None:
    """Writes what the converters write of a model's base parameters: config.json, ``params/``, manifest.json.

    Args:
        folder: made if missing; it appears whole or not at all.
        model: the model, on any mesh.
        config: its frozen dataclass.
    """
    import orbax.checkpoint as ocp  # late: it takes seconds, and the small family needs none of it

    arrays = {path: variable[...] for path, variable in parameter_paths(base_parameters(model)).items()}
    with files.atomic_folder(folder) as temporary:
        # Chunks smaller than an array let each device's share be read without the rest.
        chunks = {path: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for path in arrays}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
            checkpointer.save((temporary / PARAMS).absolute(), args=ocp.args.PyTreeSave(arrays, save_args=chunks))
        written = sorted(path for path in (temporary / PARAMS).rglob("*") if path.is_file())
        sizes = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in written}
        files.atomic_write_json(temporary / MANIFEST, {"files": sizes})
        save_config(temporary, config)


def load_config(folder: str | os.PathLike, config_class: type) -> Any:
    """Reads a config.json into its dataclass.

    Raises:
        InputError: the folder or file is missing or unreadable, or describes another model.
    """
    path = Path(folder) / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config.weights: {path} is missing; give a folder of converted weights") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"config.weights: {path} cannot be read ({error}); convert the weights again") from None
    found = fields.pop("class", None) if isinstance(fields, dict) else None
    if found != config_class.__name__:
        raise InputError(f"config.weights: {path} describes {found}, not {config_class.__name__}: give its folder")
    known = {f.name for f in dataclasses.fields(config_class)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InputError(f"config.weights: {path} has unknown fields {', '.join(unknown)}; convert the weights again")
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def load_arrays(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a folder's model.safetensors.

    Raises:
        InputError: the file is missing, truncated or not safetensors.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except FileNotFoundError:
        raise InputError(f"config.weights: {path} is missing; give a folder of converted weights") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"config.weights: {path} is damaged ({error}); copy or convert it again") from None


def load_into(model: Model, folder: str | os.PathLike, *, mesh: Mesh | None = None) -> Model:
    """Fills an abstract model's base parameters from a folder; adapters, if any, stay abstract.

    Args:
        model: abstract; its parameters' dtypes are what is loaded, whatever is stored.
        folder: of either form.
        mesh: where to put the parameters (:func:`reangle_jax.mesh.sharding_for`); the current mesh by default, and
            without one the default device. It need not be the mesh that they were saved from.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    folder, mesh = Path(folder), mesh or meshes.current()
    state = base_parameters(model)
    read = _read_orbax if (folder / PARAMS).is_dir() else _read_safetensors
    for path, array in read(folder, parameter_paths(state), mesh).items():
        parameter_paths(state)[path].set_value(array)
    nnx.update(model, state)
    return model


def _refuse_misfits(folder: Path, variables: Mapping[str, nnx.Variable], found: Mapping[str, tuple[int, ...]]) -> None:
    faults = "; ".join(_misfits(variables, found))
    if faults:
        raise InputError(
            f"config.weights: {folder} does not fit the model: {faults[:300]}{'...' if len(faults) > 300 else ''}; "
            "give the weights of this model"
        )


def _read_safetensors(folder: Path, variables: Mapping[str, nnx.Variable], mesh: Mesh | None) -> dict[str, jax.Array]:
    path = folder / WEIGHTS
    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            _refuse_misfits(folder, variables, {name: tuple(file.get_slice(name).get_shape()) for name in names})
            for name, variable in variables.items():
                arrays[name] = _place(file, name, variable, mesh)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"config.weights: {path} is missing; give a folder of converted weights") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"config.weights: {path} is damaged ({error}); copy or convert it again") from None
    return arrays


def _place(file: Any, name: str, variable: nnx.Variable, mesh: Mesh | None) -> jax.Array:
    if mesh is None:
        return jnp.asarray(file.get_tensor(name), variable.dtype)
    part = file.get_slice(name)
    sharding = meshes.sharding_for(variable, mesh)

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        return part[index].astype(variable.dtype) if index else file.get_tensor(name).astype(variable.dtype)

    return jax.make_array_from_callback(tuple(variable.shape), sharding, read)


def _in_flight_gb(largest: int) -> int:
    """Orbax's limit, which refuses an array above it; the stacked kernels of the full model are 3 GB each.

    Args:
        largest: bytes of the largest array.
    """
    return max(_IN_FLIGHT_GB, math.ceil(largest / 1e9))


def _in_turns(targets: Mapping[str, jax.ShapeDtypeStruct]) -> list[list[str]]:
    """Paths in groups to read one after the other: large arrays alone, since several at a time would be held twice."""
    small = [path for path, target in targets.items() if target.size < _LARGE]
    return [[path] for path in targets if path not in small] + ([small] if small else [])


def _read_orbax(folder: Path, variables: Mapping[str, nnx.Variable], mesh: Mesh | None) -> dict[str, jax.Array]:
    import orbax.checkpoint as ocp

    where = (folder / PARAMS).absolute()
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {
        path: jax.ShapeDtypeStruct(
            tuple(variable.shape), variable.dtype, sharding=meshes.sharding_for(variable, mesh) if mesh else alone
        )
        for path, variable in variables.items()
    }
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            stored = checkpointer.metadata(where).item_metadata
        if stored is None:
            raise ValueError("it has no metadata")
        _refuse_misfits(folder, variables, {path: tuple(entry.shape) for path, entry in stored.tree.items()})
        largest = max(
            math.prod(target.shape) * np.dtype(stored.tree[path].dtype).itemsize for path, target in targets.items()
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(targets)
        arrays = {}
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_in_flight_gb(largest))
        with ocp.Checkpointer(handler) as checkpointer:
            for paths in _in_turns(targets):
                arrays |= checkpointer.restore(
                    where,
                    args=ocp.args.PyTreeRestore(
                        item={path: targets[path] for path in paths},
                        restore_args={path: arguments[path] for path in paths},
                        partial_restore=True,
                    ),
                )
        return arrays
    except (InputError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if isinstance(error.__cause__, MemoryError | jax.errors.JaxRuntimeError):
            raise  # the machine's fault, not the file's
        # Orbax and TensorStore raise plain exceptions, with a page of text.
        words = " ".join(str(error.__cause__ or error).split())[:160]
        raise InputError(f"config.weights: {where} is damaged ({words}); convert the weights again") from None
