import io
import logging
import time

import pytest

from reangle_jax import progress as module
from reangle_jax.progress import progress


@pytest.fixture
def clock(monkeypatch, caplog):
    """A clock that the test moves; logs are kept."""
    caplog.set_level(logging.INFO)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_where_there_is_no_terminal(clock, caplog):
    with progress(400, "finetune", initial=100) as bar:
        for _ in range(40):
            clock[0] += 2.0
            bar.update(loss=0.125, view="left:10")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2  # 80 seconds, one line each 30
    assert lines[0] == "finetune 115/400, 2.0 s/step, 9 min 30 s left, loss 0.125, view left:10"


def test_the_first_step_which_compiles_counts_in_no_rate(clock, caplog):
    with progress(5, "finetune") as bar:
        for seconds in (104.0, 29.0, 2.0):
            clock[0] += seconds
            bar.update()
    assert [record.getMessage() for record in caplog.records] == ["finetune 1/5", "finetune 3/5, 16 s/step, 31 s left"]


def test_short_work_says_nothing(clock, caplog):
    with progress(3, "warp", unit="view") as bar:
        for _ in range(3):
            bar.update()
    assert not caplog.records


def test_a_bar_on_a_terminal(monkeypatch, caplog):
    caplog.set_level(logging.INFO)  # a process that is to be silent shows no bar

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    with progress(3, "finetune") as bar:
        bar.update(loss=0.5)
        bar.update(2)
    assert "finetune: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
