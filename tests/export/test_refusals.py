"""What an export refuses in one line, and what it leaves: nothing that is half done."""

import fcntl
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from reangle_jax.data import files
from reangle_jax.export.command import main
from tests.export.conftest import export


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--format", "neu3d"],
            "the cameras of left_10, up_8_in_0_1 move, and it has one pose a camera: export a run of",
        ),
        (["--format", "multipleview", "--views", "left:10"], "the cameras of left_10 move"),
        (["--format", "colmap", "--views", "down:3"], "has no such view; it has left:10, up:8+in:0.1"),
        (["--format", "colmap", "--views", "left:10,left_10"], "names a view twice"),
        (["--format", "colmap", "--frames", "3"], "--frames 3: give numbers from 0 to 2"),
        (["--format", "colmap", "--test", "left:10"], "--format colmap has no --test"),
        (["--format", "neu3d", "--masks"], "--format neu3d has no --masks"),
        (["--format", "neu3d", "--square"], "--format neu3d has no --square"),
        (["--format", "dnerf", "--test", "input"], "must be one of two or more exported views, left_10, up_8_in_0_1"),
        (["--format", "blender"], "invalid choice: 'blender'"),
        ([], "--format is not set: one of nerfstudio"),
    ],
)
def test_what_cannot_be_written_gets_one_line_and_nothing_is_left(moving, tmp_path, capsys, arguments, words):
    assert main([str(moving), "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_finished_run_or_not_free(moving, tmp_path, capsys):
    assert main([str(tmp_path), "--format", "colmap", "--out", str(tmp_path / "out")]) == 2
    assert "is no run's folder (run.json: No such file or directory); give" in capsys.readouterr().err
    (tmp_path / "run" / "input").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text((moving / "run.json").read_text())
    assert main([str(tmp_path / "run"), "--format", "colmap", "--out", str(tmp_path / "out")]) == 2
    assert "frames.npz is missing: let the run end first" in capsys.readouterr().err
    assert main([str(moving), "--format", "colmap", "--out", str(tmp_path)]) == 2
    assert "is there already: each data set has a folder of its own" in capsys.readouterr().err
    assert main([str(moving), str(moving), "--format", "colmap", "--out", str(tmp_path / "out")]) == 2
    assert "takes one run at a time" in capsys.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[:99])


def emptied(path):
    path.write_bytes(b"")


def squeezed(path):
    arrays = files.load_npz(path)
    files.atomic_savez(path, **{name: a[:, :32] if a.ndim > 1 else a for name, a in arrays.items()})


def with_a_hole(path):
    arrays = files.load_npz(path)
    arrays["depth"][1, 2, 3] = np.nan
    files.atomic_savez(path, **arrays)


def without_views(path):
    files.atomic_write_json(path, {"settings": {"views": [], "caption": ""}})


def stages(frames, **settings):
    """What run.json says of a run whose caption was "a ball"."""
    source = {"depends": {"config.start": 0}, "outputs": {"input/frames.npz": "1", "views/left_10/cameras.json": "2"}}
    depends = {"input/frames.npz": frames, "config.caption": "a ball"}
    made = {"depends": depends, "outputs": {"views/left_10/frames.npz": "3"}}
    return lambda path: files.atomic_write_json(
        path,
        {
            "settings": {"views": ["left:10"], "caption": "a ball", "start": 0, **settings},
            "stages": {"ingest": source} if frames is None else {"ingest": source, "generate/left_10": made},
        },
    )


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("views/left_10/frames.npz", cut, "its files are damaged (frames.npz: File is not a zip file)"),
        ("input/depth.npz", emptied, "its files are damaged (depth.npz: No data left in file)"),
        ("views/left_10/warp.npz", squeezed, "its depth and left_10 are not of one clip): run it again"),
        ("views/left_10/frames.npz", squeezed, "its depth and left_10 are not of one clip): run it again"),
        ("input/depth.npz", squeezed, "its depth and input are not of one clip): run it again"),
        ("input/depth.npz", with_a_hole, "its depth or its frames per second are not finite and above 0): run it"),
        ("run.json", without_views, "names no views"),
        (
            "run.json",
            stages("0"),
            "left_10/frames.npz is not finished, for input/frames.npz was made anew: let the run",
        ),
        ("run.json", stages("1", caption="a cube"), "for config.caption was a ball when it was made: let the run end"),
        ("run.json", stages("1", start=3), "for config.start was 0 when it was made"),
        ("run.json", stages(None), "left_10/frames.npz is not finished: let the run end first"),
    ],
)
def test_runs_that_are_damaged_or_half_done_are_refused(standing, tmp_path, capsys, file, change, words):
    shutil.copytree(standing, tmp_path / "run")
    change(tmp_path / "run" / file)
    assert main([str(tmp_path / "run"), "--format", "dnerf", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_done_by_its_record_is_taken(standing, tmp_path):
    shutil.copytree(standing, tmp_path / "run")
    stages("1")(tmp_path / "run" / "run.json")
    export(tmp_path / "run", tmp_path / "out", "points", "--frames", "0")
    assert list((tmp_path / "out").glob("*.ply"))


def test_a_view_called_as_the_input_is(standing, tmp_path, capsys):
    run = shutil.copytree(standing, tmp_path / "run")
    (run / "views" / "left_10").rename(run / "views" / "input")
    files.atomic_write_json(run / "run.json", {"settings": {"views": ["a/input.json"], "caption": ""}})
    assert main([str(run), "--format", "dnerf", "--with-input", "--out", str(tmp_path / "out")]) == 2
    assert "a/input.json is called input too" in capsys.readouterr().err
    export(run, tmp_path / "out", "dnerf")


@pytest.mark.parametrize("out", [".", "file/x", "z" * 252, "/proc/none/x"])
def test_places_that_cannot_be_written(moving, tmp_path, monkeypatch, capsys, out):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "empty" / "file").touch() if out != "." else None
    before = sorted(tmp_path.rglob("*"))
    assert main([str(moving), "--format", "points", "--out", out]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {'. is there already' if out == '.' else 'cannot be'}")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_export_left_is_cleared(moving, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, others = tmp_path / f".out.{dead.pid}.tmp", tmp_path / f".other.{dead.pid}.tmp"
    alive, locked = tmp_path / f".out.{os.getppid()}.tmp", tmp_path / ".out.4000000000.tmp"
    for folder in (left, others, alive, locked):
        (folder / "images").mkdir(parents=True)
    held = os.open(locked, os.O_RDONLY)  # as by a writer of another machine
    fcntl.flock(held, fcntl.LOCK_EX)
    export(moving, tmp_path / "out", "points", "--frames", "0")
    os.close(held)
    assert {path.name for path in tmp_path.iterdir()} == {"out", others.name, alive.name, locked.name}


def test_a_link_to_a_folder_stays_one(moving, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    export(moving, tmp_path / "link", "points", "--frames", "0")
    assert (tmp_path / "link").is_symlink()
    assert list((tmp_path / "disk").iterdir())
