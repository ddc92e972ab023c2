"""Static view transport by two processes of four devices each: the pictures, the choices and the videos of one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch import local
from reangle_jax.data import files, pictures
from tests import quick_compilation
from tests.painters import static_inputs
from tests.painters.static_inputs import HEIGHT, VIEWS, WIDTH

ROOT = Path(__file__).parents[2]
GIVEN = "up_9"

pytestmark = [pytest.mark.slow, pytest.mark.sharding]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A clip, its weights, and the user's own first frame of one view."""
    folder = static_inputs.write(tmp_path_factory.mktemp("static"))
    own = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    (folder / "given").mkdir()
    pictures.write_png(folder / "given" / f"{GIVEN}.png", own)
    return folder


def run(inputs, workdir, *, processes, place="never"):
    """Exit codes and what was said, of each; ``place`` is where the first process is killed.

    It ends with the videos: what comes after them process 0 makes alone, of them.
    """
    command = [
        sys.executable,
        ROOT / "tests/painters/killed.py",
        f"{place}, until generate",
        f"--config={inputs / 'config.py'}",
    ]
    command += [f"--workdir={workdir}", f"--config.first_frames.given={inputs / 'given'}"]
    command += [f"--config.mesh={'data:2,u:4' if processes > 1 else 'auto'}"]
    common = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": quick_compilation.FLAGS, "JAX_PLATFORMS": "cpu"}
    own = local.environments(processes, 4, local.free_port()) if processes > 1 else [{}]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, env=common | one, stdout=pipe, stderr=pipe, text=True) for one in own]
    said = [process.communicate(timeout=600)[1] for process in started]
    return [process.returncode for process in started], said


@pytest.fixture(scope="module")
def one(inputs):
    codes, said = run(inputs, inputs / "one", processes=1)
    assert codes == [0], said
    return inputs / "one"


@pytest.fixture(scope="module")
def two(inputs):
    """The same run, whose first process was killed while it painted, and which then went on to its end."""
    codes, said = run(inputs, inputs / "two", processes=2, place="first_frames: right:6 2")
    assert codes[0] == -signal.SIGKILL, said
    assert codes[1] not in (0, -signal.SIGKILL)
    codes, said = run(inputs, inputs / "two", processes=2)
    assert codes == [0, 0], said
    assert "right:6 goes on after step 2" in said[0]
    assert json.loads((inputs / "two/run.json").read_text())["devices"]["processes"] == 2
    return inputs / "two"


def test_two_processes_learn_choose_and_make_what_one_does(inputs, one, two):
    own = pictures.read(inputs / "given" / f"{GIVEN}.png")
    for run_ in (one, two):
        np.testing.assert_array_equal(pictures.read(run_ / f"views/{GIVEN}/first_frame.png"), own)
    for name in VIEWS.values():
        mine, others = (run_ / "views" / name for run_ in (two, one))
        if name != GIVEN:
            record, expected = (json.loads((view / "first_frame.json").read_text()) for view in (mine, others))
            assert [step["kept"] for step in record["steps"]] == [step["kept"] for step in expected["steps"]]
            for step, other in zip(record["steps"], expected["steps"], strict=True):
                np.testing.assert_allclose(step["scores"], other["scores"], atol=1e-4)
            first, other = (pictures.read(view / "first_frame.png").astype(int) for view in (mine, others))
            assert np.abs(first - other).max() <= 1
        made, other = (files.load_npz(view / "frames.npz")["frames"].astype(int) for view in (mine, others))
        assert np.abs(made - other).max() <= 1
    losses, other = (json.loads((run_ / "lora/losses.json").read_text()) for run_ in (two, one))
    np.testing.assert_allclose(losses, other, rtol=1e-5)
