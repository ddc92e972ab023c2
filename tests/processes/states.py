"""A state that processes save or restore together: ``states.py save|restore FOLDER MESH``."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from reangle_jax import distributed, mesh, stopping
from reangle_jax.saved_states import SavedStates

HISTORY = {"loss": [0.5, 0.25, 0.125]}
VALUES = {"divided": np.arange(96, dtype=np.float32).reshape(8, 12), "count": np.int32(3)}
LAYOUT = {"divided": PartitionSpec(("r", "u")), "count": PartitionSpec()}


def tree(values):
    """Values on the current mesh."""
    here = mesh.current()
    return {
        name: jax.make_array_from_callback(
            np.shape(value), NamedSharding(here, LAYOUT[name]), lambda index, value=value: np.asarray(value)[index]
        )
        for name, value in values.items()
    }


def states(folder, seen, owns):
    return SavedStates(folder / str(seen) if seen or owns else None, seen=seen)


def restored(folder, seen, owns=True):
    """The values that were saved, each whole, and the history."""
    with states(folder, seen, owns) as saved:
        found, history = saved.restore(tree({name: np.zeros_like(value) for name, value in VALUES.items()}))
    return mesh.on_host(found), history


def work(team):
    action, folder, layout = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with mesh.use(mesh.make_mesh(layout)):
        for seen in (True, False):
            if action == "save":
                with states(folder, seen, team.owns) as saved:
                    assert saved.restore(tree(VALUES)) is None
                    saved.save(3, tree(VALUES), HISTORY)
            else:
                found, history = restored(folder, seen, team.owns)
                assert history == HISTORY
                for name, value in VALUES.items():
                    np.testing.assert_array_equal(found[name], value)
    return 0


def main():
    team = distributed.join()
    assert team.count == int(os.environ["REANGLE_PROCESSES"])
    return team.run(lambda: work(team))


if __name__ == "__main__":
    stopping.run(main)
