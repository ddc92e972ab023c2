"""The figures of the benchmark of stochastic control: what they are of pictures whose answer is known."""

import runpy
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import painted_scenes, stochastic_control
from benchmarks.painted_scenes import Scene
from benchmarks.stochastic_control import ARMS, NAIVE, Bench
from reangle_jax import chosen_models, config
from reangle_jax.painters.flux import needs

ROOT = Path(__file__).parents[2]


def test_differences_are_paired_and_their_interval_holds_the_mean():
    rng = np.random.default_rng(1)
    scenes = rng.normal(0.3, 0.1, 24)  # scenes differ far more than arms do
    arms = {NAIVE: scenes, "s5": scenes - 0.02 + rng.normal(0, 0.005, 24), "s25": scenes + rng.normal(0, 0.005, 24)}
    names = (
        *stochastic_control.FIGURES,
        *stochastic_control.COSTS,
        "decoded_psnr_holes",
        "decoded_psnr",
        "decoded_seam",
    )
    rows = {
        arm: {k: dict.fromkeys(names, 1.0) | {"met3r": float(x), "sed": None} for k, x in enumerate(values)}
        for arm, values in arms.items()
    }
    del rows["s5"][23]
    report = stochastic_control.differences(rows, NAIVE)
    found = report["s5"]["met3r"]
    assert found["pairs"] == 23
    assert found["difference"] == pytest.approx(-0.02, abs=0.004)
    assert -0.025 < found["interval"][0] < found["difference"] < found["interval"][1] < -0.015
    low, high = report["s25"]["met3r"]["interval"]
    assert low < 0 < high
    assert "interval" not in report[NAIVE]["met3r"]
    assert "sed" not in report["s5"]
    words = stochastic_control.table(report, NAIVE)
    assert [line.split(" | ")[0] for line in words.splitlines()[2:]] == ["| naive", "| s5", "| s25"]


@pytest.fixture
def wall():
    """A flat wall seen by three cameras side by side; 20 columns of each that the input does not show."""
    rng = np.random.default_rng(0)
    texture = rng.integers(40, 200, (64, 120, 3)).astype(np.uint8)
    K = np.array([[48.0, 0, 48], [0, 48, 32], [0, 0, 1]], np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    poses[:, 0, 3] = np.array([0, 4, 8]) * 4.0 / 48  # 4 and 8 pixels at a depth of 4
    truth = np.stack([texture[:, shift : shift + 96] for shift in (0, 4, 8)])
    visible = np.ones((2, 64, 96), bool)
    visible[0, :, 44:64], visible[1, :, 40:60] = False, False  # the same place of the wall
    warps = np.where(visible[..., None], truth[1:], np.uint8(0))
    return Scene(0, truth, np.full((3, 64, 96), 4.0, np.float32), warps, visible, K, poses)


def test_what_is_made_up_twice_is_compared_where_it_is_the_same_place(wall):
    assert painted_scenes.agreement_of_holes(wall, list(wall.truth[1:])) > 35
    painted = [x.copy() for x in wall.truth[1:]]
    painted[1][~wall.visible[1]] = 255 - painted[1][~wall.visible[1]]
    assert painted_scenes.agreement_of_holes(wall, painted) < 15
    elsewhere = [x.copy() for x in wall.truth[1:]]
    elsewhere[1][wall.visible[1]] = 0  # what is not made up does not count
    assert painted_scenes.agreement_of_holes(wall, elsewhere) > 35


def test_true_pictures_lie_on_their_cameras_lines_and_have_no_seam(wall):
    found = painted_scenes.epipolar_figures(wall, list(wall.truth))
    assert found["tsed"] == 1.0
    assert found["sed"] < 0.5
    truth, visible = wall.truth[1], wall.visible[0]
    edged = np.where(visible[..., None], truth, np.uint8(255))
    assert painted_scenes.step(edged, visible) > painted_scenes.step(truth, visible) + 50
    assert painted_scenes.detail(wall, [*wall.truth[1:]]) == pytest.approx(1)
    smooth = [cv2.GaussianBlur(image, (0, 0), 2) for image in wall.truth[1:]]
    assert painted_scenes.detail(wall, smooth) < 0.5


def test_no_two_arms_paint_alike():
    """In eight steps of painting, every second one choosing unless an arm says otherwise."""
    bench = types.SimpleNamespace(steps=8, every=2)
    how = {arm: Bench.painting(bench, arm) for arm in ARMS}
    plans = {arm: needs.planned(painting, 96) for arm, painting in how.items()}
    drawn = {arm: plan.candidates.tolist() for arm, plan in plans.items()}
    assert drawn["s25"] == [1, 1, 25, 1, 25, 1, 1, 1]
    assert drawn["falling"] == [1, 1, 25, 1, 5, 1, 1, 1]
    assert drawn["start3"] == [3, 3, 3, 3, 1, 1, 1, 1]
    evaluations = {arm: plan.evaluations for arm, plan in plans.items()}
    assert [evaluations[arm] for arm in ("naive", "s5", "each3", "start3", "s10", "s25")] == [8, 16, 16, 16, 26, 56]
    ways = {(*drawn[arm], how[arm].noise, how[arm].reimpose, how[arm].strength) for arm in ARMS}
    assert len(ways) == len(ARMS) - 1  # but for "alone", which has another reward


def test_the_fast_preset_searches_as_the_arm_that_was_measured():
    plans = {}
    for name in ("static_fast", "static"):
        values = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
        values.video = "clip.mp4"
        how = chosen_models.painting(config.parse(values))
        plans[name] = needs.planned(how, 1350)
        if name == "static_fast":
            # What painting begins at is each painter's own.
            arm = Bench.painting(types.SimpleNamespace(steps=50, every=2), "start3")
            assert how == arm._replace(infill=how.infill, strength=how.strength)
    assert plans["static_fast"].candidates.tolist() == [3] * 25 + [1] * 25
    assert [plan.evaluations for plan in plans.values()] == [100, 890]
