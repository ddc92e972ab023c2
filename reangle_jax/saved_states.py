"""The state of a training on the disk: the newest alone, with its history, whole or not at all.

All processes write it, each what it holds, where all see the folder; where only process 0 does, that one has it brought
to it and writes it. Either can be restored by another number of processes, and onto another mesh.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from reangle_jax import mesh

_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone")


class SavedStates:
    """The saved states of one training; a context that ends when all is written.

    Args:
        folder: made if need be; None in a process that does not see it.
        seen: whether all processes see it.
    """

    def __init__(self, folder: Path | None, *, seen: bool = True):
        self._seen = seen
        self._manager = None
        if folder is not None:
            options = ocp.CheckpointManagerOptions(max_to_keep=1)
            if not seen:
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=1, multiprocessing_options=_ALONE, enable_async_checkpointing=False, create=False
                )
                folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "SavedStates":
        return self

    def __exit__(self, *error: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def save(self, step: int, tree: Any, history: Any) -> None:
        """Saves the state after a step, if not yet saved, while further ones are taken; `history` may not change."""
        if not self._seen:
            tree = mesh.on_host(tree)
        if self._manager is not None and step != self._manager.latest_step():
            args = ocp.args.Composite(state=ocp.args.StandardSave(tree), history=ocp.args.JsonSave(history))
            self._manager.save(step, args=args)

    def wait(self) -> None:
        """Waits until all is written."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, Any] | None:
        """The newest state, in the shapes, types and layout of `like`, and its history; None if there is none."""
        if self._seen:
            assert self._manager is not None
            return _restored(self._manager, like)
        own = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), like)
        found = _restored(self._manager, own) if self._manager is not None else None
        text = b"" if found is None else json.dumps(found[1]).encode()
        length = int(_from_first(np.int32(len(text))))
        if length == 0:
            return None
        history = _from_first(np.frombuffer(text.ljust(length), np.uint8))
        values = jax.tree.map(_from_first, own if found is None else found[0])
        placed = jax.tree.map(
            lambda value, array: jax.make_array_from_callback(
                array.shape, array.sharding, lambda index, value=value: value[index]
            ),
            values,
            like,
        )
        return placed, json.loads(history.tobytes())


def _from_first(value: Any) -> np.ndarray:
    """Process 0's array, on every process."""
    return np.asarray(multihost_utils.broadcast_one_to_all(value), value.dtype)


def _restored(manager: ocp.CheckpointManager, like: Any) -> tuple[Any, Any] | None:
    latest = manager.latest_step()
    if latest is None:
        return None
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), history=ocp.args.JsonRestore())
    found = manager.restore(latest, args=args)
    return found["state"], found["history"]
