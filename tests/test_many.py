"""Many clips by one command: the list, the shares, the groups of devices, and failures that stay where they are."""

import os
import signal
import sys
import threading
import time

import pytest

from reangle_jax import many
from reangle_jax.errors import InputError

PROGRAM = "import os, sys, time; print('error: no good'); time.sleep(float(sys.argv[2])); sys.exit(int(sys.argv[1]))"


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Three clips, one of which cannot be used; a clip's process only says so."""
    monkeypatch.setattr(many, "command_of", lambda clip, out, flags: [sys.executable, "-S", "-c", PROGRAM, *clip.flags])
    path = tmp_path / "clips.txt"
    path.write_text('beach 0 0\n\n# not that one\nstreet 2 0  # too short\n"dog" 0 0\n')
    return path


def test_a_failed_clip_does_not_end_the_others(clips, tmp_path, capsys):
    assert many.main(["many", str(clips), "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "street: exit code 2: error: no good" in said
    assert "2 of 3 clips are done" in said
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"beach.log", "street.log", "dog.log"}


def test_a_signal_is_passed_on(clips, tmp_path, capsys):
    clips.write_text("long 0 60\nlater 0 0\n")
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    assert many.main(["many", str(clips), "--out", str(tmp_path / "runs")]) == 143
    assert time.monotonic() - began < 30
    assert not (tmp_path / "runs/later.log").exists()
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_the_commands(tmp_path, capsys):
    path = tmp_path / "clips.txt"
    path.write_text('beach --config.caption="a dog"\nstreet --config.video=s.mp4\n')
    arguments = ["many", str(path), "--out", str(tmp_path), "--share", "0/2", "--dry-run", "--", "--config=c.py"]
    assert many.main(arguments) == 0
    expected = f"-m reangle_jax.main --config=c.py '--config.caption=a dog' --workdir={tmp_path / 'beach'}\n"
    assert capsys.readouterr().out.split(" ", 1)[1] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "clips.txt cannot be read (No such file or directory): give a text file"),
        ("# nothing\n", "holds no clips"),
        ("a --x\na --y\n", "line 2: there is a clip a above"),
        ("../a\n", "is no name of a folder"),
        ("a --workdir=b\n", "leave it out"),
        ('a "b\n', "close the quotation"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path, capsys, text, words):
    if text is not None:
        (tmp_path / "clips.txt").write_text(text)
    assert many.main(["many", str(tmp_path / "clips.txt"), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "clips.txt").write_text("beach --config.seed=1\n", encoding="utf-8-sig")
    assert many.read(tmp_path / "clips.txt") == [many.Clip("beach", ("--config.seed=1",))]


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("1/4", {}, (1, 4)),
        ("auto", {}, (0, 1)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"},
            (2, 4),
        ),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "1", "REANGLE_SHARES": "2", "REANGLE_SLICES": "3", "REANGLE_SLICE": "2"},
            (5, 6),
        ),
        ("auto", {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, (1, 2)),
    ],
)
def test_shares(text, environment, expected):
    assert many.share_of(text, environment) == expected


@pytest.mark.parametrize("text", ["4/4", "half", "1", "-1/2"])
def test_impossible_shares(text):
    with pytest.raises(InputError, match="it must be auto, or K/N"):
        many.share_of(text, {})


def test_groups_of_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert [own["CUDA_VISIBLE_DEVICES"] for own in many.groups(2)] == ["0,1", "2,3"]
    assert len(many.groups(0)) == 4
    with pytest.raises(InputError, match="4 devices do not divide"):
        many.groups(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(many.glob, "glob", lambda pattern: [f"/dev/accel{k}" for k in range(8)] * ("accel" in pattern))
    first, second = many.groups(2)
    assert (first["TPU_VISIBLE_CHIPS"], second["TPU_VISIBLE_CHIPS"]) == ("0,1,2,3", "4,5,6,7")
    assert first["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert first["TPU_MESH_CONTROLLER_PORT"] != second["TPU_MESH_CONTROLLER_PORT"]
