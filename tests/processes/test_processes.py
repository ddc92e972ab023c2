"""Real processes on this machine's CPU, whose collectives are gloo's: one run by several equals one process's.

Two processes with a device each hold the adapters, their optimiser and the frozen weights in halves.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import local
from reangle_jax.data import files
from tests import quick_compilation
from tests.processes.small import STEPS, write_inputs

ROOT = Path(__file__).parents[2]
# Rounding differs with the order of sums, and Adam's first steps are the rate times about the gradient's sign: where
# that is nearly zero, rounding decides.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}

pytestmark = [pytest.mark.slow, pytest.mark.sharding]


@pytest.fixture(scope="module")
def config(small_weights, tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), small_weights)


def start(config, workdir, *, processes=2, mesh="u:2", what="", flags=()):
    """Starts processes with a device each."""
    command = [sys.executable, ROOT / "tests/processes/worker.py", what, f"--config={config}", f"--workdir={workdir}"]
    command += [f"--config.mesh={mesh}", *flags]
    own = local.environments(processes, 1, local.free_port()) if processes > 1 else [{}]
    # As in conftest.py, but for the devices.
    common = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": quick_compilation.FLAGS, "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(command, env=os.environ | one | common, stdout=pipe, stderr=pipe, text=True) for one in own
    ]


def ended(started, seconds=1500):
    """Exit codes and what was said, of each."""
    said = [process.communicate(timeout=seconds)[1] for process in started]
    return [process.returncode for process in started], said


def run(*arguments, **options):
    codes, said = ended(start(*arguments, **options))
    assert set(codes) == {0}, "\n".join(text[-2000:] for text in said)
    return said


def learnt(workdir):
    return load_file(workdir / "lora/lora.safetensors"), json.loads((workdir / "lora/losses.json").read_text())


def assert_equally_learnt(one, other):
    (arrays, losses), (expected, expected_losses) = learnt(one), learnt(other)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert arrays.keys() == expected.keys()
    values, others = (np.concatenate([part[name].ravel() for name in sorted(part)]) for part in (arrays, expected))
    assert (~np.isclose(values, others, **CLOSE)).mean() < 1e-3


@pytest.fixture(scope="module")
def one(config, tmp_path_factory):
    """The run by one process."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    run(config, workdir, processes=1, mesh="auto")
    return workdir


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """The run by two processes, one of which was told to stop in the second step of fine-tuning."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    codes, said = ended(start(config, workdir, what="stop:1:1"))
    assert codes == [143, 143], said
    # One of them says it, and only it.
    assert sum(text.count("stopped by SIGTERM: the same command continues") for text in said) == 1
    kept = tmp_path_factory.mktemp("kept") / "run"
    shutil.copytree(workdir, kept)
    return workdir, kept


@pytest.fixture(scope="module")
def two(config, stopped):
    """The same run, in which one process died after it was started again, and which then went on to its end.

    In the start between, process 0 alone saw the folder, restored the state for all, and saved it.
    """
    workdir, _ = stopped
    started = start(config, workdir, what=f"kill:1:{STEPS - 1} blind")
    assert started[1].wait(timeout=1500) == -signal.SIGKILL
    began = time.monotonic()
    codes, said = ended(started)
    assert time.monotonic() - began < 60
    assert codes[0] == 1, said[0]
    assert "finetune goes on after step" in said[0]
    # No traceback of the collective that broke, and no stack trace of JAX's own end.
    assert said[0].splitlines()[-1].startswith("error: process 1 of 2 (counted from 0) gave no sign of life for 25 s")
    assert "Traceback" not in said[0]
    assert "stack trace" not in said[0]
    assert not (workdir / "lora").exists()
    said = run(config, workdir)
    assert f"finetune goes on after step {STEPS - 2}" in said[0]
    return workdir


def test_the_whole_run_equals_one_processs_though_stopped_and_killed(one, two):
    assert_equally_learnt(two, one)
    # Guidance enlarges the difference, and bytes are rounded.
    made, expected = (files.load_npz(run / "views/left_8/frames.npz")["frames"].astype(int) for run in (two, one))
    assert np.abs(made - expected).max() <= 1
    names = [{path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} for run in (two, one)]
    mine, others = ({name for name in found if not name.startswith(("lora/state", "logs/"))} for found in names)
    assert mine == others
    assert json.loads((two / "run.json").read_text())["devices"]["processes"] == 2


def test_what_two_processes_saved_one_goes_on_with(config, one, stopped, tmp_path):
    """Without a mesh; `test_states` has more of them, and other meshes."""
    shutil.copytree(stopped[1], tmp_path / "run")
    said = run(config, tmp_path / "run", processes=1, mesh="auto", what=" short")
    assert "finetune goes on after step" in said[0]
    assert_equally_learnt(tmp_path / "run", one)


def test_each_process_reads_the_videos_that_its_devices_encode(config, one, tmp_path):
    said = run(config, tmp_path / "run", mesh="data:2", what=" short tell")
    assert [re.findall(r"^read video (\d)$", text, re.MULTILINE) for text in said] == [["0"], ["1"]]
    assert_equally_learnt(tmp_path / "run", one)


def test_a_users_error_is_one_line_and_ends_all(config, tmp_path):
    codes, said = ended(start(config, tmp_path / "run", flags=["--config.video=none.mp4"]))
    assert codes == [2, 2]
    assert said[0].splitlines()[-1] == "error: config.video: no such file or folder: none.mp4"
    assert (said[0].count("error"), said[1]) == (1, "")
