"""Conversion in memory, for tests: by the very functions that the command converts by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from converters.rules import Table, match, pieces
from reangle_jax import checkpoints
from reangle_jax.data.safetensors import Tensor


def tensor(name: str, shape: Any, dtype: Any = np.float32) -> Tensor:
    """A tensor of a header that is nowhere on the disk."""
    return Tensor(name, tuple(shape), np.dtype(dtype), Path("nowhere"), 0)


def convert(
    source: Mapping[str, np.ndarray], table: Table, targets: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Published tensors as the parameters of a model: path and shape of each are in `targets`."""
    moves, _, faults = match({name: tensor(name, x.shape, x.dtype) for name, x in source.items()}, table, targets)
    assert not faults, faults
    result = {move.path: np.empty(targets[move.path], source[move.tensor.name].dtype) for move in moves}
    for move in moves:
        result[move.path][move.index] = move.rule.forward(source[move.tensor.name])
    return result


def revert(parameters: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """The way back."""
    result = {}
    for path, array in parameters.items():
        for index, (rule, name) in pieces(path, array.shape, table).items():
            piece = rule.transform.inverse(array[index])
            if rule.rows:
                first, last, count = rule.rows
                whole = result.setdefault(name, np.empty((count, *piece.shape[1:]), piece.dtype))
                whole[first:last] = piece
            else:
                result[name] = np.ascontiguousarray(piece).reshape(piece.shape)
    return result


def fill(model: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Puts arrays into a model's base parameters by path, in the dtype of each parameter: every one, and no other."""
    state = checkpoints.base_parameters(model)
    variables = checkpoints.parameter_paths(state)
    assert {path: tuple(x.shape) for path, x in arrays.items()} == {p: tuple(v.shape) for p, v in variables.items()}
    for path, variable in variables.items():
        # In place: the state shares its variables with the model.
        variable.set_value(jnp.asarray(arrays[path], variable.dtype))
    nnx.update(model, state)


def dequantised(steps: Any, scale: Any) -> np.ndarray:
    """The float32 kernel that int8 steps and their scales mean."""
    return np.asarray(steps, np.float32) * np.asarray(scale)[..., None, :]
