"""Rendered views of one moment: their geometry agrees with their pictures, and shards are read back whole."""

import types

import numpy as np
import pytest

from reangle_jax.data.files import atomic_savez
from reangle_jax.errors import InputError
from training.train_dino import carry
from training.views import VIEWS, Views, load_views, main, random_cameras, render_views


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
    height, width = views.images.shape[2:4]
    grid = np.stack(np.meshgrid(np.arange(4, width, 8), np.arange(4, height, 8)), -1).reshape(-1, 2) + 0.5
    same, other = [], []
    for scene in range(2):
        for target in range(1, VIEWS):
            place, seen = carry(grid, views, scene, 0, target)
            here = views.images[scene, 0][tuple(grid[seen].astype(int).T[::-1])].astype(float)
            there = views.images[scene, target][tuple(place[seen].astype(int).T[::-1])].astype(float)
            assert seen.mean() > 0.3
            same.append(np.abs(here - there).mean(-1))
            other.append(np.abs(here - np.roll(there, 7, axis=0)).mean(-1))
    assert np.median(np.concatenate(same)) < 8
    assert np.median(np.concatenate(other)) > 2.5 * np.median(np.concatenate(same))


def test_scenes_are_the_same_wherever_they_are_rendered(views):
    alone = render_views(4, 1, None)
    for field, whole in zip(alone, views, strict=True):
        np.testing.assert_array_equal(field[0], whole[1])


def test_shards_are_read_in_order_and_none_is_refused(views, tmp_path):
    with pytest.raises(InputError, match=r"no rendered views: run python -m training\.views"):
        load_views(tmp_path)
    atomic_savez(tmp_path / "views_0000001.npz", **Views(*(x[1:] for x in views))._asdict())
    atomic_savez(tmp_path / "views_0000000.npz", **Views(*(x[:1] for x in views))._asdict())
    for field, whole in zip(load_views(tmp_path), views, strict=True):
        np.testing.assert_array_equal(field, whole)


def test_the_command_renders_what_is_missing(monkeypatch, tmp_path):
    rendered = []

    def render(first, count, pool):
        assert pool == "held out"
        rendered.append((first, count))
        return Views(*(np.full((count, 1), first) for _ in Views._fields))

    pools = types.SimpleNamespace(train="train", heldout="held out")
    monkeypatch.setattr("training.dataset.load_pool", lambda cache: pools)
    monkeypatch.setattr("training.views.render_views", render)
    for scenes in ("64", "130"):
        monkeypatch.setattr("sys.argv", ["views", "--out", str(tmp_path), "--scenes", scenes, "--first", "1000000"])
        main()
    assert rendered == [(1000000, 64), (1000064, 64), (1000128, 2)]
    np.testing.assert_array_equal(load_views(tmp_path).K[:, 0], [1000000] * 64 + [1000064] * 64 + [1000128] * 2)
