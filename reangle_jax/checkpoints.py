"""Models on disk: a folder with config.json and model.safetensors, loaded into an abstract model, checked whole."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from reangle_jax.errors import InputError

Model = TypeVar("Model", bound=nnx.Module)
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


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
    faults = [f"{path}: missing" for path in variables if path not in arrays]
    faults += [f"{path}: unknown" for path in arrays if path not in variables]
    for path, variable in variables.items():
        if path in arrays and tuple(arrays[path].shape) != tuple(variable.shape):
            faults.append(f"{path}: shape {tuple(arrays[path].shape)}, the model has {tuple(variable.shape)}")
    if faults:
        raise ValueError("; ".join(faults))
    for path, variable in variables.items():
        # In place: the state shares its variables with the model.
        variable.set_value(jnp.asarray(arrays[path], variable.dtype))
    nnx.update(model, state)


def safetensors_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file whose bytes depend on its content alone.

    The library writes the metadata in an order that changes from process to process; here the header is sorted.
    """
    content = save(dict(arrays), metadata=dict(metadata) if metadata else None)
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data must start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


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
    temporary.write_bytes(safetensors_bytes(arrays))
    os.replace(temporary, folder / WEIGHTS)
    text = json.dumps({"class": type(config).__name__, **dataclasses.asdict(config)}, indent=2, default=str)
    temporary = folder / (CONFIG + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, folder / CONFIG)


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


def load_into(model: Model, folder: str | os.PathLike) -> Model:
    """Fills an abstract model's base parameters from a folder; adapters, if any, stay abstract.

    Raises:
        InputError: the folder is missing or damaged, or holds another model.
    """
    try:
        fill(model, load_arrays(folder))
    except InputError:
        raise
    except ValueError as error:
        text = str(error)
        raise InputError(
            f"config.weights: {folder} does not fit the model: {text[:300]}{'...' if len(text) > 300 else ''}; "
            "give the weights of this model"
        ) from None
    return model
