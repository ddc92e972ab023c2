"""Figures of outputs whose agreement with the input is known."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.data import files
from reangle_jax.evaluation import manifest, parts
from reangle_jax.evaluation.item import Item
from reangle_jax.geometry import cameras as cam
from reangle_jax.models.lpips import Lpips, LpipsConfig
from reangle_jax.scoring import epipolar, networks, perceptual, vbench, video
from tests.evaluation.made import moving, save, write
from tests.scoring.small_scorer import SIZE, random
from tests.scoring.test_epipolar import KS, POSES, H, W, pose, views  # noqa: F401  (fixture)


def items(folder, cup, notes=None):
    found = manifest.read(write(folder, {"cup": cup})).outputs
    return [Item(output, [].append if notes is None else notes.append) for output in found]


@pytest.fixture
def options(scorer_weights):
    return parts.Options(weights=scorer_weights, features="dino", size=SIZE)


def test_met3r_in_two_readings(tmp_path, options):
    frames = moving(count=4, height=SIZE, width=SIZE)
    save(tmp_path / "input.npz", frames)
    save(tmp_path / "same.npz", frames[1:])
    view = {"outputs": {"same": {"file": "same.npz", "frames": {"start": 1}}, "late": "same.npz"}}
    same, late = items(tmp_path, {"input": "input.npz", "views": {"left": view}})
    # Cosines of equal vectors in float32.
    assert parts.PARTS["met3r_input"].measure(same, options)["met3r_input"] == pytest.approx(0, abs=1e-6)
    metric = networks.load(options.weights, "dino")
    pairs = [[a, b] for a, b in itertools.pairwise(frames)]
    expected = video.mean_score(score for pair in pairs for score in video.score_views(*metric, pair))
    assert expected > 1e-3
    assert parts.PARTS["met3r_input"].measure(late, options)["met3r_input"] == pytest.approx(expected, abs=1e-6)
    two = options._replace(step=2)
    (apart,) = video.score_views(*metric, list(frames[1:]), pairs=[(0, 2)])
    assert parts.PARTS["met3r_frames"].measure(same, two)["met3r_frames"] == pytest.approx(apart.met3r, abs=1e-6)
    inside = [score.met3r for score in video.score_views(*metric, list(frames[1:]), pairs=[(0, 1), (1, 2)])]
    found = parts.PARTS["met3r_frames"].measure(same, options)["met3r_frames"]
    assert found == pytest.approx(np.mean(inside), abs=1e-6)


def test_lpips_against_the_reference(tmp_path):
    config = LpipsConfig("squeeze", divisor=16)
    network = random(lambda: Lpips(config, rngs=nnx.Rngs(0)), 0)
    checkpoints.save_model(tmp_path / "lpips", network, config)
    frames = moving(count=3, height=40, width=40)
    save(tmp_path / "true.npz", frames)
    save(tmp_path / "ours.npz", frames[:2])
    view = {"reference": "true.npz", "outputs": {"ours": "ours.npz", "late": {"file": "ours.npz", "frames": [1, 2]}}}
    same, late = items(tmp_path, {"input": "true.npz", "views": {"left": view}})
    options = parts.Options(weights=tmp_path)
    expected = perceptual.measure(network)(frames[:2], frames[1:])
    assert parts.PARTS["lpips"].measure(same, options)["lpips"] == pytest.approx(
        0, abs=1e-6 * abs(float(expected.mean()))
    )
    assert parts.PARTS["lpips"].measure(late, options)["lpips"] == pytest.approx(expected.mean(), rel=1e-5)
    assert parts.PARTS["lpips"].lacks(same.output, parts.Options()) == "--weights with lpips/"


def test_vbenchs_figures_are_of_the_networks_that_they_name(tmp_path, monkeypatch):
    """Two frames whose vectors are 60 degrees apart for one network, 0 for another; marks of 4 and 5."""
    vectors = {vbench.SUBJECT: [[1.0, 0], [0.5, 0.75**0.5]], vbench.BACKGROUND: [[1.0, 0], [2.0, 0]]}
    vectors[vbench.LARGE] = [[3.0, 0], [0, 7.0]]
    monkeypatch.setattr(parts, "_frame_network", lambda folder: lambda frames: np.array(vectors[folder.name]))
    head = vbench.Aesthetic(vbench.AestheticConfig(width=2), rngs=nnx.Rngs(0))
    head.head.kernel.set_value(jnp.array([[4.0], [5.0]]))
    monkeypatch.setattr(parts, "_aesthetic_head", lambda folder: head)
    save(tmp_path / "ours.npz", moving(count=2))
    (item,) = items(tmp_path, {"input": "ours.npz", "views": {"left": {"outputs": {"ours": "ours.npz"}}}})
    options, found = parts.Options(weights=tmp_path), {}
    for name, folders in {"subject": [vbench.SUBJECT], "background": [vbench.BACKGROUND],
                          "aesthetic": [vbench.LARGE, vbench.AESTHETIC]}.items():  # fmt: skip
        needed = " and ".join(f"{folder}/" for folder in folders)
        assert parts.PARTS[name].lacks(item.output, options) == f"--weights with {needed}"
        for folder in folders:
            (tmp_path / folder).mkdir()
        assert parts.PARTS[name].lacks(item.output, options) is None
        found |= parts.PARTS[name].measure(item, options)
    expected = {"subject_consistency": 0.5, "background_consistency": 1.0, "aesthetic_quality": 0.45}
    assert found == pytest.approx(expected)


@pytest.fixture
def seen(tmp_path, views):  # noqa: F811
    """The input stands where the first view is seen; the output shows the other two, moving."""
    save(tmp_path / "input.npz", np.stack([views[0]] * 2))
    save(tmp_path / "output.npz", views[1:])
    for name, poses in (("input", POSES[:1]), ("true", POSES[1:]), ("up", np.stack([pose(0, (0, 0.3, 0))] * 2))):
        K = KS[: len(poses)].astype(np.float32)
        cam.save_cameras(tmp_path / f"{name}.json", cam.Cameras(K, poses.astype(np.float32)), W, H)
    return {
        "input": "input.npz",
        "cameras": "input.json",
        "views": {name: {"cameras": f"{name}.json", "outputs": {"ours": "output.npz"}} for name in ("true", "up")},
    }


def test_epipolar_distances_are_in_pixels_of_256(tmp_path, seen, views):  # noqa: F811
    options = parts.Options()
    true, wrong = items(tmp_path, seen)
    found = parts.PARTS["epipolar_input"].measure(true, options)
    expected = epipolar.tsed(views, KS, POSES, [(0, 1), (0, 2)])
    assert found["sed_input"] == pytest.approx(256 / H * expected.sed, rel=1e-3)
    assert found["tsed_input"] == 1.0
    within = epipolar.tsed(views[1:], KS[1:], POSES[1:])
    assert parts.PARTS["epipolar_frames"].measure(true, options) == {
        "sed_frames": pytest.approx(256 / H * within.sed, rel=1e-3),
        "tsed_frames": 1.0,
    }
    other = parts.PARTS["epipolar_input"].measure(wrong, options)
    assert other["tsed_input"] == 0.0
    assert other["sed_input"] > 10 * found["sed_input"]
    # A threshold between the distance in pixels of the picture and in those of 256.
    between = options._replace(max_error=1.5 * expected.sed)
    assert parts.PARTS["epipolar_input"].measure(true, between)["tsed_input"] < 1.0


def test_cameras_that_stand_at_one_place_and_files_that_say_too_little(tmp_path, seen):
    notes = []
    _, standing = items(tmp_path, seen, notes)
    assert parts.PARTS["epipolar_frames"].measure(standing, parts.Options()) == {
        "sed_frames": None,
        "tsed_frames": None,
    }
    assert "stand at one place" in notes[0]
    seen["views"] = {"true": {"cameras": "true.json", "outputs": {"ours": {"file": "output.npz", "frames": [0, 2]}}}}
    files.atomic_savez(tmp_path / "input.npz", frames=moving(count=3))
    (late,) = items(tmp_path, seen)
    with pytest.raises(ValueError, match=r"true.json: holds 2 cameras, and that of frame 2 is asked for"):
        _ = late.cameras
    (tmp_path / "true.json").write_text('{"keyframes": {"0": "source", "2": "left:10"}}')
    with pytest.raises(ValueError, match=r"true.json: keyframes does not say each frame's camera"):
        _ = items(tmp_path, seen)[0].cameras
