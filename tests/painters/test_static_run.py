"""Static view transport, whole, with a toy painter: painters/ and tests alone know of it."""

import functools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from reangle_jax import config, main
from reangle_jax.data import files, pictures
from reangle_jax.export.command import main as export
from reangle_jax.run import view_paths
from reangle_jax.stages import finetune
from tests.painters import flux_networks, static_inputs, toy
from tests.painters.static_inputs import HEIGHT, VIEWS, WIDTH, call

ROOT = Path(__file__).parents[2]
KILLED = Path(__file__).parent / "killed.py"


@pytest.fixture(scope="module", autouse=True)
def registered():
    with static_inputs.registered():
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return static_inputs.write(tmp_path_factory.mktemp("static"))


def done(text):
    return [line.split()[2].rstrip(":") for line in text.splitlines() if line.split()[1:2] in (["do"], ["redo"])]


def firsts(workdir):
    return {name: (workdir / "views" / name / "first_frame.png").read_bytes() for name in VIEWS.values()}


def record(workdir, name):
    return json.loads((workdir / "views" / name / "first_frame.json").read_text())


@pytest.fixture(scope="module")
def whole(inputs):
    with jax.numpy_dtype_promotion("standard"):
        assert call(inputs, inputs / "run") == 0
    return inputs / "run"


@pytest.fixture
def until(monkeypatch):
    """Leaves out the stages after one, which would only cost time."""
    every = main.stages

    def stages(last, **options):
        for stage in every(**options):
            yield stage
            if stage.name == last:
                return

    return lambda last: monkeypatch.setattr(main, "stages", functools.partial(stages, last))


@pytest.fixture
def again(whole, tmp_path):
    """A copy of the whole run."""
    subprocess.run(["cp", "-a", whole, tmp_path / "run"], check=True)
    return tmp_path / "run"


def test_a_whole_run(whole):
    source = files.load_npz(whole / "input/frames.npz")["frames"]
    for name in VIEWS.values():
        cameras = json.loads((whole / "views" / name / "cameras.json").read_text())["frames"]
        assert cameras[0] == cameras[-1]  # it stands still,
        assert np.abs(np.array(cameras[0]["camera_to_world"]) - np.eye(4)).max() > 0.05  # and elsewhere
        warp, visible = pictures.read_holes(whole / "views" / name / "first_warp.png")
        first = files.load_npz(whole / "views" / name / "warp.npz")
        np.testing.assert_array_equal(visible, first["visible"][0])
        np.testing.assert_array_equal(warp, first["frames"][0])
        assert 0.3 < visible.mean() < 1
        made = pictures.read(whole / "views" / name / "first_frame.png")
        far = np.asarray(toy.far_from_holes(visible))
        np.testing.assert_array_equal(made[far], warp[far])  # known pixels are kept,
        assert (made[~visible] != warp[~visible]).any(axis=-1).mean() > 0.9  # and the holes painted
        frames = files.load_npz(whole / "views" / name / "frames.npz")["frames"]
        assert frames.shape == source.shape
    assert not (whole / "views/down_5/first_warp.png").exists()  # trained on alone


def test_all_videos_share_the_bare_caption(inputs, whole):
    settings = config.parse(runpy.run_path(str(inputs / "config.py"))["get_config"]())
    assert finetune.prompts(settings, whole) == ["waves"] * 3  # the input's and two warps'
    assert {view_paths.prompt(settings, whole, view) for view in VIEWS} == {"waves"}


def test_views_are_painted_one_after_another_each_to_agree_with_those_before(whole):
    order = sorted(VIEWS.values(), key=lambda n: -pictures.read_holes(whole / "views" / n / "first_warp.png")[1].mean())
    assert order[0] == "right_6"  # the smallest turn: the most is seen
    spelled = {name: view for view, name in VIEWS.items()}
    for place, name in enumerate(order):
        entry = record(whole, name)
        others = ["input", *(spelled[n] for n in order[:place])]
        assert sorted(entry["compared_with"]) == sorted(others)
        assert set(entry["met3r"]) == set(others)
        assert [step["step"] for step in entry["steps"]] == [1, 2]  # of 4: not in the first quarter, nor at the end
        for step in entry["steps"]:
            scores = np.array(step["scores"])[:, : len(others)]
            assert scores.shape == (3, len(others))
            assert step["kept"] == scores.sum(axis=1).argmax()
            assert len(set(scores.sum(axis=1))) > 1
        assert 0 < entry["painted"] < 0.7


def test_the_views_agreement_is_in_the_metrics(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    for of in ("first_frames", "tuned"):
        assert set(metrics["met3r"][of]) == {"between_views", "with_input"}
        assert all(0 < value < 2 for value in metrics["met3r"][of].values())
    assert (whole / "grid.mp4").stat().st_size > 0


def test_plan_says_done_and_what_painting_needs(inputs, whole, capsys):
    assert call(inputs, whole, "--plan") == 0
    assert "not done yet" not in capsys.readouterr().out
    for candidates, unit in ((1, "KiB"), (3, "MiB")):  # the toy alone; with the score's networks beside it
        assert call(inputs, inputs / "other", "--plan", f"--config.first_frames.candidates={candidates}") == 0
        lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
        assert lines["first_frames"].split()[1:3] == ["3", "0"]
        assert unit in lines["first_frames"]


def test_a_changed_view_redoes_those_painted_after_it_and_says_so(inputs, again, until, capfd):
    until("first_frames")
    before, second = firsts(again), "up_9"  # of right_6, up_9, left_12
    made = pictures.read(again / "views/left_12/first_frame.png")
    (again / "views" / second / "first_frame.png").unlink()
    assert call(inputs, again) == 0
    assert [n for n in done(capfd.readouterr().err) if n.startswith("first_frames")] == [f"first_frames/{second}"]
    assert firsts(again) == before  # made again as it was
    own = again.parent / "own"
    own.mkdir()
    pictures.write_png(own / f"{second}.png", made)
    assert call(inputs, again, f"--config.first_frames.given={own}") == 0
    said = capfd.readouterr().err
    assert {n for n in done(said) if n.startswith("first_frames")} >= {f"first_frames/{second}", "first_frames/left_12"}
    after = firsts(again)
    np.testing.assert_array_equal(pictures.read(again / "views" / second / "first_frame.png"), made)
    assert after["left_12"] != before["left_12"]
    assert second.replace("_", ":") in record(again, "right_6")["compared_with"]  # it comes first now
    assert f"made from views/{second}/first_frame.png" in said


def test_each_by_itself(inputs, again, until, capfd):
    """Without candidates nothing is compared, and no view depends on another."""
    until("first_frames")
    assert call(inputs, again, "--config.first_frames.candidates=1") == 0
    capfd.readouterr()
    assert record(again, "left_12")["steps"] == []
    assert "met3r" not in record(again, "left_12")
    (again / "views/right_6/first_frame.png").unlink()
    assert call(inputs, again, "--config.first_frames.candidates=1") == 0
    assert [n for n in done(capfd.readouterr().err) if n.startswith("first_frames")] == ["first_frames/right_6"]


def test_order_reward_and_size_as_given(inputs, again, until):
    until("first_frames")
    order = "--config.first_frames.order=up:9,left:12,right:6"
    assert call(inputs, again, order, "--noconfig.first_frames.with_input", "--config.first_frames.scale=1.5") == 0
    assert "compared_with" not in record(again, "up_9")
    assert record(again, "up_9")["steps"] == []
    assert record(again, "left_12")["compared_with"] == ["up:9"]
    assert sorted(record(again, "right_6")["compared_with"]) == ["left:12", "up:9"]
    warp, visible = pictures.read_holes(again / "views/left_12/first_warp.png")
    assert warp.shape == (48, 72, 3)
    small, seen = (files.load_npz(again / "views/left_12/warp.npz")[key][0] for key in ("frames", "visible"))
    assert visible.mean() == pytest.approx(seen.mean(), abs=0.08)
    made = pictures.read(again / "views/left_12/first_frame.png")
    assert made.shape == small.shape
    inside = toy.far_from_holes(seen)
    assert np.abs(made[inside].astype(int) - small[inside]).mean() < 12  # of 100: what is known is where it was


@pytest.mark.parametrize("infill", [False, True])
def test_the_painter_is_shown_holes_filled_if_asked(inputs, again, until, monkeypatch, infill):
    until("first_frames")
    shown, paint = [], toy.ToyPainter.paint

    def seen(self, networks, text, picture, visible, how, **options):
        shown.append((picture, visible, how.infill))
        return paint(self, networks, text, picture, visible, how, **options)

    monkeypatch.setattr(toy.ToyPainter, "paint", seen)
    assert call(inputs, again, "--config.first_frames.candidates=1", f"--config.first_frames.infill={infill}") == 0
    assert len(shown) == len(VIEWS)
    order = sorted(VIEWS.values(), key=lambda name: seen_of(again, name))
    for name, (picture, visible, told) in zip(order, shown, strict=True):
        warp, known = pictures.read_holes(again / "views" / name / "first_warp.png")
        filled = cv2.inpaint(warp, (~known).astype(np.uint8), 3, cv2.INPAINT_TELEA)
        np.testing.assert_array_equal(picture, filled if infill else warp)
        np.testing.assert_array_equal(visible, known)
        assert told is infill
        assert (filled[~known] != warp[~known]).any()


def seen_of(workdir, name):
    """How little of a view is seen: views are painted in this order."""
    return -pictures.read_holes(workdir / "views" / name / "first_warp.png")[1].mean()


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_an_edited_first_frame(inputs, again, until, mode, capfd):
    """What is made from the first frame changes; what is learnt does not."""
    until("first_frames")
    arguments = [f"--config.mode={mode}", "--config.first_frames.candidates=1"]
    arguments += ["--config.finetune.steps=0"] if mode == "dynamic" else []
    assert call(inputs, again, *arguments) == 0
    before, lora = firsts(again), (again / "lora/lora.safetensors").read_bytes()
    capfd.readouterr()
    assert call(inputs, again, *arguments, "--config.edit.caption=red") == 0
    said = done(capfd.readouterr().err)
    assert "first_warps/edit" in said
    assert "finetune" not in said
    assert (again / "lora/lora.safetensors").read_bytes() == lora
    edited, source = pictures.read(again / "input/edited.png"), files.load_npz(again / "input/frames.npz")["frames"][0]
    assert edited.shape == source.shape
    assert (edited != source).mean() > 0.5
    after = firsts(again)
    assert all(after[name] != before[name] for name in VIEWS.values())
    if mode == "dynamic":
        np.testing.assert_array_equal(pictures.read(again / "views/left_12/first_frame.png"), edited)


def test_a_picture_in_place_of_the_first_frame(inputs, again, until, tmp_path):
    until("first_warps")
    own = files.load_npz(again / "input/frames.npz")["frames"][0][:, ::-1]
    pictures.write_png(tmp_path / "own.png", own)
    before = pictures.read_holes(again / "views/left_12/first_warp.png")
    assert call(inputs, again, f"--config.first_frames.given={tmp_path / 'own.png'}") == 0
    np.testing.assert_array_equal(pictures.read(again / "input/edited.png"), own)
    after = pictures.read_holes(again / "views/left_12/first_warp.png")
    np.testing.assert_array_equal(after[1], before[1])
    assert (after[0] != before[0]).mean() > 0.5


def test_shared_noise_makes_the_videos_anew(inputs, again, until, capfd):
    until("generate")

    def videos():
        return {n: files.load_npz(again / "views" / n / "frames.npz")["frames"].tobytes() for n in VIEWS.values()}

    found = [videos()]
    for shared in ("same", "warped"):
        assert call(inputs, again, f"--config.sample.shared_noise={shared}") == 0
        assert {n.split("/")[0] for n in done(capfd.readouterr().err)} == {"generate"}
        found.append(videos())
    assert all(len({run[name] for run in found}) == 3 for name in VIEWS.values())


def test_what_is_exported_is_done(inputs, again, until, capfd):
    arguments = [str(again), "--format", "points", "--frames", "0", "--out"]
    assert export([*arguments, str(again.parent / "points")]) == 0
    until("warp_views")
    assert call(inputs, again, "--config.pivot_depth=3") == 0
    assert export([*arguments, str(again.parent / "none")]) == 2
    assert "frames.npz is not finished, for views/left_12/" in capfd.readouterr().err


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_own_pictures_for_all_views_need_no_painter(inputs, again, until, mode, tmp_path):
    until("first_frames")
    (tmp_path / "own").mkdir()
    for place, name in enumerate(VIEWS.values()):
        pictures.write_png(tmp_path / "own" / f"{name}.png", np.full((HEIGHT, WIDTH, 3), 40 * place, np.uint8))
    (tmp_path / "score").mkdir()
    for part in ("dust3r", "featup"):
        (tmp_path / "score" / part).symlink_to(inputs / "painter" / part)
    arguments = [
        f"--config.mode={mode}",
        "--config.finetune.steps=0",
        f"--config.first_frames.given={tmp_path / 'own'}",
    ]
    assert call(inputs, again, *arguments, f"--config.first_frames.weights={tmp_path / 'score'}") == 0
    for name in VIEWS.values():
        own, made = (
            pictures.read(place)
            for place in (tmp_path / "own" / f"{name}.png", again / "views" / name / "first_frame.png")
        )
        np.testing.assert_array_equal(made, own)


def test_one_candidate_needs_no_score(inputs, again, tmp_path, capfd):
    assert "met3r" in json.loads((again / "metrics.json").read_text())
    toy.write_weights(tmp_path / "blind")
    arguments = [f"--config.first_frames.weights={tmp_path / 'blind'}", "--config.first_frames.candidates=1"]
    assert call(inputs, again, *arguments, "--plan") == 0
    assert "missing" not in capfd.readouterr().out
    assert call(inputs, again, *arguments) == 0
    assert "MEt3R is left out" in capfd.readouterr().err
    assert "met3r" not in json.loads((again / "metrics.json").read_text())
    assert all(record(again, name)["steps"] == [] for name in VIEWS.values())


@pytest.mark.slow
def test_flux_paints_and_edits_in_its_place(inputs, again, until, tmp_path):
    """The real painter, at a very small size: its candidates are scored and chosen, and the first frame is edited."""
    until("first_frames")
    flux_networks.write_weights(tmp_path / "flux")
    subprocess.run(["cp", "-a", inputs / "painter/dust3r", inputs / "painter/featup", tmp_path / "flux"], check=True)
    before = firsts(again)
    arguments = ["--config.first_frames.model=tiny", f"--config.first_frames.weights={tmp_path / 'flux'}"]
    arguments += ["--config.views=left:12", "--config.first_frames.candidates=2", "--config.finetune.steps=0"]
    assert call(inputs, again, *arguments, "--config.edit.caption=a hat", "--config.edit.steps=5") == 0
    source, edited = files.load_npz(again / "input/frames.npz")["frames"][0], pictures.read(again / "input/edited.png")
    assert edited.shape == source.shape
    assert (edited != source).mean() > 0.5
    assert firsts(again)["left_12"] != before["left_12"]
    entry = record(again, "left_12")
    assert entry["compared_with"] == ["input"]
    assert [np.shape(step["scores"]) for step in entry["steps"]] == [(2, 1)]
    warp, visible = pictures.read_holes(again / "views/left_12/first_warp.png")
    made, far = pictures.read(again / "views/left_12/first_frame.png"), toy.far_from_holes(visible)
    np.testing.assert_array_equal(made[far], warp[far])


def killed(inputs, place, workdir, *arguments):
    """The command in a process of its own, killed at a place."""
    return subprocess.run(
        [sys.executable, KILLED, place, f"--config={inputs / 'config.py'}", f"--workdir={workdir}", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


# Where a start is stopped, its exit code, and what the next one must say.
STOPS = (
    ("first_warps/left:12", -9, "do first_warps/left_12: not done yet"),
    ("first_frames: right:6 2", -9, "right:6 goes on after step 2"),
    ("first_frames: up:9 3", 143, "up:9 goes on after step 3"),
    ("first_frames/left:12", -9, "left:12 goes on after step 4"),
    ("generate/up:9", -9, "skip first_frames/left_12: done"),
    ("never", 0, None),
)


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_pictures(inputs, whole, tmp_path):
    expected = None
    for place, code, says in STOPS:
        result = killed(inputs, place, tmp_path / "run")
        assert result.returncode == code, f"{place}: {result.stderr[-2000:]}"
        assert expected is None or expected in result.stderr, f"{place}: {result.stderr[-2000:]}"
        expected = says
    assert firsts(tmp_path / "run") == firsts(whole)
    for name in VIEWS.values():
        assert record(tmp_path / "run", name) == record(whole, name)
        made, known = (
            files.load_npz(run / "views" / name / "frames.npz")["frames"] for run in (tmp_path / "run", whole)
        )
        np.testing.assert_array_equal(made, known)


@pytest.mark.slow
def test_killed_while_it_edits_it_ends_with_the_same_pictures(inputs, again, until, tmp_path):
    until("first_warps")
    subprocess.run(["cp", "-a", again, tmp_path / "unbroken"], check=True)
    edit = "--config.edit.caption=red"
    assert killed(inputs, "first_warps: edit 3", again, edit).returncode == -9
    assert not (again / "input/edited.png").exists()
    for folder in (again, tmp_path / "unbroken"):
        assert call(inputs, folder, edit) == 0
    for name in ("input/edited.png", *(f"views/{name}/first_warp.png" for name in VIEWS.values())):
        assert (again / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
