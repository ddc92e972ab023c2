"""Each layout, read by readers that were not written here where there are any, else by its published facts."""

import json

import cv2
import numpy as np
import pycolmap
import pytest
import tensorflow_datasets as tfds

from reangle_jax.cameras import registry as readers
from reangle_jax.data import video
from reangle_jax.export import clip as clips
from reangle_jax.export.command import main
from reangle_jax.export.registry import FORMATS
from tests.export import conftest
from tests.export.conftest import FRAMES, HEIGHT, WIDTH, K, export, rendered

NAMES = ["input", "left_10", "up_8_in_0_1"]
BALL = np.array([0.3, -0.2, 4.5])  # the middle of the scene's sphere
PIVOT = np.array([0, 0, conftest.PIVOT])  # what the cameras look at


def poses_of(run, t=0):
    """Camera to world of the input and the views."""
    tracks = clips.read(run, with_input=True).tracks
    assert [track.name for track in tracks] == NAMES
    return np.stack([track.poses[t] for track in tracks])


def frames_of(run):
    return [track.frames for track in clips.read(run, with_input=True).tracks]


def read_picture(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def pixel(pose):
    """Where a camera of OpenCV's axes sees the ball."""
    x, y, z = np.linalg.inv(pose)[:3] @ [*BALL, 1]
    return np.array([60 * x / z + 36, 60 * y / z + 24])


def pixel_opengl(pose):
    x, y, z = np.linalg.inv(pose)[:3] @ [*BALL, 1]
    return np.array([60 * x / -z + 36, 24 - 60 * y / -z])


def read_ply(path):
    head, _, body = path.read_bytes().partition(b"end_header\n")
    kinds = {"float": "<f4", "uchar": "u1"}
    lines = [line.split() for line in head.decode().splitlines()]
    assert lines[1] == ["format", "binary_little_endian", "1.0"]
    kind = [(line[2], kinds[line[1]]) for line in lines if line[0] == "property"]
    rows = np.frombuffer(body, kind)
    assert len(rows) == next(int(line[2]) for line in lines if line[:2] == ["element", "vertex"])
    return np.stack([rows[name] for name in "xyz"], 1), np.stack([rows[name] for name in ("red", "green", "blue")], 1)


def on_the_scene(xyz):
    """Points lie on the plane z = 8 or on the sphere of radius 1."""
    off = np.minimum(np.abs(xyz[:, 2] - 8), np.abs(np.linalg.norm(xyz - BALL, axis=1) - 1))
    return off.max()


def test_nerfstudio(moving, tmp_path):
    out = export(moving, tmp_path / "ns", "nerfstudio", "--with-input", "--masks", "--frames", "0,2")
    assert [path.name for path in sorted(out.iterdir())] == ["00000", "00002"]
    folder = out / "00002"
    found = readers.read(folder / "transforms.json")
    np.testing.assert_allclose(found.poses(3, 1.0), poses_of(moving, 2), atol=1e-6)
    np.testing.assert_allclose(found.K, [K] * 3, atol=1e-6)
    content = json.loads((folder / "transforms.json").read_text())
    for frame, frames, pose in zip(content["frames"], frames_of(moving), poses_of(moving, 2), strict=True):
        np.testing.assert_array_equal(read_picture(folder / frame["file_path"])[..., ::-1], frames[2])
        matrix = np.array(frame["transform_matrix"])
        # The world is turned so that what was up, -y, is +z: the ball and the camera alike.
        turned = matrix.copy()
        turned[:3] = np.array(content["applied_transform"])[:, :3].T @ matrix[:3]
        np.testing.assert_allclose(pixel_opengl(turned), pixel(pose), atol=1e-6)
        depth, mask = read_picture(folder / frame["depth_file_path"]), read_picture(folder / frame["mask_path"])
        assert (depth.dtype, mask.shape) == (np.uint16, (HEIGHT, WIDTH))
    np.testing.assert_array_equal(mask[:, -4:], 0)
    np.testing.assert_array_equal(mask[:, :-4], 255)
    assert np.array(content["applied_transform"])[2, :3] @ [0, -1, 0] == 1
    # Depth of the last view, in thousandths: the scene's own where it is known.
    from reangle_jax.geometry.cameras import Cameras

    track = clips.read(moving).tracks[-1]
    truth = rendered(Cameras(track.K.astype(np.float32), track.poses.astype(np.float32)))[1][2]
    known = depth > 0
    assert known.mean() > 0.8
    assert np.median(np.abs(depth[known] / 1000 - truth[known]) / truth[known]) < 0.005
    xyz, rgb = read_ply(folder / content["ply_file_path"])
    assert on_the_scene(xyz @ np.array(content["applied_transform"])[:, :3]) < 1e-4
    assert rgb.std() > 10


def test_colmap_as_text_and_binary_by_colmap_itself(moving, standing, tmp_path):
    text = export(moving, tmp_path / "colmap", "colmap", "--with-input", "--frames", "1")
    found = readers.read(text / "00001")
    np.testing.assert_allclose(found.poses(3, 1.0), poses_of(moving, 1), atol=1e-6)
    binary = export(standing, tmp_path / "mv", "multipleview", "--with-input")
    for folder, expected, poses in (
        (text / "00001" / "sparse" / "0", [f"{name}.png" for name in NAMES], poses_of(moving, 1)),
        (binary / "sparse_", ["image1.jpg", "image2.jpg", "image3.jpg"], poses_of(standing)),
    ):
        model = pycolmap.Reconstruction(str(folder))
        images = {image.name: image for image in model.images.values()}
        assert sorted(images) == expected
        for name, pose in zip(expected, poses, strict=True):
            got = images[name].cam_from_world().matrix()
            np.testing.assert_allclose(got, np.linalg.inv(pose)[:3], atol=1e-6)
            camera = model.cameras[images[name].camera_id]
            assert (camera.width, camera.height) == (WIDTH, HEIGHT)
            np.testing.assert_allclose(camera.calibration_matrix(), K, atol=1e-5)
    points = pycolmap.Reconstruction(str(text / "00001" / "sparse" / "0")).points3D
    assert on_the_scene(np.stack([point.xyz for point in points.values()])) < 1e-4


def test_multipleview(standing, tmp_path):
    out = export(standing, tmp_path / "mv", "multipleview", "--with-input")
    assert sorted(path.name for path in out.iterdir()) == [
        "cam01", "cam02", "cam03", "points3D_multipleview.ply", "poses_bounds_multipleview.npy", "sparse_",
    ]  # fmt: skip
    assert [path.name for path in sorted((out / "cam02").iterdir())] == [f"frame_{t:05d}.jpg" for t in (1, 2, 3)]
    kept = read_picture(out / "cam02" / "frame_00003.jpg")[..., ::-1].astype(int)
    assert np.abs(kept - frames_of(standing)[1][2]).mean() < 2  # grey levels: JPEG's loss, colours at full resolution
    assert list(pycolmap.Reconstruction(str(out / "sparse_")).cameras) == [1]
    assert on_the_scene(read_ply(out / "points3D_multipleview.ply")[0]) < 1e-4


def test_neu3d(standing, tmp_path):
    out = export(standing, tmp_path / "neu", "neu3d", "--with-input", "--test", "left:10")
    rows = np.load(out / "poses_bounds.npy")
    assert rows.shape == (3, 17)
    blocks = rows[:, :15].reshape(3, 3, 5)
    np.testing.assert_allclose(blocks[:, :, 4], [[HEIGHT, WIDTH, 60]] * 3)
    # As NeRF's loader reads LLFF: [down, right, backwards] to [right, up, backwards].
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3] = np.concatenate([blocks[..., 1:2], -blocks[..., :1], blocks[..., 2:4]], axis=-1)
    order = [1, 0, 2]  # cam00 is the one held out
    for got, want in zip(poses, poses_of(standing)[order], strict=True):
        np.testing.assert_allclose(pixel_opengl(got), pixel(want), atol=1e-5)
    near, far = rows[0, 15:]
    assert 0 < near < 3.6
    assert 8 < far < 12
    assert sorted(path.name for path in out.glob("*.mp4")) == ["cam00.mp4", "cam01.mp4", "cam02.mp4"]
    assert sum(1 for _ in video.iterate_frames(out / "cam00.mp4")) == FRAMES
    assert on_the_scene(read_ply(out / "points3D_downsample2.ply")[0]) < 1e-4


def test_dnerf(moving, tmp_path):
    out = export(moving, tmp_path / "dnerf", "dnerf", "--masks", "--test", "up_8_in_0_1")
    splits = {split: json.loads((out / f"transforms_{split}.json").read_text()) for split in ("train", "val", "test")}
    assert splits["val"] == splits["test"]
    assert [len(split["frames"]) for split in splits.values()] == [FRAMES] * 3
    assert [frame["time"] for frame in splits["train"]["frames"]] == [0, 0.5, 1]
    focal = 0.5 * WIDTH / np.tan(0.5 * splits["train"]["camera_angle_x"])
    assert focal == pytest.approx(60, abs=1e-4)
    for k, split in ((1, "train"), (2, "test")):
        for t, frame in enumerate(splits[split]["frames"]):
            pose = np.array(frame["transform_matrix"])
            pose[:3, 3] += PIVOT  # the world's origin is what the cameras look at
            np.testing.assert_allclose(pixel_opengl(pose), pixel(poses_of(moving, t)[k]), atol=1e-5)
            rgba = read_picture(out / f"{frame['file_path']}.png")
            np.testing.assert_array_equal(rgba[..., 2::-1], frames_of(moving)[k][t])
            assert (rgba[..., 3].min(), rgba[..., 3].max()) == (0, 255)
    for name in ("fused", "points3d"):  # by which name 4DGaussians and Deformable 3DGS begin
        assert on_the_scene(read_ply(out / f"{name}.ply")[0] + PIVOT) < 1e-4
    found = readers.read(out / "transforms_train.json").poses(3, 1.0)
    found[:, :3, 3] += PIVOT
    np.testing.assert_allclose(found, [poses_of(moving, t)[1] for t in range(3)], atol=1e-6)


def test_dnerf_for_loaders_that_want_squares_about_the_origin(moving, tmp_path):
    """By the arithmetic of 4DGaussians' and Deformable 3DGS's readers, which is right for such data sets alone."""
    out = export(moving, tmp_path / "dnerf", "dnerf", "--square", "--with-input")
    content = json.loads((out / "transforms_train.json").read_text())
    for frame in content["frames"]:
        _, name, t = frame["file_path"].split("/")
        assert read_picture(out / f"{frame['file_path']}.png").shape == (HEIGHT, HEIGHT, 4)
        matrix = np.linalg.inv(frame["transform_matrix"])
        rotation = -matrix[:3, :3].T
        rotation[:, 0] = -rotation[:, 0]
        x, y, z = rotation.T @ (BALL - PIVOT) - matrix[:3, 3]
        focal = HEIGHT / 2 / np.tan(content["camera_angle_x"] / 2)
        got = np.array([focal * x / z + WIDTH / 2, focal * y / z + HEIGHT / 2])
        np.testing.assert_allclose(got, pixel(poses_of(moving, int(t))[NAMES.index(name)]), atol=1e-4)


def test_dycheck(moving, tmp_path):
    out = export(moving, tmp_path / "dy", "dycheck", "--with-input", "--masks", "--test", "left:10")
    dataset = json.loads((out / "dataset.json").read_text())
    assert (dataset["count"], dataset["num_exemplars"], len(dataset["val_ids"])) == (9, 6, 3)
    scene = json.loads((out / "scene.json").read_text())
    for item in dataset["ids"]:
        camera, t = map(int, item.split("_"))
        content = json.loads((out / "camera" / f"{item}.json").read_text())
        x, y, z = np.array(content["orientation"]) @ (BALL - content["position"])
        got = np.array([x, y]) / z * content["focal_length"] + content["principal_point"]
        np.testing.assert_allclose(got, pixel(poses_of(moving, t)[camera]), atol=1e-5)
        assert content["image_size"] == [WIDTH, HEIGHT]
        depth = np.load(out / "depth" / "1x" / f"{item}.npy")
        assert (depth.shape, depth.dtype) == ((HEIGHT, WIDTH, 1), np.float32)
        np.testing.assert_array_equal(
            read_picture(out / "rgb/1x" / f"{item}.png")[..., ::-1], frames_of(moving)[camera][t]
        )
        assert json.loads((out / "metadata.json").read_text())[item]["camera_id"] == camera
    split = json.loads((out / "splits" / "val.json").read_text())
    assert (split["camera_ids"], split["time_ids"]) == ([1] * 3, [0, 1, 2])
    assert len(list((out / "covisible" / "1x" / "val").iterdir())) == 3
    points = (np.load(out / "points.npy") - scene["center"]) * scene["scale"]
    assert np.abs(np.quantile(points, [0.02, 0.98], axis=0)).max() <= 0.5
    assert (out / "extra.json").is_file()


def test_tfds_without_tensorflow(moving, standing, tmp_path):
    out = tmp_path / "sets"
    assert (
        main([str(moving), str(standing), "--format", "tfds", "--out", str(out), "--with-input", "--shards", "2"]) == 0
    )
    folder = out / "reangle_views" / "1.0.0"
    assert len(list(folder.glob("*.array_record*"))) == 2
    source = tfds.builder_from_directory(folder).as_data_source("train")
    assert len(source) == 2
    for example, run in zip(source, (moving, standing), strict=True):
        assert example["caption"] == b"a ball"
        assert [name.decode() for name in example["names"]] == NAMES
        np.testing.assert_array_equal(example["frames"], np.stack(frames_of(run)))
        np.testing.assert_allclose(example["camera_to_world"][:, 2], poses_of(run, 2), atol=1e-6)
        np.testing.assert_allclose(example["intrinsics"], np.tile(K, (3, FRAMES, 1, 1)))
        assert example["depth"].shape == example["seen"].shape == (3, FRAMES, HEIGHT, WIDTH)
        assert example["depth"][:, :, 24, 36].min() > 3
    shares = [tfds.builder_from_directory(folder).as_data_source(part) for part in tfds.even_splits("train", 2)]
    assert [len(share) for share in shares] == [1, 1]  # of a pod's two hosts


def test_points(moving, tmp_path):
    out = export(moving, tmp_path / "points", "points", "--frames", "2")
    assert [path.name for path in out.iterdir()] == ["00002.ply"]
    xyz, rgb = read_ply(out / "00002.ply")
    assert len(xyz) <= HEIGHT * WIDTH
    assert on_the_scene(xyz) < 1e-4
    fused, _ = read_ply(export(moving, tmp_path / "fused", "points", "--fused") / "fused.ply")
    # Three frames of a scene that stands still are the same points.
    assert len(fused) <= HEIGHT * WIDTH
    assert on_the_scene(fused) < 1e-4
    assert rgb.dtype == np.uint8


def test_the_list_says_what_reads_each(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*FORMATS]
