"""Camera files through the stages: a source that moves, views from files, what depends on them and their prompts."""

import json

import numpy as np
import pytest

from reangle_jax import config
from reangle_jax.data import files, pictures
from reangle_jax.errors import InputError
from reangle_jax.geometry import cameras, trajectories
from reangle_jax.run import Ledger, run_stage, view_file, view_paths
from reangle_jax.stages import depth, evaluate, finetune, generate, ingest, warp_views
from tests.cameras.writers import colmap, nerfstudio
from tests.geometry import analytic_scene

FRAMES, HEIGHT, WIDTH, PIVOT = 5, 64, 96, 5.0
K = np.array([[70.0, 0, 48], [0, 70, 32], [0, 0, 1]], np.float32)
LENS = {"fl_x": 70.0, "fl_y": 70.0, "cx": 48.0, "cy": 32.0, "w": WIDTH, "h": HEIGHT}
LINE = "PINHOLE 96 64 70 70 48 32"


def motion(spelling):
    view = trajectories.parse_view(spelling)
    return np.asarray(trajectories.view_cameras(view, K, PIVOT, FRAMES).camera_to_world, np.float64)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A still scene filmed by a camera that travels: frames, their depth, and the cameras in a world of their own."""
    root = tmp_path_factory.mktemp("moving")
    moving, depths = motion("right:14+up:6"), []
    for k, pose in enumerate(moving):
        colors, z, _ = analytic_scene.render(K, pose, HEIGHT, WIDTH)
        pictures.write_png(root / "frames" / f"{k}.png", (255 * colors).round().astype(np.uint8))
        depths.append(z)
    np.save(root / "depth.npy", np.stack(depths))
    world = motion("left:40+down:30")[-1]
    nerfstudio(root / "moving.json", world @ moving, **LENS)
    colmap(root / "path", world @ motion("left:8"), LINE)
    colmap(root / "given" / "sparse" / "0", world @ motion("in:0.2"), LINE)
    (root / "stand.json").write_text(json.dumps({"keyframes": {"0": "source", str(FRAMES - 1): "source"}}))
    return root


def settings(inputs, **changes):
    values = config.get_tiny().to_dict() | {
        "video": str(inputs / "frames"), "depth": str(inputs / "depth.npy"), "depth_kind": "metric", "focal": 70.0,
        "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "pivot_depth": PIVOT, "caption": "a ball",
        "views": (str(inputs / "stand.json"),), "train_views": (),
    }  # fmt: skip
    return config.parse(values | changes)


def preview(root, settings):
    """Which of the stages had anything to do."""
    with Ledger.opened(root, settings) as ledger:
        return [stage.STAGE.name for stage in (ingest, depth, warp_views) if run_stage(stage.STAGE, ledger)]


def to_the_truth(root, view, poses):
    """PSNR of a warp's visible pixels to what the cameras would have seen, dB."""
    warp = files.load_npz(root / "views" / view / "warp.npz")
    truth = np.stack([analytic_scene.render(K, pose, HEIGHT, WIDTH)[0] for pose in poses])
    return analytic_scene.psnr(warp["frames"] / 255, truth, warp["visible"])


def test_warps_of_a_moving_source_are_right_if_its_cameras_are_known(inputs, tmp_path):
    """The figures, at 64x96: a camera that stands still in the world, and one that turns about the pivot."""
    views = (str(inputs / "stand.json"), "left:8")
    true = {"stand": np.tile(np.eye(4), (FRAMES, 1, 1)), "left_8": motion("left:8")}
    preview(tmp_path / "with", settings(inputs, views=views, source_cameras=str(inputs / "moving.json")))
    preview(tmp_path / "without", settings(inputs, views=views))
    known, ignored = ({n: to_the_truth(tmp_path / run, n, p) for n, p in true.items()} for run in ("with", "without"))
    for name in true:
        assert known[name] > 32, known  # splatting alone loses this much at so small a size
        assert ignored[name] < known[name] - 10, ignored
    source = cameras.load_cameras(tmp_path / "with" / "input" / "cameras.json")[0]
    np.testing.assert_allclose(source.camera_to_world, motion("right:14+up:6"), atol=1e-5)


def test_nothing_moves_in_a_still_scene_that_is_filmed_by_a_moving_camera(inputs, tmp_path):
    """The frozen scene that outputs are compared with is the scene, whatever the camera did."""
    views = (str(inputs / "stand.json"), "left:8")
    given = settings(inputs, views=views, source_cameras=str(inputs / "moving.json"))
    preview(tmp_path, given)
    for view in views:
        warp = files.load_npz(tmp_path / view_file(view, "warp.npz"))
        files.atomic_savez(tmp_path / view_file(view, "frames.npz"), frames=warp["frames"])
    with Ledger.opened(tmp_path, given) as ledger:
        run_stage(evaluate.STAGE, ledger)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["views"]
    assert [metrics[view]["moving"] < 0.005 for view in views] == [True, True], metrics
    assert all(metrics[view]["visible"] > 0.7 for view in views), metrics


def test_views_of_files_are_placed_and_kept_and_redone(inputs, tmp_path):
    given = settings(inputs, views=(str(inputs / "path"), "up:5"), source_cameras=str(inputs / "moving.json"))
    assert preview(tmp_path, given) == ["ingest", "depth", "warp_views"]
    found = cameras.load_cameras(tmp_path / "views" / "path" / "cameras.json", expect_frames=FRAMES)[0]
    np.testing.assert_allclose(found.camera_to_world, motion("left:8"), atol=1e-5)
    assert cameras.load_pivot_depth(tmp_path / "views" / "path" / "cameras.json") == PIVOT
    assert preview(tmp_path, given) == []
    line = (inputs / "path" / "images.txt").read_text()
    try:
        colmap(inputs / "path", motion("left:8+in:0.1"), LINE)
        with Ledger.opened(tmp_path, given) as ledger:
            reasons = [verdict.reasons for verdict in ledger.survey(warp_views.STAGE)]
        assert reasons == [("the content of config.views changed",), ()]
    finally:
        (inputs / "path" / "images.txt").write_text(line)


def test_given_cameras_are_in_the_world_of_the_sources_file(inputs, tmp_path):
    changes = {"source_cameras": str(inputs / "moving.json"), "camera_frame": "given"}
    preview(tmp_path, settings(inputs, views=(str(inputs / "given"),), **changes))
    found = cameras.load_cameras(tmp_path / "views" / "given" / "cameras.json")[0]
    np.testing.assert_allclose(found.camera_to_world, motion("in:0.2"), atol=1e-5)
    with pytest.raises(InputError, match=r"config\.views: .*given: begins .* from the source's first camera"):
        preview(tmp_path, settings(inputs, views=(str(inputs / "given"),), camera_frame="given"))


def test_static_views_stand_still_in_the_world(inputs, tmp_path):
    """Though the source moves: a motion, and a single camera in the world of the source's file."""
    there = motion("left:40+down:30")[-1] @ motion("up:8")[-1]
    colmap(tmp_path / "one", there[None], LINE)
    changes = {"mode": "static", "source_cameras": str(inputs / "moving.json"), "camera_frame": "given"}
    preview(tmp_path / "run", settings(inputs, views=("left:8", str(tmp_path / "one")), **changes))
    for name, pose in (("left_8", motion("left:8")[-1]), ("one", motion("up:8")[-1])):
        found = cameras.load_cameras(tmp_path / "run" / "views" / name / "cameras.json", expect_frames=FRAMES)[0]
        np.testing.assert_allclose(found.camera_to_world, np.tile(pose, (FRAMES, 1, 1)), atol=1e-5)
        # Above 32 and 29.0 dB: splatting from above loses more at the ball.
        assert to_the_truth(tmp_path / "run", name, np.tile(pose, (FRAMES, 1, 1))) > 28


def test_cameras_that_look_away_from_everything_are_refused(inputs, tmp_path):
    turned = motion("left:8")
    turned[:, :3, :3] = turned[:, :3, :3] @ np.diag([-1.0, 1, -1])
    turned[0] = np.eye(4)
    colmap(tmp_path / "away", turned[[0, *range(1, FRAMES)]], LINE)
    # Five cameras have no mean step to speak of: what they see decides.
    with pytest.raises(InputError, match=r"config\.views: .*away: sees nothing of the scene from 4 of its 5 cameras"):
        preview(tmp_path / "run", settings(inputs, views=(str(tmp_path / "away"),)))


def test_prompts_say_what_the_camera_does_most_or_what_the_user_says(inputs, tmp_path):
    views = (str(inputs / "path"), str(inputs / "stand.json"), "up:5")
    given = settings(inputs, views=views, train_views=views[:1])
    preview(tmp_path, given)
    assert [view_paths.prompt(given, tmp_path, view) for view in views] == [
        "CAMERA_ORBIT_LEFT Camera movement orbit left, a ball",
        "a ball",
        "CAMERA_ORBIT_UP Camera movement orbit up, a ball",
    ]
    assert finetune.prompts(given, tmp_path) == ["a ball", "CAMERA_ORBIT_LEFT Camera movement orbit left, a ball"]
    assert "views/path/cameras.json" in finetune.units(given)[0].inputs
    assert [("views/path/cameras.json" in unit.inputs) for unit in generate.units(given)] == [True, False, False]
    own = settings(inputs, views=views, prompts=(f"{views[0]}=a ball, seen from the left", "up_5=a ball from above"))
    said = [view_paths.prompt(own, tmp_path, view) for view in views]
    assert said == ["a ball, seen from the left", "a ball", "a ball from above"]
    assert "prompts" in generate.units(own)[0].settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": ("none.json",)}, r"config\.views: none\.json: no such file; give a camera file"),
        (
            {"num_frames": 9},
            r"config\.views: .*stand\.json: holds 5 cameras, the video 9 frames: .*camera_resample=true",
        ),
        ({"source_cameras": "none.npz"}, r"config\.source_cameras: none\.npz: no such file"),
        ({"camera_frame": "last"}, r"config\.camera_frame='last' .* one of first, given"),
        ({"camera_scale": -1.0}, r"config\.camera_scale=-1\.0 .* scene, pivot or a number above 0"),
        ({"prompts": ("a ball",)}, r"config\.prompts: 'a ball' is not possible: write VIEW=PROMPT, .* views stand$"),
        ({"views": ("left:3", "a/left_3.json")}, r"config\.views: a/left_3\.json: no such file"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(inputs, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        settings(inputs, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("view", "words"), [("./", "would be called ''"), (f"{'y' * 200}.json", "1 to 150 characters")]
)
def test_a_views_folder_has_a_name_that_can_be(inputs, tmp_path, monkeypatch, view, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{'y' * 200}.json").write_text((inputs / "stand.json").read_text())
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 72 48 30 31 35 24\n")
    (tmp_path / "images.txt").write_text("".join(f"{k} 1 0 0 0 0 0 0 1 {k}.png\n\n" for k in range(5)))
    with pytest.raises(InputError, match=rf"^config\.views: .*{words}"):
        settings(inputs, views=(view,))


@pytest.mark.parametrize("name", ["edit", "input", "left_5_untuned"])
def test_a_views_folder_is_called_as_nothing_else_of_a_run(inputs, tmp_path, name):
    (tmp_path / f"{name}.json").write_text((inputs / "stand.json").read_text())
    with pytest.raises(InputError, match=rf"a run has something else called {name}: rename the file"):
        settings(inputs, views=(str(tmp_path / f"{name}.json"),))


def test_files_and_motions_may_not_share_a_folder(inputs, tmp_path):
    (tmp_path / "up_5.json").write_text((inputs / "stand.json").read_text())
    with pytest.raises(InputError, match=r"'up:5' and '.*up_5\.json' share the folder up_5: keep one"):
        settings(inputs, views=("up:5", str(tmp_path / "up_5.json")))
    with pytest.raises(
        InputError, match=r"^config\.train_views: .*up_5\.json': config\.views has 'up:5', and both share"
    ):
        settings(inputs, views=("up:5",), train_views=(str(tmp_path / "up_5.json"),))
    assert settings(inputs, views=("up:5",), train_views=("up:5",)).views == ("up:5",)
