"""The whole command with very small random networks: what it writes, what it redoes, what a kill leaves."""

import functools
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from reangle_jax import config, main
from reangle_jax.data import files, video
from reangle_jax.painters import registry as painters
from tests.networks import FRAMES, HEIGHT, WIDTH
from tests.painters import toy

ROOT = Path(__file__).parent.parent.parent
VIEWS = {"left:8": "left_8", "in:0.1": "in_0_1"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A clip (a textured wall, a nearer square that moves), its metric depth, and a config without weights."""
    folder = tmp_path_factory.mktemp("whole")
    texture = np.random.default_rng(0).integers(60, 200, (HEIGHT // 4, WIDTH // 4, 3)).astype(np.uint8)
    frames = np.stack([cv2.resize(texture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)] * FRAMES)
    depth = np.full(frames.shape[:3], 4.0, np.float32)
    for t in range(FRAMES):
        box = (t, slice(20, 40), slice(10 + 4 * t, 30 + 4 * t))
        frames[box], depth[box] = (220, 60, 40), 2.0
    video.write_video(folder / "clip.mp4", frames, 8)
    np.save(folder / "depth.npy", depth)
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        from reangle_jax.config import get_default
        def get_config():
            c = get_default()
            c.video, c.depth, c.depth_kind = {str(folder / "clip.mp4")!r}, {str(folder / "depth.npy")!r}, "metric"
            c.caption = "a red box"
            c.num_frames, c.height, c.width = {FRAMES}, {HEIGHT}, {WIDTH}
            c.model, c.weights = "tiny", "none"
            c.views, c.train_views = {tuple(VIEWS)!r}, ("left:8", "up:5")
            c.update_from_flattened_dict({{
                "finetune.steps": 6, "finetune.rank": 2, "finetune.alpha": 2.0, "finetune.checkpoint_every": 2,
                "sample.steps": 2, "evaluate.untuned": True,
            }})
            return c
        """)
    )
    return folder


def command(inputs, workdir, *arguments):
    return ["main", f"--config={inputs / 'config.py'}", f"--workdir={workdir}", *arguments]


def outputs(workdir):
    """Content of everything that a run leaves, but for what tells the time: record, logs, Orbax's own metadata."""
    skip = (".lock", ".hashes.json", "run.json", "report.html", ".scratch", "lora/state", "logs/")
    found = {path.relative_to(workdir).as_posix(): path for path in sorted(workdir.rglob("*")) if path.is_file()}
    return {name: files.hash_path(path) for name, path in found.items() if not name.startswith(skip)}


def what_was_done(text):
    return [line.split()[2].rstrip(":") for line in text.splitlines() if line.split()[1:2] in (["do"], ["redo"])]


def test_preview_warps_and_needs_no_weights(inputs, tmp_path, capfd):
    assert main.main(command(inputs, tmp_path, "--preview")) == 0
    assert what_was_done(capfd.readouterr().err) == [
        "ingest/frames", "ingest/cameras", "depth", "warp_views/left_8", "warp_views/up_5", "warp_views/in_0_1",
    ]  # fmt: skip
    source = files.load_npz(tmp_path / "input/frames.npz")["frames"]
    for name in ("left_8", "up_5", "in_0_1"):
        warp = files.load_npz(tmp_path / "views" / name / "warp.npz")
        assert warp["frames"].dtype == np.uint8
        assert warp["visible"].dtype == bool
        # Every path starts at the input camera, and leaves it.
        np.testing.assert_array_equal(warp["frames"][0], source[0])
        assert warp["visible"][0].all()
        assert warp["visible"][-1].mean() > 0.5
        assert name == "in_0_1" or warp["visible"][-1].mean() < 1
        assert len(
            video.read_video(tmp_path / "views" / name / "warp.mp4", num_frames=FRAMES, height=64, width=64).frames
        )
        cameras = json.loads((tmp_path / "views" / name / "cameras.json").read_text())
        assert len(cameras["frames"]) == FRAMES
        np.testing.assert_allclose(cameras["frames"][0]["camera_to_world"], np.eye(4), atol=1e-6)
    assert not (tmp_path / "metrics.json").exists()
    assert main.main(command(inputs, tmp_path, "--preview", "--config.pivot_depth=3")) == 0
    assert what_was_done(capfd.readouterr().err) == ["warp_views/left_8", "warp_views/up_5", "warp_views/in_0_1"]
    assert main.main(command(inputs, tmp_path, "--preview", "--config.focal=60")) == 0
    assert what_was_done(capfd.readouterr().err)[0] == "ingest/cameras"


def test_infill_leaves_the_mask_alone(inputs, tmp_path):
    for name, flag in (("with", "--config.infill"), ("without", "--noconfig.infill")):
        assert main.main(command(inputs, tmp_path / name, "--preview", flag, "--config.views=left:8")) == 0
    filled, torn = (files.load_npz(tmp_path / name / "views/left_8/warp.npz") for name in ("with", "without"))
    np.testing.assert_array_equal(filled["visible"], torn["visible"])
    np.testing.assert_array_equal(filled["frames"][torn["visible"]], torn["frames"][torn["visible"]])
    assert (torn["frames"][~torn["visible"]] == 0).all()
    assert (filled["frames"][~torn["visible"]].max(axis=-1) > 0).mean() > 0.9


@pytest.fixture(scope="module")
def weighted(small_weights):
    """What gives a command its weights."""
    return f"--config.weights={small_weights}"


@pytest.fixture(scope="module")
def whole(inputs, weighted, tmp_path_factory):
    """One unbroken run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        assert main.main(command(inputs, workdir, weighted)) == 0
    return workdir


class TestWholeRun:
    def test_the_folder_is_the_contracts(self, whole):
        expected = {"run.json", "metrics.json", "grid.mp4", "lora/lora.safetensors", "scene.html", "report.html"}
        expected |= {f"input/{name}" for name in ("video.mp4", "frames.npz", "depth.npz", "cameras.json")}
        for name in ("left_8", "in_0_1"):
            made = ("cameras.json", "warp.npz", "warp.mp4", "first_frame.png", "video.mp4", "frames.npz")
            expected |= {f"views/{name}/{file}" for file in made}
        for name in expected:
            assert (whole / name).stat().st_size > 0, name
        assert not list(whole.rglob("*.tmp"))
        frames = files.load_npz(whole / "views/left_8/frames.npz")["frames"]
        assert (frames.shape, frames.dtype) == ((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        depth = files.load_npz(whole / "input/depth.npz")["depth"]
        assert (depth.shape, depth.dtype) == ((FRAMES, HEIGHT, WIDTH), np.float32)
        first = cv2.imread(str(whole / "views/left_8/first_frame.png"))[..., ::-1]
        np.testing.assert_array_equal(first, files.load_npz(whole / "input/frames.npz")["frames"][0])

    def test_metrics(self, whole):
        from reangle_jax.scoring import motion
        from reangle_jax.scoring.image import psnr

        source = files.load_npz(whole / "input/frames.npz")["frames"]
        still = np.broadcast_to(motion.median_frame(source), source.shape)
        share = motion.moving(source, still, np.ones(source.shape[:-1], bool)).mean()
        metrics = json.loads((whole / "metrics.json").read_text())
        assert set(metrics["views"]) == set(VIEWS)
        for view, name in VIEWS.items():
            warp = files.load_npz(whole / "views" / name / "warp.npz")
            # As much moves as in the clip: every path sees the box.
            assert metrics["views"][view]["moving"] == pytest.approx(share, rel=0.15)
            for variant, file in (("tuned", "frames"), ("untuned", "untuned")):
                made = files.load_npz(whole / "views" / name / f"{file}.npz")["frames"]
                assert metrics["views"][view][variant]["psnr"] == pytest.approx(
                    psnr(made, warp["frames"], warp["visible"])
                )
                # Random networks show grey, the frozen scene shows wall: neither shows the box.
                assert metrics["views"][view][variant]["moving_psnr"] < 15
                assert metrics["views"][view][variant]["moving_gain"] < 5
        for variant in ("tuned", "untuned"):
            for score in ("psnr", "ssim", "moving_psnr", "moving_gain"):
                values = [metrics["views"][view][variant][score] for view in VIEWS]
                assert metrics["mean"][variant][score] == pytest.approx(np.mean(values))

    def test_grid_shows_input_warps_and_outputs(self, whole):
        columns, rows, strip = 3, 3, 18
        grid = video.read_video(
            whole / "grid.mp4", num_frames=FRAMES, height=rows * (HEIGHT + strip), width=columns * WIDTH
        ).frames.astype(float)
        source = files.load_npz(whole / "input/frames.npz")["frames"]
        warp = files.load_npz(whole / "views/left_8/warp.npz")["frames"]
        assert np.abs(grid[:, strip : strip + HEIGHT, :WIDTH] - source).mean() < 8
        assert np.abs(grid[:, strip : strip + HEIGHT, WIDTH : 2 * WIDTH] - warp).mean() < 8
        assert grid[:, :strip, :WIDTH].max() > 150  # a label

    def test_record_has_every_unit_measured(self, whole):
        record = json.loads((whole / "run.json").read_text())
        names = set(record["stages"])
        assert {"ingest/frames", "depth", "warp_views/up_5", "finetune", "generate/left_8", "evaluate/metrics"} <= names
        assert all(entry["seconds"] >= 0 and entry["peak_host_bytes"] > 0 for entry in record["stages"].values())

    def test_plan_says_done(self, inputs, weighted, whole, capsys):
        assert main.main(command(inputs, whole, weighted, "--plan")) == 0
        out = capsys.readouterr().out
        assert "not done yet" not in out
        assert "took" in out

    @pytest.mark.slow
    def test_redo_follows_the_settings(self, inputs, weighted, whole, capfd):
        """In order, each on top of the one before: the last restores the first run's outputs."""
        before = outputs(whole)
        assert main.main(command(inputs, whole, weighted)) == 0
        assert what_was_done(capfd.readouterr().err) == []
        assert main.main(command(inputs, whole, weighted, "--config.sample.steps=3")) == 0
        done = what_was_done(capfd.readouterr().err)
        assert done
        assert {name.split("/")[0] for name in done} == {"generate", "evaluate", "scene", "report"}
        assert outputs(whole) != before
        (whole / "views/left_8/warp.npz").write_bytes(b"damaged")
        assert main.main(command(inputs, whole, weighted)) == 0
        done = what_was_done(capfd.readouterr().err)
        assert done[0] == "warp_views/left_8"
        assert "finetune" not in done  # the warp came out equal
        assert outputs(whole) == before


# Legal values of what static mode alone reads, none of them the default.
STATIC_ALONE = {
    "first_frames.model": "tiny", "first_frames.weights": "nowhere", "first_frames.steps": 7,
    "first_frames.guidance_scale": 1.5, "first_frames.control_scale": 0.2, "first_frames.scale": 2.0,
    "first_frames.caption": "a cat", "first_frames.candidates": 3, "first_frames.fewest": 2, "first_frames.eta": 0.5,
    "first_frames.noise": "constant", "first_frames.guided": "0.0:0.5", "first_frames.every": 2,
    "first_frames.order": "in:0.1,left:8", "first_frames.with_input": False, "first_frames.reimpose": True,
    "first_frames.infill": True, "first_frames.strength": 0.6,
    "edit.source_caption": "a dog", "edit.steps": 9, "edit.skip": 2, "edit.guidance_scale": 2.5,
    "edit.source_guidance_scale": 1.0,
}  # fmt: skip
EITHER_MODES = {"first_frames.given", "edit.caption"}


@pytest.mark.slow
def test_dynamic_mode_is_untouched_by_static_mode(inputs, weighted, whole, tmp_path, monkeypatch):
    """Not by its settings, nor by its code having run before, in this process and in this folder."""
    default = config.get_default()
    defaults = {f"{group}.{key}": x for group in ("first_frames", "edit") for key, x in default[group].items()}
    assert STATIC_ALONE.keys() | EITHER_MODES == defaults.keys()
    assert all(STATIC_ALONE[key] != defaults[key] for key in STATIC_ALONE)
    monkeypatch.setitem(painters.ENTRIES, toy.NAME, toy.ENTRY)
    toy.write_weights(tmp_path / "painter")
    static = {
        "mode": "static", "finetune.steps": 0, "first_frames.steps": 3, "first_frames.candidates": 1,
        "first_frames.model": toy.NAME, "first_frames.weights": tmp_path / "painter",
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(main, "stages", functools.partial(before, "generate", main.stages))
        assert main.main(command(inputs, tmp_path / "run", weighted, *flags(static))) == 0
    assert (tmp_path / "run/views/left_8/first_frame.json").exists()
    with jax.numpy_dtype_promotion("standard"):
        assert main.main(command(inputs, tmp_path / "run", weighted, *flags(STATIC_ALONE))) == 0
    made, expected = outputs(tmp_path / "run"), outputs(whole)
    assert {name: made.get(name) for name in expected} == expected
    made, expected = (json.loads((run / "run.json").read_text())["stages"] for run in (tmp_path / "run", whole))
    assert made.keys() >= expected.keys()
    for name in expected.keys() - {"report"}:  # what is redone does not depend on them; the report names all settings
        assert made[name]["depends"] == expected[name]["depends"], name


def before(name, stages, **options):
    return itertools.takewhile(lambda stage: stage.name != name, stages(**options))


def flags(changes):
    return [f"--config.{key}={value}" for key, value in changes.items()]


KILLER = """
import os, signal, sys
from reangle_jax import main, progress
from reangle_jax.run import work

place, argv = sys.argv[1], ["main", *sys.argv[2:]]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

finish, update = work.Work.finish, progress.progress.update

def finish_or_die(self, unit):
    # The files are written, the record is not.
    if f"{self._stage.name}/{unit.name}" == place:
        die()
    finish(self, unit)

def update_or_die(self, *arguments, **values):
    update(self, *arguments, **values)
    if self._description == "finetune" and (place, self._done) == ("finetune stop", 3):
        os.kill(os.getpid(), signal.SIGTERM)
    if self._description == "finetune" and (place, self._done) == ("finetune step", 5):
        die()

work.Work.finish, progress.progress.update = finish_or_die, update_or_die
sys.exit(main.main(argv))
"""


# Where a start is stopped, its exit code, and what it must have said of the starts before.
STOPS = (
    ("ingest/frames", -9, None),
    ("depth/", -9, "do ingest/frames: not done yet"),
    ("warp_views/up:5", -9, "skip ingest/frames: done"),
    ("finetune stop", 143, "skip warp_views/left_8: done"),
    ("finetune step", -9, "finetune goes on after step 4"),  # the signal came when step 3 had been looked at
    ("generate/in:0.1", -9, "finetune goes on after step 4"),
    ("evaluate/metrics", -9, "skip generate/left_8: done"),
    ("never", 0, "skip generate/in_0_1: done"),
)


@pytest.mark.slow
def test_killed_in_every_stage_and_started_again_ends_with_the_same_outputs(inputs, weighted, whole, tmp_path):
    """One folder, killed again and again, each time further on."""
    cache = ROOT / ".cache" / "jax"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    for place, code, says in STOPS:
        arguments = command(inputs, tmp_path / "run", weighted)[1:]
        result = subprocess.run(
            [sys.executable, "-c", KILLER, place, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == code, f"{place}: {result.stderr[-2000:]}"
        assert says is None or says in result.stderr
    assert outputs(tmp_path / "run") == outputs(whole)
