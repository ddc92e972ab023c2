"""What processes say to each other, and how they end together, without any model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local

ROOT = Path(__file__).parents[2]


LOST = "error: process 1 of 2 (counted from 0) gave no sign of life for 3 s: killed, or cut off with its host; "
LOST += "its own last lines may say why. The same command goes on from what is saved"


@pytest.mark.parametrize(
    ("how", "codes", "limit", "line"),
    [
        ("error", (2, 2), 60, "error: no good"),
        ("die", (1, -signal.SIGKILL), 60, LOST),
        ("break", (1, -signal.SIGKILL), 60, LOST),
    ],
)
def test_they_talk_and_end_together(tmp_path, how, codes, limit, line):
    """Process 0 is at something that takes minutes when the other one ends, with a word or without.

    Or it is at a collective with it, which breaks.
    """
    command = [sys.executable, ROOT / "tests/processes/talk.py", how, tmp_path]
    keep = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "kept"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    common = os.environ | {"PYTHONPATH": str(ROOT)} | keep
    own = local.environments(2, 1, local.free_port())
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, env=common | {**one, "XLA_FLAGS": ""}, stderr=pipe, text=True) for one in own]
    began = time.monotonic()
    said = [process.communicate(timeout=250)[1] for process in started]
    found = [json.loads((tmp_path / str(index) / "found").read_text()) for index in range(2)]
    assert found[0] == found[1]
    assert found[0]["told"] == {"from": 0}
    assert found[0]["sees"] == [True, False]
    # The same answer at each time of asking; the last is the signal that one of them got.
    assert found[0]["asked"] == [0] * (len(found[0]["asked"]) - 1) + [signal.SIGTERM]
    assert (tmp_path / "1/file").read_bytes() == (tmp_path / "0/file").read_bytes()
    # Programs for CPUs lose the order of their collectives where they are kept (`distributed.join`).
    assert not list(tmp_path.glob("kept/*"))
    assert tuple(process.returncode for process in started) == codes
    assert time.monotonic() - began < limit
    # Nothing else: no traceback, and no stack trace of JAX's own end.
    assert [text for text in "".join(said).splitlines() if "preemption notice" not in text] == [line]
