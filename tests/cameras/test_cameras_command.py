import json

import numpy as np
import pytest

from reangle_jax.cameras.command import main
from reangle_jax.data import files
from reangle_jax.geometry import cameras as cam
from tests.cameras.writers import HEIGHT, WIDTH, colmap, nerfstudio, path


@pytest.fixture
def run(tmp_path):
    """A run up to its depth: a plane 3 in front of 12 cameras that stand still."""
    root = tmp_path / "run"
    files.atomic_savez(root / "input/depth.npz", depth=np.full((12, HEIGHT, WIDTH), 3.0, np.float32))
    source = cam.identity_cameras(cam.default_intrinsics(HEIGHT, WIDTH), 12)
    cam.save_cameras(root / "input/cameras.json", source, WIDTH, HEIGHT)
    settings = {"pivot_depth": "auto", "camera_frame": "first", "camera_scale": "pivot"}
    files.atomic_write_json(root / "run.json", {"settings": settings})
    return root


def test_it_says_what_is_in_a_file_and_writes_it(tmp_path, run, capsys):
    file = nerfstudio(tmp_path / "transforms.json", path(pivot=1.0))
    assert main([str(file), "--like", str(run), "--out", str(tmp_path / "out" / "cameras.json")]) == 0
    said = capsys.readouterr().out
    for words in (
        "nerfstudio, OpenGL's axes (x right, y up, z backward); camera to world",
        "cameras: 12, relative to the source's first camera, in scene units; the pivot is taken to be 3 away",
        "lens: the file; focal length 26 px at 72x48",
        "most like: in",
        "largest turn: 10.",
        "largest step: 0.0",
        "sees of the first frame: 0: 100 %",
    ):
        assert words in said
    found, width, height = cam.load_cameras(tmp_path / "out" / "cameras.json", expect_frames=12)
    assert (width, height) == (WIDTH, HEIGHT)
    np.testing.assert_allclose(found.camera_to_world, path(pivot=3.0), atol=1e-5)


def test_without_a_run_and_with_another_number(tmp_path, capsys):
    colmap(tmp_path / "model", path())
    out = tmp_path / "b.json"
    assert (
        main([str(tmp_path / "model"), "--resample", "30", "--frame", "given", "--scale", "2", "--out", str(out)]) == 0
    )
    assert "cameras: 30 (of 12), relative to the file's own world" in capsys.readouterr().out
    found = np.asarray(cam.load_cameras(out, expect_frames=30)[0].camera_to_world)
    np.testing.assert_allclose(found[-1, :3, 3], 2 * path()[-1, :3, 3], atol=1e-5)
    assert main([str(tmp_path / "model")]) == 0
    assert "nothing is written: --out" in capsys.readouterr().out


def test_three_lines_that_do_not_say_whose_they_are(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("0 10\n0 5\n0 0.1\n")
    assert main([str(tmp_path / "a.txt")]) == 2
    assert main([str(tmp_path / "a.txt"), "--format", "viewcrafter", "--out", str(tmp_path / "a.json")]) == 0
    assert "viewcrafter, phi, theta, r about the pivot: " in capsys.readouterr().out
    assert len(json.loads((tmp_path / "a.json").read_text())["frames"]) == 49


def away(poses):
    poses[5:, :3, :3] = poses[5:, :3, :3] @ np.diag([-1.0, 1, -1])
    return poses


def slowly_away(poses):
    turns = np.linspace(0, np.pi, len(poses))
    for pose, turn in zip(poses, turns, strict=True):
        pose[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    return poses


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (away, [], "jumps by 179 degrees from camera 4 to 5"),
        (slowly_away, [], "check its axes and --frame, --scale"),
        (lambda poses: poses * 1.1, [], "holds no rotation"),
        (None, ["--scale", "feet"], "--scale feet: it must be scene, pivot or a number above 0"),
        (None, ["--resample", "1"], "argument --resample: 1 is no whole number from 2 to 9999"),
        (None, ["--like", "nowhere"], "--like nowhere: is no run with depth"),
        (None, ["--out", "."], "--out: . is a folder; give the name of a file"),
        (None, ["--frame", "last"], "--frame: invalid choice"),
    ],
)
def test_what_cannot_be_used_gets_one_line(tmp_path, run, capsys, change, arguments, words):
    poses = change(path()) if change else path()
    if words == "holds no rotation":
        poses[:, 3, 3] = 1
    file = nerfstudio(tmp_path / "t.json", poses)
    like = [] if "--like" in arguments else ["--like", str(run)]
    assert main([str(file), *like, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def _settings(**changes):
    content = {"settings": {"pivot_depth": "auto", "camera_frame": "first", "camera_scale": "pivot", **changes}}
    return lambda run: files.atomic_write_json(run / "run.json", content)


def _depth(z):
    return lambda run: files.atomic_savez(run / "input/depth.npz", depth=z)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run / "run.json").write_text("[" * 100_000), "maximum recursion depth"),
        (lambda run: (run / "input/cameras.json").write_text("[" * 100_000), "is not JSON"),
        (lambda run: (run / "input/depth.npz").write_bytes(b"PK\3\4"), "depth.npz: File is not a zip file"),
        (_settings(pivot_depth=None), "float"),
        (_settings(pivot_depth=-1), "or a number above 0"),
        (_settings(camera_scale=[]), "it must be scene, pivot or a number above 0"),
        (_settings(camera_frame="last"), "camera_frame is 'last'"),
        (_depth(np.full((12, HEIGHT, WIDTH), np.nan)), "its depth is not above 0, or not of its cameras"),
        (_depth(np.ones((HEIGHT, WIDTH))), "its depth is not above 0, or not of its cameras"),
        (_depth(np.ones((3, HEIGHT, WIDTH))), "its depth is not above 0, or not of its cameras"),
    ],
)
def test_runs_that_are_damaged(tmp_path, run, capsys, change, words):
    file = nerfstudio(tmp_path / "transforms.json", path(pivot=1.0))
    change(run)
    assert main([str(file), "--like", str(run), "--out", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --like {run}: is no run with depth")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out.json").exists()
