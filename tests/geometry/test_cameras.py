import json

import jax
import numpy as np
import pytest

from reangle_jax.errors import InputError
from reangle_jax.geometry import cameras as cam
from reangle_jax.geometry.trajectories import parse_view, view_cameras


def _example(frames=3):
    return view_cameras(parse_view("left:10+up:4+in:0.2"), cam.default_intrinsics(48, 72), 3.0, frames)


def test_default_focal_keeps_the_field_of_view():
    assert cam.default_intrinsics(480, 720)[0, 0] == pytest.approx(260)  # the released scripts
    assert cam.default_intrinsics(240, 360)[0, 0] == pytest.approx(130)
    assert cam.default_intrinsics(720, 480)[1, 1] == cam.default_intrinsics(480, 480)[0, 0] == pytest.approx(260)
    np.testing.assert_array_equal(cam.default_intrinsics(48, 72, 50.0), [[50, 0, 36], [0, 50, 24], [0, 0, 1]])


@pytest.mark.parametrize("focal", [0, -3.0, float("nan"), float("inf")])
def test_focal_must_be_positive(focal):
    with pytest.raises(InputError, match=r"^focal: "):
        cam.default_intrinsics(48, 72, focal)


def test_cameras_are_a_pytree_and_identity_is_identity():
    cameras = cam.identity_cameras(cam.default_intrinsics(48, 72), 5)
    assert cameras.num_frames == 5
    assert [leaf.shape for leaf in jax.tree.leaves(cameras)] == [(5, 3, 3), (5, 4, 4)]
    np.testing.assert_array_equal(cam.source_to_target(cameras, cameras), np.broadcast_to(np.eye(4), (5, 4, 4)))


def test_source_to_target_undoes_the_target_pose():
    target, source = _example(), cam.identity_cameras(cam.default_intrinsics(48, 72), 3)
    got = cam.source_to_target(source, target)
    # float32 entries up to the pivot's distance of 3.
    np.testing.assert_allclose(got, np.linalg.inv(np.asarray(target.camera_to_world, np.float64)), atol=2e-6)


def test_file_round_trip_is_exact(tmp_path):
    cameras = _example()
    path = tmp_path / "cameras.json"
    cam.save_cameras(path, cameras, width=72, height=48)
    loaded, width, height = cam.load_cameras(path, expect_frames=3)
    assert (width, height) == (72, 48)
    np.testing.assert_array_equal(loaded.K, cameras.K)
    np.testing.assert_array_equal(loaded.camera_to_world, cameras.camera_to_world)
    assert [p.name for p in path.parent.iterdir()] == ["cameras.json"]  # no temporary file is left
    content = json.loads(path.read_text())
    assert set(content) == {"width", "height", "frames"}
    assert set(content["frames"][0]) == {"K", "camera_to_world"}


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "cameras.json"
    cam.save_cameras(path, _example(), 72, 48)
    before = path.read_bytes()
    broken = cam.Cameras(K=_example().K, camera_to_world=_example().camera_to_world * np.float32("nan"))
    with pytest.raises(ValueError):  # JSON has no NaN
        cam.save_cameras(path, broken, 72, 48)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def _set(*keys, value):
    def change(content):
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def _scale_rotation(content):
    pose = np.array(content["frames"][1]["camera_to_world"])
    pose[:3, :3] *= 1.01
    content["frames"][1]["camera_to_world"] = pose.tolist()


def _mirror(content):
    pose = np.array(content["frames"][1]["camera_to_world"])
    pose[:3, 0] *= -1
    content["frames"][1]["camera_to_world"] = pose.tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("frames", value=[]), "no cameras"),
        (_set("frames", value=3), "no cameras"),
        (_set("width", value=0), "width is 0"),
        (_set("height", value="48"), "height is '48'"),
        (_set("frames", 1, value=7), "frame 1: K is missing"),
        (_set("frames", 1, "K", value=None), "frame 1: K is missing"),
        (_set("frames", 1, "K", value=[[1, 2], [3, 4]]), "frame 1: K has the shape"),
        (_set("frames", 1, "K", value=[[1, 2], [3]]), "frame 1: K is not a matrix"),
        (_set("frames", 1, "K", value="abc"), "frame 1: K is not a matrix"),
        (_set("frames", 1, "K", 0, 0, value=-5.0), "frame 1: K has the focal lengths"),
        (_set("frames", 1, "K", 2, 2, value=2.0), "frame 1: K is no pinhole"),
        (_set("frames", 1, "K", 0, 2, value=float("nan")), "not finite"),
        (_set("frames", 1, "camera_to_world", 3, value=[0, 0, 1, 1]), "last row"),
        (_set("frames", 1, "camera_to_world", value=np.eye(3).tolist()), "camera_to_world has the shape"),
        (_scale_rotation, "no rotation"),
        (_mirror, "mirrors"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, change, says):
    path = tmp_path / "cameras.json"
    cam.save_cameras(path, _example(), 72, 48)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        cam.load_cameras(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_garbled_and_miscounted_files(tmp_path):
    path = tmp_path / "cameras.json"
    with pytest.raises(InputError, match="cannot be read"):
        cam.load_cameras(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        cam.load_cameras(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not JSON"):
        cam.load_cameras(path)
    cam.save_cameras(path, _example(3), 72, 48)
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as editors of Windows write it
    assert cam.load_cameras(path, expect_frames=3)[1:] == (72, 48)
    with pytest.raises(InputError, match="holds 3 frames, the video 5"):
        cam.load_cameras(path, expect_frames=5)
