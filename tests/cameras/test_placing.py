from pathlib import Path

import numpy as np
import pytest

from reangle_jax.cameras import inspection, interpolation, placing
from reangle_jax.cameras.file import CameraFile, listed
from reangle_jax.errors import InputError
from reangle_jax.geometry import cameras as cam
from tests.cameras.writers import HEIGHT, WIDTH, path

SIZE = HEIGHT, WIDTH
SOURCE = cam.identity_cameras(cam.default_intrinsics(*SIZE), 12)


def file(poses, K=None, sizes=None, **rest):
    found = listed(Path("cameras"), "test", "", poses, K, sizes)
    return CameraFile(**{**vars(found), **rest})


def elsewhere(poses, unit=1.0):
    """The same path in another world: turned, moved and in another unit."""
    change = path("right:35+down:20+out:0.5", 2)[1]
    moved = change @ poses
    moved[:, :3, 3] *= unit
    return moved


def test_the_files_first_camera_is_the_sources_first():
    want = path()
    got = placing.place(file(elsewhere(want)), placing.Wishes(), SOURCE, 3.0, SIZE)
    np.testing.assert_allclose(got.camera_to_world, want, atol=1e-6)
    np.testing.assert_array_equal(got.K, SOURCE.K)


@pytest.mark.parametrize(("scale", "unit"), [("scene", 1.0), ("pivot", 3.0), (0.5, 0.5)])
def test_the_unit_is_the_scenes_the_pivots_distance_or_a_number(scale, unit):
    poses = elsewhere(path(), 1 / unit)
    got = placing.place(file(poses), placing.Wishes(scale=scale), SOURCE, 3.0, SIZE)
    np.testing.assert_allclose(got.camera_to_world, path(), atol=1e-6)


def test_what_float32_cannot_hold_is_refused():
    with pytest.raises(InputError, match=r"a unit being 1e\+300 scene units, .*: mend the file, or set config\.camera"):
        placing.place(file(path()), placing.Wishes(scale=1e300), SOURCE, 3.0, SIZE)


def test_given_is_the_world_of_the_sources_file():
    moving = path("right:12", 12)
    source_file = file(elsewhere(moving))
    source, world = placing.place_source(source_file, placing.Wishes(), np.arange(12), SIZE)
    np.testing.assert_allclose(source.camera_to_world, moving, atol=1e-6)
    still = np.tile(path("left:10", 2)[1], (12, 1, 1))
    got = placing.place(file(elsewhere(still)), placing.Wishes(frame="given"), source, 3.0, SIZE, "static", world)
    np.testing.assert_allclose(got.camera_to_world, still, atol=1e-6)
    held = placing.place(file(elsewhere(still)[:1]), placing.Wishes(frame="given"), source, 3.0, SIZE, "static", world)
    np.testing.assert_array_equal(held.camera_to_world, got.camera_to_world)
    with pytest.raises(
        InputError, match=r"begins 0\.17\d of the pivot's distance and 10 degrees from the source's first"
    ):
        placing.place(file(elsewhere(still)), placing.Wishes(frame="given"), source, 3.0, SIZE, "dynamic", world)


def test_the_sources_cameras_may_be_those_of_the_whole_clip():
    whole = path("right:12", 30)
    taken = np.arange(3, 27, 2)
    K = np.tile(np.array([[60.0, 0, 72], [0, 60, 48], [0, 0, 1]]), (30, 1, 1))
    K[:, 0, 0] += np.arange(30)
    sizes = np.tile([144.0, 96.0], (30, 1))
    source, world = placing.place_source(file(whole, K, sizes), placing.Wishes(), taken, SIZE)
    np.testing.assert_allclose(world, whole[3])
    np.testing.assert_allclose(source.camera_to_world, np.linalg.inv(whole[3]) @ whole[taken], atol=1e-6)
    np.testing.assert_allclose(source.K[:, 0, 0], (60 + taken) / 2)
    given, _ = placing.place_source(file(whole, K, sizes), placing.Wishes(), taken, SIZE, focal=50.0)
    np.testing.assert_array_equal(given.K[0], cam.default_intrinsics(*SIZE, 50.0))


def test_the_sources_cameras_cannot_be_measured_in_what_is_not_known_yet():
    with pytest.raises(InputError, match=r"set config\.pivot_depth to a number, or config\.camera_scale"):
        placing.place_source(file(path()), placing.Wishes(scale="pivot"), np.arange(12), SIZE)
    source, _ = placing.place_source(
        file(path(pivot=1.0)), placing.Wishes(scale="pivot"), np.arange(12), SIZE, pivot=3.0
    )
    np.testing.assert_allclose(source.camera_to_world, path(), atol=1e-6)


def test_another_number_is_refused_or_resampled():
    long = file(path("left:30", 45))
    with pytest.raises(InputError, match=r"holds 45 cameras, the video 12 frames: .*config\.camera_resample=true"):
        placing.place(long, placing.Wishes(), SOURCE, 3.0, SIZE)
    got = placing.place(long, placing.Wishes(resample=True), SOURCE, 3.0, SIZE)
    np.testing.assert_allclose(got.camera_to_world[-1], path("left:30", 45)[-1], atol=1e-6)
    # A line between two of 45 cameras stays within a thousandth of the arc.
    np.testing.assert_allclose(got.camera_to_world, path("left:30", 12), atol=1e-3)
    with pytest.raises(InputError, match="holds 1 camera, the video 12 frames"):
        placing.place(file(path()[:1]), placing.Wishes(resample=True), SOURCE, 3.0, SIZE)


def test_lenses_are_fitted_to_the_video_and_relative_to_the_first():
    # A 200x100 picture covers 72x48 at 0.48 and loses 12 columns on either side.
    K = np.array([[[100.0, 0, 110], [0, 90, 50], [0, 0, 1]]])
    fitted = placing.fitted(K, np.array([[200.0, 100.0]]), *SIZE)
    np.testing.assert_allclose(fitted, [[[48, 0, 40.8], [0, 43.2, 24], [0, 0, 1]]])
    zoom = np.tile(K, (12, 1, 1))
    zoom[:, :2, :2] *= np.linspace(1, 2, 12)[:, None, None]
    sizes = np.tile([200.0, 100.0], (12, 1))
    got = placing.place(file(path(), zoom, sizes), placing.Wishes(), SOURCE, 3.0, SIZE)
    np.testing.assert_allclose(got.K[:, 0, 0], SOURCE.K[0, 0, 0] * np.linspace(1, 2, 12), rtol=1e-6)
    with pytest.raises(InputError, match=r"has another lens than the source's: set config\.camera_frame=first"):
        placing.place(file(path(), zoom, sizes), placing.Wishes(frame="given"), SOURCE, 3.0, SIZE)


def test_slerp_turns_at_one_pace_about_one_axis():
    poses = path("left:50", 2)
    got = interpolation.linear(np.array([0.0, 2.0]), poses, np.array([0.0, 0.5, 1.0, 2.0]))
    angles = np.degrees(np.arctan2(got[:, 0, 2], got[:, 2, 2]))
    np.testing.assert_allclose(angles, [0, 12.5, 25, 50], atol=1e-5)


def cameras_of(poses):
    return cam.Cameras(SOURCE.K[: len(poses)], poses.astype(np.float32))


def test_what_a_path_does():
    found = inspection.describe(cameras_of(path("left:12", 12)), 3.0)
    assert found.largest_turn == pytest.approx(12, abs=1e-4)
    assert found.turns.max() == pytest.approx(12 / 11, abs=1e-4)
    assert found.farthest == pytest.approx(6 * np.sin(np.radians(6)), rel=1e-5)
    assert found.motion == "left"


@pytest.mark.parametrize("name", ["left:9", "right:9", "up:7", "down:7", "in:0.2", "out:0.2"])
def test_the_motion_that_a_path_is_most_like(name):
    motion = name.partition(":")[0]
    assert inspection.main_motion(path(name), 3.0) == motion
    other = "+in:0.05" if motion not in ("in", "out") else "+left:2"
    assert inspection.main_motion(path(name + other), 3.0) == motion


def test_a_turn_on_the_spot_is_no_motion():
    pan = path("left:20")
    pan[:, :3, 3] = 0
    assert inspection.main_motion(pan, 3.0) == ""


def test_jumps_are_refused():
    poses = path("left:20")
    inspection.check_steps("a", cameras_of(poses), 3.0)
    swapped = poses[[0, 1, 2, 3, 11, 5, 6, 7, 8, 9, 10, 4]]
    assert inspection.describe(cameras_of(swapped), 3.0).steps.max() > 0.3
    jump = np.tile(np.eye(4), (12, 1, 1))
    jump[7:, 0, 3] = 2.0
    with pytest.raises(InputError, match=r"^a: jumps by 2 scene units from camera 6 to 7, 11 times its mean step"):
        inspection.check_steps("a", cameras_of(jump), 3.0)
    jump[7:] = path("left:40", 2)[1]
    jump[7:, :3, 3] = 0
    with pytest.raises(InputError, match=r"^a: jumps by 40 degrees from camera 6 to 7"):
        inspection.check_steps("a", cameras_of(jump), 3.0)


def test_what_share_of_the_first_frame_is_seen():
    depth = np.full(SIZE, 3.0, np.float32)
    aside = np.eye(4)
    aside[0, 3] = 3.0 * WIDTH / 4 / float(SOURCE.K[0, 0, 0])  # a quarter of the picture's width
    away = np.diag([-1.0, 1, -1, 1])
    shares = inspection.seen_share(SOURCE, depth, cameras_of(np.stack([np.eye(4), aside, away])))
    np.testing.assert_allclose(shares, [1, 0.75, 0], atol=1e-6)
    with pytest.raises(InputError, match=r"^a: sees nothing of the scene from 1 of its 3 cameras, the first of them 2"):
        inspection.check_seen("a", shares)
