"""What two processes save is restored by one and by four, onto other meshes, whether all see the disk or one does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch import local
from reangle_jax import mesh
from tests.processes import states

ROOT = Path(__file__).parents[2]


def start(processes, *arguments):
    command = [sys.executable, ROOT / "tests/processes/states.py", *arguments]
    common = os.environ | {"PYTHONPATH": str(ROOT)}
    own = local.environments(processes, 1, local.free_port())
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, env=common | {**one, "XLA_FLAGS": ""}, stderr=pipe, text=True) for one in own]
    said = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(text[-2000:] for text in said)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    start(2, "save", str(folder), "u:2")
    return folder


def test_all_write_where_all_see_the_disk(saved):
    written = {path.name for path in (saved / "True/3").rglob("*process*")}
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= written
    assert not {path.name for path in (saved / "False/3").rglob("*process_1*")}


@pytest.mark.parametrize("layout", ["data:1", "r:2,u:4"])
@pytest.mark.parametrize("seen", [True, False])
def test_one_process_restores_it(saved, layout, seen):
    with mesh.use(mesh.make_mesh(layout)):
        found, history = states.restored(saved, seen)
    assert history == states.HISTORY
    for name, value in states.VALUES.items():
        np.testing.assert_array_equal(found[name], value)


def test_four_restore_it_onto_another_mesh(saved):
    start(4, "restore", str(saved), "data:2,u:2")
