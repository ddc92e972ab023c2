"""The command from files to figures, and every mistake that it must answer in one line."""

import errno
import json
import os
import shutil
import signal

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.data import files
from reangle_jax.data.video import write_video
from reangle_jax.models.dino import DinoConfig
from reangle_jax.models.lpips import Lpips, LpipsConfig
from reangle_jax.scoring import networks
from reangle_jax.scoring.command import main
from reangle_jax.scoring.image import psnr, ssim
from reangle_jax.scoring.video import PairScore, score_views
from tests.networks import save_sharded
from tests.scoring.small_scorer import SIZE, write_weights


@pytest.fixture(scope="module")
def weights(scorer_weights):
    return scorer_weights


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """a.png, its copy, and another of the same size."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        save(folder / f"{name}.png", smooth(rng, SIZE, SIZE))
    shutil.copy(folder / "a.png", folder / "copy.png")
    return folder


def smooth(rng, height, width):
    """A random picture with large patches of colour."""
    return cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def save(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1])


def quick(weights):
    return "--weights", weights, "--size", SIZE, "--features", "dino"


def run(capsys, *arguments):
    """Exit code, the JSON (None without), stderr."""
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.slow  # it compiles FeatUp; the others do with DINO
def test_pictures_to_figures_and_maps(capsys, weights, pictures, tmp_path):
    names = [str(pictures / f"{name}.png") for name in ("a", "copy", "b")]
    options = ("--weights", weights, "--size", SIZE, "--save-maps", tmp_path / "maps")
    code, report, err = run(capsys, *names, *options)
    assert code == 0
    assert report["inputs"] == names
    assert [(p["first"], p["second"]) for p in report["pairs"]] == [
        (names[i], names[j]) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    same, other, again = report["pairs"]
    assert same["overlap"] > 0.02  # discs of a sixth of a pixel leave gaps
    # Cosines of equal vectors in float32.
    assert same["met3r"] == pytest.approx(0, abs=1e-6)
    assert 1e-3 < other["met3r"] <= 2
    assert again["met3r"] == pytest.approx(other["met3r"], abs=1e-6)
    assert report["met3r"] == pytest.approx(np.mean([p["met3r"] for p in report["pairs"]]))
    assert report["notes"] == []
    assert f"{other['met3r']:.4f}" in err
    assert "mean" in err

    # The files' own values, from Python.
    images = [cv2.imread(name)[..., ::-1] for name in (names[0], names[2])]
    (score,) = score_views(*networks.load(weights), images, keep_ways=True)
    assert other["met3r"] == pytest.approx(score.met3r, abs=1e-6)
    assert other["overlap"] == pytest.approx(score.overlap)

    assert len(other["maps"]) == 8
    maps = {path.name: cv2.imread(str(path)) for path in (tmp_path / "maps").iterdir()}
    assert len(maps) == 24
    assert all(picture.shape == (SIZE, SIZE, 3) for picture in maps.values())
    seen = np.mean([maps[f"{way}-overlap.png"].mean() / 255 for way in ("1-3", "3-1")])
    assert seen == pytest.approx(other["overlap"])
    np.testing.assert_array_equal(maps["1-2-first.png"], maps["1-2-second.png"])
    assert (maps["1-3-first.png"] != maps["1-3-second.png"]).any()
    assert not maps["1-3-score.png"][maps["1-3-overlap.png"] == 0].any()


def test_other_features_and_a_file_for_the_report(capsys, weights, pictures, tmp_path):
    both = (pictures / "a.png", pictures / "b.png")
    code, report, _ = run(capsys, *both, *quick(weights), "--out", tmp_path / "new" / "score.json")
    assert (code, report) == (0, None)
    report = json.loads((tmp_path / "new" / "score.json").read_text())
    assert report["features"] == "dino"
    assert 0 < report["met3r"] <= 2


def test_unequal_sizes_are_resized_with_a_note(capsys, weights, pictures, tmp_path):
    a = cv2.imread(str(pictures / "a.png"))[..., ::-1]
    save(tmp_path / "large.png", cv2.resize(a, (3 * SIZE, 2 * SIZE), interpolation=cv2.INTER_CUBIC))
    code, report, err = run(capsys, pictures / "a.png", tmp_path / "large.png", *quick(weights))
    assert code == 0
    (note,) = report["notes"]
    assert f"large.png is {3 * SIZE}x{2 * SIZE}: resized to the {SIZE}x{SIZE} of" in note
    assert f"note: {note}" in err


def test_no_overlap_is_said_and_null(capsys, pictures, tmp_path):
    weights = write_weights(tmp_path, depth=-30.0)  # all points behind the cameras
    both = (pictures / "a.png", pictures / "b.png")
    code, report, err = run(capsys, *both, *quick(weights), "--save-maps", tmp_path)
    assert code == 0
    assert report["met3r"] is None
    assert report["pairs"][0]["met3r"] is None
    assert report["pairs"][0]["overlap"] == 0
    assert "nothing in common" in report["notes"][0]
    assert "none" in err
    assert not cv2.imread(str(tmp_path / "1-2-score.png")).any()


def test_videos_frame_by_frame(capsys, weights, tmp_path):
    rng = np.random.default_rng(1)
    first, second = (np.stack([smooth(rng, SIZE, SIZE) for _ in range(3)]) for _ in range(2))
    second[0] = first[0]
    for k in range(3):
        save(tmp_path / "one" / f"{k}.png", first[k])
    for k in range(2):
        save(tmp_path / "two" / f"{k}.png", second[k])
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    code, report, err = run(capsys, "--video", one, two, *quick(weights))
    assert code == 0
    assert report["frames"] == 2
    (pair,) = report["pairs"]
    same, other = pair["per_frame"]
    assert same == pytest.approx(0, abs=1e-6)
    assert other > 1e-3
    assert report["met3r"] == pair["met3r"] == pytest.approx((same + other) / 2)
    assert f"{two} ends after 2 frames" in report["notes"][0]
    change = np.abs(np.diff(first.astype(float), axis=0)).mean()
    assert report["temporal_flickering"][one] == pytest.approx(1 - change / 255)
    assert "temporal flickering" in err


def test_encoded_videos_and_one_of_a_single_frame(capsys, weights, tmp_path):
    frames = np.stack([smooth(np.random.default_rng(2), SIZE, 2 * SIZE)] * 2)
    write_video(tmp_path / "a.mp4", frames, 8.0)
    write_video(tmp_path / "b.mp4", frames, 8.0)
    write_video(tmp_path / "still.mp4", frames[:1], 8.0)
    videos = [str(tmp_path / f"{name}.mp4") for name in ("a", "b", "still")]
    code, report, _ = run(capsys, "--video", *videos, *quick(weights))
    assert code == 0
    assert report["frames"] == 1
    assert len(report["pairs"]) == 3
    assert report["pairs"][0]["met3r"] == pytest.approx(0, abs=1e-6)
    assert report["temporal_flickering"][videos[0]] == pytest.approx(1, abs=0.01)
    assert report["temporal_flickering"][videos[2]] is None
    assert any("one frame only" in note for note in report["notes"])


def refused(capsys, *arguments):
    code, report, err = run(capsys, *arguments)
    assert (code, report) == (2, None)
    lines = err.splitlines()
    assert lines[-1].startswith("error: ")
    assert len([line for line in lines if not line.startswith("note: ")]) == 1
    return lines[-1]


def test_what_is_given_is_too_little_or_too_much(capsys, weights, pictures):
    a, b = pictures / "a.png", pictures / "b.png"
    assert "only" in (line := refused(capsys, a, "--weights", weights))
    assert "give two pictures or more" in line
    assert "none is given" in refused(capsys, "--weights", weights)
    assert "give two videos or more" in refused(capsys, "--video", a, "--weights", weights)
    assert "exclude each other" in refused(capsys, a, b, "--video", a, b)
    assert "--nonsense" in refused(capsys, a, b, "--nonsense")
    assert "--features" in refused(capsys, a, b, "--features", "colour")
    assert "take 24 or 32" in refused(capsys, a, b, "--weights", weights, "--size", 30)
    assert "--size: -5 is no whole number from 1 on" in refused(capsys, a, b, "--weights", weights, "--size", -5)


def test_files_that_cannot_be_used(capsys, weights, pictures, tmp_path):
    a, broken, video = pictures / "a.png", tmp_path / "broken.png", tmp_path / "broken.mp4"
    assert "no such file: missing.png" in refused(capsys, a, "missing.png", "--weights", weights)
    broken.write_bytes((pictures / "b.png").read_bytes()[:60])
    assert "broken.png is not a picture" in refused(capsys, a, broken, "--weights", weights)
    assert "is not a picture" in refused(capsys, a, tmp_path, "--weights", weights)
    video.write_text("no video")
    options = quick(weights)
    assert "--video: " in (line := refused(capsys, "--video", video, video, *options))
    assert "is not a video" in line
    assert "is a single picture" in refused(capsys, "--video", a, a, *options)
    assert "--out" in refused(capsys, a, a, *options, "--out", tmp_path)
    assert "--save-maps" in refused(capsys, a, a, *options, "--save-maps", broken)
    assert "--out: gs://b/a.json is an address" in refused(capsys, a, a, *options, "--out", "gs://b/a.json")
    assert "--video: https://h/a.mp4 is an address" in refused(capsys, "--video", a, "https://h/a.mp4", *options)


def test_a_report_that_cannot_be_written_is_told_in_a_line(capsys, tmp_path, monkeypatch):
    def gone(path, content):
        raise FileNotFoundError(
            errno.ENOENT, os.strerror(errno.ENOENT), str(path)
        )  # as of /proc, or a folder that went

    monkeypatch.setattr(files, "atomic_write_json", gone)
    save(tmp_path / "a.png", np.full((32, 32, 3), 9, np.uint8))
    arguments = (tmp_path / "a.png", "--reference", tmp_path / "a.png", "--out", tmp_path / "x.json")
    code, _, said = run(capsys, *arguments)
    assert code == 2
    assert "PSNR" in said  # the table is told all the same
    assert said.splitlines()[-1].endswith("x.json cannot be written (No such file or directory); choose another")


def test_weights_that_cannot_be_used(capsys, weights, pictures, tmp_path):
    both = (pictures / "a.png", pictures / "b.png")
    assert "--weights is not set" in refused(capsys, *both)
    assert "give tiny, or the folder" in refused(capsys, *both)
    assert "dust3r is missing" in refused(capsys, *both, "--weights", tmp_path)
    shutil.copytree(weights / "dust3r", tmp_path / "dust3r")
    assert "featup is missing: convert it" in refused(capsys, *both, "--weights", tmp_path)
    shutil.copytree(weights / "dino", tmp_path / "dino")
    assert "or take --features=dino" in refused(capsys, *both, "--weights", tmp_path)
    shutil.copytree(weights / "dino", tmp_path / "featup")
    assert "describes DinoConfig, not FeatUpConfig" in refused(capsys, *both, "--weights", tmp_path)
    line = refused(capsys, *both, "--weights", tmp_path, "--features", "dinov2")
    assert "dinov2 is missing: convert it" in line
    assert "or take --features=featup" in line
    arrays = tmp_path / "dust3r" / "model.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    line = refused(capsys, *both, "--weights", tmp_path)
    assert "is damaged" in line
    assert "error: --weights" in line


@pytest.fixture
def packaged(weights, monkeypatch):
    """The test's networks in the place of those that the package brings."""
    monkeypatch.setattr("reangle_jax.tiny.WEIGHTS", weights)


def test_the_packaged_weights(capsys, packaged, pictures, monkeypatch, tmp_path):
    both = (pictures / "a.png", pictures / "b.png")
    assert networks.resolve("tiny") == networks.tiny.WEIGHTS
    assert str(networks.resolve("./tiny")) == "tiny"
    assert networks.load("tiny", "dino")[0] == networks.load(networks.tiny.WEIGHTS, "dino")[0]
    assert "take --features=featup" in refused(capsys, *both, "--weights", "tiny", "--features", "dinov2")
    monkeypatch.setattr("reangle_jax.tiny.WEIGHTS", tmp_path)
    line = refused(capsys, *both, "--weights", "tiny")
    assert "this package has no small weights for the score; give the folder" in line


@pytest.mark.parametrize(("options", "size"), [((), 128), (("--size", SIZE), SIZE)])
def test_the_size_that_suits_the_packaged_weights(capsys, packaged, pictures, monkeypatch, options, size):
    sizes = []

    def score_views(metric, states, images, keep_ways):
        sizes.extend(image.shape for image in images)
        return [PairScore(0, 1, 0.5, 0.5)]

    monkeypatch.setattr("reangle_jax.scoring.video.score_views", score_views)
    both = (pictures / "a.png", pictures / "b.png")
    code, report, _ = run(capsys, *both, "--weights", "tiny", *options)
    assert (code, report["weights"], report["size"]) == (0, "tiny", [size, size])
    assert sizes == [(size, size, 3)] * 2
    code, report, _ = run(capsys, *both, "--weights", networks.tiny.WEIGHTS)
    assert report["size"] == [256, 256]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals(capsys, weights, pictures, monkeypatch, tmp_path, name, code):
    """One line, and no half of a file."""

    def stopped(*arguments):
        os.kill(os.getpid(), getattr(signal, name))

    both = (pictures / "a.png", pictures / "b.png")
    monkeypatch.setattr("reangle_jax.scoring.video.score_views", lambda *_, **__: stopped())
    got, report, err = run(capsys, *both, *quick(weights), "--out", tmp_path / "score.json")
    assert (got, report, err) == (code, None, f"stopped by {name}: no report was written\n")
    monkeypatch.undo()
    monkeypatch.setattr(cv2, "imencode", stopped)
    got, _, err = run(capsys, *both, *quick(weights), "--save-maps", tmp_path)
    assert (got, len(err.splitlines())) == (code, 1)
    assert not any(tmp_path.iterdir())


def test_weights_as_the_converter_writes_them(scorer_weights, tmp_path):
    """An Orbax folder in place of the safetensors: the same parameters."""
    metric, states = networks.load(scorer_weights, "dino")
    shutil.copytree(scorer_weights / "dust3r", tmp_path / "dust3r")
    save_sharded(tmp_path / "dino", nnx.merge(metric.features, states[1]), DinoConfig.tiny())
    other, same = networks.load(tmp_path, "dino")
    assert other == metric
    jax.tree.map(np.testing.assert_array_equal, same, states)


def test_one_picture_against_a_reference_needs_no_weights(capsys, pictures, tmp_path):
    a, b = (cv2.imread(str(pictures / f"{name}.png"))[..., ::-1] for name in "ab")
    one, other = str(pictures / "b.png"), str(pictures / "a.png")
    code, report, err = run(capsys, one, "--reference", other)
    assert code == 0
    assert "pairs" not in report
    assert report["reference"]["file"] == other
    (row,) = report["reference"]["likeness"]
    assert row == {"input": one, "frames": 1, "psnr": psnr(b, a), "ssim": ssim(b, a)}
    assert report["notes"] == ["no LPIPS: --weights names no folder with lpips/ (python -m converters lpips-alex)"]
    assert [line.split()[-3:] for line in err.splitlines()[1:]] == [
        ["PSNR", "SSIM", "LPIPS"],
        [f"{row['psnr']:.4f}", f"{row['ssim']:.4f}", "none"],
    ]
    assert "no such file" in refused(capsys, one, "--reference", tmp_path / "nothing.png")
    assert "only" in refused(capsys, one, "--weights", tmp_path)


def test_lpips_and_consistency_beside_the_reference(capsys, weights, pictures, tmp_path):
    shutil.copytree(weights, tmp_path, dirs_exist_ok=True)
    config = LpipsConfig(divisor=16)
    model = Lpips(config, rngs=nnx.Rngs(4))
    checkpoints.save_model(tmp_path / "lpips", model, config)
    both = (pictures / "a.png", pictures / "b.png")
    code, report, _ = run(capsys, *both, *quick(tmp_path), "--reference", pictures / "copy.png")
    assert code == 0
    assert len(report["pairs"]) == 1
    same, other = report["reference"]["likeness"]
    assert same["psnr"] is None
    assert same["lpips"] == pytest.approx(0, abs=1e-12)  # squares of float32 round-off
    assert other["lpips"] > 1e-3
    assert any("PSNR is infinite" in line for line in report["notes"])


def test_videos_against_a_reference(capsys, tmp_path):
    rng = np.random.default_rng(3)
    frames = [smooth(rng, 48, 64) for _ in range(3)]
    for name, video in (("a", frames), ("b", frames[::-1])):
        folder = tmp_path / name
        for k, frame in enumerate(video):
            save(folder / f"{k}.png", frame)
    code, report, _ = run(capsys, "--video", tmp_path / "b", "--reference", tmp_path / "a")
    assert code == 0
    (row,) = report["reference"]["likeness"]
    assert row["frames"] == 3
    assert row["per_frame"]["psnr"][0] == psnr(frames[2], frames[0])
    assert row["per_frame"]["psnr"][1] is None  # the middle frame is its own counterpart


def test_too_little_memory_is_one_line(capsys, weights, pictures, monkeypatch):
    def large(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 65454971592 bytes.")

    monkeypatch.setattr(networks, "load", large)
    code, report, err = run(capsys, pictures / "a.png", pictures / "b.png", *quick(weights))
    assert (code, report) == (2, None)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: out of memory: 61.0 GiB were asked for at once, of ")
    assert "--size" in line
