"""Rendered views of one moment: their geometry agrees with their pictures, and the command goes on."""

import types

import numpy as np

from training.lifted_views import lifted
from training.train_dino import carry
from training.views import VIEWS, load_views, main, random_cameras, render_views


def test_cameras_are_rigid_and_the_first_is_the_world(rng):
    poses = random_cameras(rng, 4.0)
    assert poses.shape == (VIEWS, 4, 4)
    np.testing.assert_array_equal(poses[0], np.eye(4))
    turns = poses[:, :3, :3]
    np.testing.assert_allclose(turns @ turns.swapaxes(1, 2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-6)
    # All look roughly at the point four units ahead: it stays within 15 degrees of the middle.
    ahead = np.einsum("vji,vj->vi", turns, np.array([0, 0, 4.0]) - poses[:, :3, 3])
    assert (ahead[:, 2] > np.cos(np.radians(15)) * np.linalg.norm(ahead, axis=1)).all()


def test_pictures_agree_with_depth_and_cameras(views):
    """A spot has the same colour in every view that shows it, and another spot has not."""
    height, width = views[0].images.shape[1:3]
    grid = np.stack(np.meshgrid(np.arange(4, width, 8), np.arange(4, height, 8)), -1).reshape(-1, 2) + 0.5
    same, other = [], []
    for scene in views:
        for target in range(1, VIEWS):
            place, seen = carry(grid, scene, 0, target)
            here = scene.images[0][tuple(grid[seen].astype(int).T[::-1])].astype(float)
            there = scene.images[target][tuple(place[seen].astype(int).T[::-1])].astype(float)
            assert seen.mean() > 0.3
            same.append(np.abs(here - there).mean(-1))
            other.append(np.abs(here - np.roll(there, 7, axis=0)).mean(-1))
    assert np.median(np.concatenate(same)) < 8
    assert np.median(np.concatenate(other)) > 2.5 * np.median(np.concatenate(same))


def test_photographs_are_lifted_by_their_labels(rng):
    """A spot of a picture of waves, lifted by a near square before a slanted wall, looks alike in all four views."""
    rows, columns = np.meshgrid(np.arange(192) / 192, np.arange(288) / 192, indexing="ij")
    waves = [np.sin(20 * (a * rows + b * columns)) for a, b in ((1, 0.3), (-0.4, 1), (0.7, 0.8))]
    picture = np.uint8(127 + 120 * np.stack(waves, -1))
    label = 0.2 + 0.2 * rows
    label[60:130, 100:190] = 1.0
    scene = next(found for found in (lifted(picture, label, rng) for _ in range(20)) if found is not None)
    assert scene.images.shape == (VIEWS, 128, 192, 3)
    inverse = 1 / scene.depth.astype(np.float32)
    np.testing.assert_array_equal(inverse[0, 45:82, 70:122], inverse[0, 60, 90])  # the square is flat and nearest
    assert inverse[0, 60, 90] > 1.5 * inverse[0, 100, 20] > 1.5 * inverse[0, 10, 20]
    grid = np.stack(np.meshgrid(np.arange(4, 192, 8), np.arange(4, 128, 8)), -1).reshape(-1, 2) + 0.5
    for target in range(1, VIEWS):
        place, seen = carry(grid, scene, 0, target)
        here = scene.images[0][tuple(grid[seen].astype(int).T[::-1])].astype(float)
        there = scene.images[target][tuple(place[seen].astype(int).T[::-1])].astype(float)
        assert seen.mean() > 0.3
        assert np.median(np.abs(here - there)) < 12 < np.median(np.abs(here - np.roll(there, 7, axis=0)))


def test_scenes_are_the_same_wherever_they_are_rendered(views):
    for field, known in zip(render_views(4, None), views[1], strict=True):
        np.testing.assert_array_equal(field, known)


def test_the_command_renders_what_is_missing(monkeypatch, tmp_path, views):
    rendered = []

    def render(index, pool, varied):
        assert pool == "held out"
        assert varied == (index >= 1000002)
        rendered.append(index)
        return views[0]._replace(K=np.full((3, 3), index, np.float32))

    pools = types.SimpleNamespace(train="train", heldout="held out")
    monkeypatch.setattr("training.dataset.load_pool", lambda cache: pools)
    monkeypatch.setattr("training.views.render_views", render)
    monkeypatch.setattr("training.views.PART", 2)
    for scenes, more in (("2", []), ("5", ["--varied"])):
        command = ["views", "--out", str(tmp_path), "--scenes", scenes, "--first", "1000000", *more]
        monkeypatch.setattr("sys.argv", command)
        main()
    assert rendered == list(range(1000000, 1000005))
    assert [int(scene.K[0, 0]) for scene in load_views(tmp_path)] == rendered
