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


@pytest.mark.parametrize(("how", "codes", "limit"), [("error", (2, 2), 60), ("die", (None, -signal.SIGKILL), 90)])
def test_they_talk_and_end_together(tmp_path, how, codes, limit):
    """Process 0 is at something that takes minutes when the other one ends, with a word or without."""
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
    for process, code in zip(started, codes, strict=True):
        assert process.returncode == code or (code is None and process.returncode not in (0, None))
    assert time.monotonic() - began < limit
    if how == "error":
        errors = [line for text in said for line in text.splitlines() if line.startswith("error: ")]
        assert errors == ["error: no good"]
