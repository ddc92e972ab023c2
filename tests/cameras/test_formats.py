import json
import math
import os

import numpy as np
import pytest

from reangle_jax.cameras import registry
from reangle_jax.errors import InputError
from reangle_jax.geometry import cameras as cam
from tests.cameras.writers import HEIGHT, WIDTH, colmap, nerfstudio, path

K = np.array([[30.0, 0, 35], [0, 31, 24.5], [0, 0, 1]])


def read(file, frames=12, pivot=1.0, tool=None):
    found = registry.read(file, tool)
    return found, found.poses(frames, pivot)


def check(file, format, poses, atol=1e-7):  # the poses are float32 and so rotations up to that
    found, got = read(file)
    assert (found.format, found.count) == (format, len(poses))
    np.testing.assert_allclose(got, poses, atol=atol)
    np.testing.assert_allclose(found.K, np.tile(K, (len(poses), 1, 1)))
    np.testing.assert_array_equal(found.sizes, [[WIDTH, HEIGHT]] * len(poses))


def test_our_own_file(tmp_path):
    poses = path()
    cameras = cam.Cameras(np.tile(K, (12, 1, 1)).astype(np.float32), poses.astype(np.float32))
    cam.save_cameras(tmp_path / "a.json", cameras, WIDTH, HEIGHT)
    check(tmp_path / "a.json", "cameras.json", poses, atol=1e-6)


def test_nerfstudio_in_the_order_of_its_pictures_and_in_its_own_world(tmp_path):
    poses = path()
    check(nerfstudio(tmp_path / "cameras.json", poses), "nerfstudio", poses)  # what is in it decides, not its name
    change = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    saved = change @ poses
    saved[:, :3, 3] *= 0.5
    top = {"applied_transform": change[:3].tolist(), "applied_scale": 0.5, "camera_model": "OPENCV", "k1": 0.0, "p2": 0}
    check(nerfstudio(tmp_path / "b.json", saved, **top), "nerfstudio", poses)


def test_nerfstudio_with_a_lens_in_every_frame(tmp_path):
    file = nerfstudio(tmp_path / "a.json", path())
    content = json.loads(file.read_text())
    lens = {key: content.pop(key) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
    content["frames"] = [frame | lens for frame in content["frames"]]
    file.write_text(json.dumps(content))
    check(file, "nerfstudio", path())
    # Instant-NGP's: the field of view in place of a focal length.
    content["frames"] = [{"transform_matrix": np.eye(4).tolist()}]
    file.write_text(json.dumps(content | {"camera_angle_x": 2 * math.atan(36 / 30), "w": 72, "h": 48}))
    np.testing.assert_allclose(registry.read(file).K, [[[30, 0, 36], [0, 30, 24], [0, 0, 1]]])


@pytest.mark.parametrize("camera", ["PINHOLE 72 48 30 31 35 24.5", "OPENCV 72 48 30 31 35 24.5 0 0 0.0 0"])
@pytest.mark.parametrize("points", ["", "3.5 4.5 -1 7.25 1 12"])
def test_colmap_text(tmp_path, camera, points):
    poses = path()
    colmap(tmp_path / "sparse" / "0", poses, camera, points)
    for given in (tmp_path, tmp_path / "sparse" / "0", tmp_path / "sparse" / "0" / "images.txt"):
        check(given, "colmap", poses)
    assert [file.name for file in registry.sources(tmp_path)] == ["cameras.txt", "images.txt"]


@pytest.mark.parametrize("name", ["camera_to_world", "cam_c2w"])
def test_npz(tmp_path, name):
    poses = path()
    lens = np.tile([30.0, 31, 35, 24.5], (12, 1))
    np.savez(tmp_path / "a", **{name: poses[:, :3], "intrinsics": lens, "width": WIDTH, "height": HEIGHT})
    check(tmp_path / "a.npz", "npz", poses)
    np.savez(tmp_path / "b", **{name: poses})
    assert registry.read(tmp_path / "b.npz").K is None
    np.savez(tmp_path / "c", **{name: poses, "K": K})
    np.testing.assert_array_equal(registry.read(tmp_path / "c.npz").sizes[0], [70, 49])  # twice the principal point


def keyframes(file, keys, **rest):
    file.write_text(json.dumps({"keyframes": keys, **rest}))
    return file


def test_keyframes_of_a_motion_are_that_motion(tmp_path):
    found, got = read(keyframes(tmp_path / "a.json", {"0": "source", "11": "left:10+up:4+in:0.2"}), pivot=3.0)
    assert (found.format, found.count, found.about_source, found.in_pivots) == ("keyframes", 12, True, True)
    np.testing.assert_allclose(got, path(), atol=1e-6)  # the other side is float32


def test_keyframes_of_poses_stay_on_the_sphere_or_on_the_line(tmp_path):
    there = path("left:40", 2, pivot=1.0)[1]
    keys = {"0": "source", "4": there.tolist(), "8": "source"}
    on_sphere = read(keyframes(tmp_path / "a.json", keys), pivot=3.0)[1]
    middle = on_sphere[2]
    assert np.linalg.norm(middle[:3, 3] - [0, 0, 3]) == pytest.approx(3)
    np.testing.assert_allclose(middle, path("left:20", 2)[1], atol=1e-6)
    in_line = read(keyframes(tmp_path / "b.json", keys, interpolation="linear"), pivot=3.0)[1]
    np.testing.assert_allclose(in_line[2][:3, 3], on_sphere[4][:3, 3] / 2, atol=1e-12)
    np.testing.assert_allclose(in_line[2][:3, :3], path("left:20", 2)[1][:3, :3], atol=1e-6)  # slerp: half the angle
    np.testing.assert_allclose(on_sphere[8], np.eye(4), atol=1e-12)


def test_what_a_keyframe_turns_away_from_the_pivot_is_kept(tmp_path):
    pan = np.eye(4)
    pan[:3, :3] = path("left:20", 2, pivot=1.0)[1][:3, :3]  # turned, at the source's place
    got = read(keyframes(tmp_path / "a.json", {"0": "source", "2": pan.tolist()}), pivot=3.0)[1]
    np.testing.assert_allclose(got[1][:3, 3], 0, atol=1e-12)
    np.testing.assert_allclose(got[1][:3, :3], path("left:10", 2)[1][:3, :3], atol=1e-6)


def test_both_crafters_lines_in_their_own_orders(tmp_path):
    up, right, forward = "0 2 4 8", "0 5 5 10", "0 0.1 0.2 0.3"
    (tmp_path / "a.txt").write_text(f"# TrajectoryCrafter\n{up}\n{right}\n{forward}\n")
    (tmp_path / "viewcrafter_path.txt").write_text(f"{right}\n{up}\n{forward}\n\n")
    (tmp_path / "c.txt").write_text(f"{up}\n{right}\n{forward}")
    first, second = read(tmp_path / "a.txt", 10, 3.0)[1], read(tmp_path / "viewcrafter_path.txt", 10, 3.0)[1]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, read(tmp_path / "c.txt", 10, 3.0, "trajectorycrafter")[1])
    assert len(first) == 10
    np.testing.assert_allclose(first[-1], path("right:10+up:8+in:0.3", 2)[1], atol=1e-6)
    np.testing.assert_allclose(first[3], path("right:5+up:2+in:0.1", 2)[1], atol=1e-6)  # through the given values
    with pytest.raises(
        InputError, match=r"c\.txt: TrajectoryCrafter's lines are .* put the tool's name in a first line"
    ):
        registry.read(tmp_path / "c.txt")


def test_the_spline_is_a_cubic(tmp_path):
    from reangle_jax.cameras.interpolation import curve

    at = np.arange(6.0)
    cubic = np.stack([at**3 - 4 * at, 2 - at], axis=1)
    new = np.linspace(0, 5, 21)
    np.testing.assert_allclose(curve(cubic, 21), np.stack([new**3 - 4 * new, 2 - new], axis=1), atol=1e-10)
    np.testing.assert_allclose(curve(cubic[:3, 1:], 5)[:, 0], [2, 1.5, 1, 0.5, 0])


def _json(content):
    return lambda folder: (folder / "f").write_text(json.dumps(content))


def _text(content):
    return lambda folder: (folder / "f").write_bytes(content if isinstance(content, bytes) else content.encode())


def _npz(**arrays):
    def write(folder):
        with (folder / "f").open("wb") as file:
            np.savez(file, **arrays)

    return write


def _nerfstudio(**top):
    return lambda folder: nerfstudio(folder / "f", path(), **top)


def _colmap(camera="PINHOLE 72 48 30 31 35 24.5", change=lambda text: text):
    def write(folder):
        colmap(folder / "f", path(), camera)
        file = folder / "f" / "images.txt"
        file.write_text(change(file.read_text()))

    return write


def _own(pose, width):
    lens = [[60, 0, 36], [0, 60, 24], [0, 0, 1]]
    return _json({"width": width, "height": 48, "frames": [{"K": lens, "camera_to_world": pose}]})


FAR = [[1, 0, 0, 1e300], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
SHEARED = [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
MIRRORED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
BAD = {
    "nothing": (lambda folder: None, "no such file; give a camera file .* or a motion such as left:10"),
    "no JSON": (_text('{"frames": ['), "is not JSON"),
    "deep JSON": (_text("[" * 100_000), "is not JSON"),
    "other JSON": (
        _json({"frames": [{"time": 1}]}),
        "holds no cameras of a known format; known are cameras.json, nerf",
    ),
    "bytes": (_text(b"\xff\xfe\x00\x01"), "is neither text nor .npz"),
    "LFS": (_text("version https://git-lfs.github.com/spec/v1\n"), "is a pointer of Git LFS"),
    "empty folder": (lambda folder: (folder / "f").mkdir(), "must hold COLMAP's text model"),
    "nerfstudio's folder": (
        lambda folder: ((folder / "f").mkdir(), (folder / "f" / "transforms.json").write_text("{}")),
        "is a folder; nerfstudio's cameras are a file of it: give .*/f/transforms.json",
    ),
    "no rotation": (_json({"frames": [{"transform_matrix": SHEARED}]}), "frame 0: transform_matrix holds no rotation"),
    "mirrored": (_json({"frames": [{"transform_matrix": MIRRORED}]}), "mirrors the scene"),
    "not finite": (_text('{"frames": [{"transform_matrix": [[NaN,0,0,0],[0,1,0,0],[0,0,1,0]]}]}'), "not finite"),
    "a frame without": (
        _json({"frames": [{"transform_matrix": MIRRORED}, {}]}),
        "frame 1: transform_matrix is missing",
    ),
    "distortion": (_nerfstudio(k1=0.1), r"has lens distortion \(k1=0.1\): undistort .*colmap image_undistorter"),
    "distortion in a list": (_nerfstudio(distortion_params=[0, 0.2]), r"lens distortion \(k2=0.2\)"),
    "fisheye": (_nerfstudio(camera_model="OPENCV_FISHEYE"), "camera_model OPENCV_FISHEYE is no pinhole: undistort"),
    "no size": (_nerfstudio(w=None), "w and h are missing"),
    "focal length": (_nerfstudio(fl_x=-3), "has the focal lengths -3"),
    "more than float64": (_nerfstudio(fl_x=10**400), "fl_x is 1000.* it must be a finite number"),
    "more than float32": (_nerfstudio(applied_scale=1e300), r"applied_scale is 1e\+300; it must be at most 1e\+09"),
    "no angle": (_nerfstudio(fl_x=None, camera_angle_x=1e-320), "has the focal lengths inf"),
    "a far camera": (_own(FAR, 72), r"frame 0: camera_to_world holds 1e\+300; give numbers of at most"),
    "numbers of many digits": (_own([[10**400] * 4] * 4, 72), "camera_to_world is not a matrix of numbers"),
    "a wide picture": (_own(np.eye(4).tolist(), 10**400), r"width is 1000+; it must be a whole number"),
    "words": (_nerfstudio(fl_x="wide"), "fl_x is 'wide'; it must be a finite number"),
    "COLMAP distortion": (_colmap("SIMPLE_RADIAL 72 48 30 35 24 0.01"), r"line 3 has lens distortion \(k=0.01\)"),
    "COLMAP fisheye": (_colmap("OPENCV_FISHEYE 72 48 30 31 35 24 0 0 0 0"), "OPENCV_FISHEYE is no pinhole: undistort"),
    "COLMAP size": (_colmap("PINHOLE 0 48 30 31 35 24"), "the pictures' size is not above 0"),
    "COLMAP far": (_colmap("PINHOLE 1e300 48 30 31 35 24"), r"line 3 is 1e\+300; it must be at most"),
    "COLMAP parameters": (_colmap("PINHOLE 72 48 30 31 35"), "PINHOLE has 4 parameters after width and height, not 3"),
    "COLMAP lines": (
        _colmap(change=lambda text: text.replace("\n\n", "\n")),
        "line 2: no line of points follows: every image has two lines, of which the second may be empty",
    ),
    "COLMAP camera": (_colmap(change=lambda text: text.replace(" 1 frame", " 7 frame")), "there is no camera 7"),
    "COLMAP binary": (
        lambda folder: ((folder / "f").mkdir(), (folder / "f" / "images.bin").touch()),
        "model is binary; write it as text: colmap model_converter",
    ),
    "npz names": (_npz(poses=np.eye(4)[None]), "holds poses: name the poses"),
    "npz shape": (_npz(camera_to_world=np.eye(4)), r"camera_to_world has the shape \(4, 4\); give \(T, 4, 4\)"),
    "npz rotation": (_npz(cam_c2w=np.array([SHEARED])), r"cam_c2w\[0\] holds no rotation"),
    "npz far": (_npz(camera_to_world=np.array([FAR])), "camera_to_world holds numbers beyond"),
    "npz pickles": (_npz(cam_c2w=np.array([None])), "is not an .npz that NumPy can read"),
    "npz broken": (_text(b"PK\x03\x04rubbish"), "is not an .npz that NumPy can read"),
    "npz lenses": (_npz(cam_c2w=np.eye(4)[None], K=np.eye(3)[None, :2]), r"K has the shape \(1, 2, 3\)"),
    "keyframes": (_json({"keyframes": []}), "keyframes is"),
    "keyframes' first": (_json({"keyframes": {"1": "source"}}), "the first keyframe is 1; say where"),
    "keyframes' number": (_json({"keyframes": {"0": "source", "1.5": "source"}}), "'1.5' is no frame's number"),
    "keyframes twice": (_json({"keyframes": {"0": "source", "00": "source"}}), "a frame has two keyframes"),
    "keyframes' motion": (_json({"keyframes": {"0": "jump:3"}}), "keyframe 0: unknown motion 'jump'"),
    "keyframes' way": (_json({"keyframes": {"0": "source"}, "interpolation": "cubic"}), "use sphere or linear"),
    "keyframe at the pivot": (
        _json({"keyframes": {"0": "source", "5": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]}}),
        "a camera stands at the pivot itself: interpolate by linear",
    ),
    "crafters' lengths": (_text("# viewcrafter\n0 1\n0\n0 1\n"), "different lengths"),
    "crafters' limits": (_text("# viewcrafter\n0 1\n0 95\n0 1\n"), "theta reaches 95; it must stay within 90"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_clear_line(tmp_path, name):
    write, words = BAD[name]
    write(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        registry.read(tmp_path / "f").poses(12, 1.0)
    assert str(caught.value).startswith(str(tmp_path / "f"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["f", "images.txt", "cameras.txt"])
def test_pipes_are_refused_and_not_waited_for(tmp_path, name):
    write_colmap = {"images.txt": "1 1 0 0 0 0 0 0 1 a.png\n\n", "cameras.txt": ""}
    for other in {*write_colmap} - {name} if name == "cameras.txt" else ():
        (tmp_path / other).write_text(write_colmap[other])
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: is a pipe or a device: write it to a file first"):
        registry.read(tmp_path if name == "cameras.txt" else tmp_path / name)


def test_names_with_more_digits_than_python_converts_are_in_order(tmp_path):
    frames = [{"transform_matrix": np.eye(4).tolist(), "file_path": name} for name in ("9" * 5000, "10", "2")]
    frames[2]["transform_matrix"][0][3] = 5
    (tmp_path / "f").write_text(json.dumps({"frames": frames}))
    assert registry.read(tmp_path / "f").poses(3, 1.0)[0, 0, 3] == 5
