"""Noise carried along by a camera."""

import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.geometry import cameras, noise, trajectories

FRAMES, ROWS, COLUMNS, CELL = 2, 12, 16, 4
K = cameras.default_intrinsics(ROWS * CELL, COLUMNS * CELL)


@pytest.fixture
def pair(rng):
    """The source's noise and the target's own: distinct everywhere."""
    return rng.normal(size=(2, FRAMES, ROWS, COLUMNS, 3)).astype(np.float32)


def depth(value=4.0):
    return np.full((FRAMES, ROWS * CELL, COLUMNS * CELL), value, np.float32)


def view(spelling):
    return trajectories.view_cameras(trajectories.parse_view(spelling), K, 4.0, FRAMES, "static")


SOURCE = cameras.identity_cameras(K, FRAMES)


def test_a_camera_that_stands_still_keeps_it(pair):
    np.testing.assert_array_equal(noise.carried(*pair, depth(), SOURCE, SOURCE), pair[0])


def test_a_camera_that_slides_moves_it_by_whole_cells(pair):
    """Two cells to the left: what the source has in a column, the target has two columns to the right."""
    slid = np.asarray(SOURCE.camera_to_world).copy()
    slid[:, 0, 3] = -2 * CELL * 4.0 / K[0, 0]
    target = cameras.Cameras(SOURCE.K, jnp.asarray(slid))
    moved = noise.carried(*pair, depth(), SOURCE, target)
    np.testing.assert_array_equal(moved[:, :, 2:], pair[0][:, :, :-2])
    np.testing.assert_array_equal(moved[:, :, :2], pair[1][:, :, :2])


@pytest.mark.parametrize("spelling", ["left:20", "out:0.5", "in:0.3+up:10"])
def test_no_cell_is_used_twice(pair, spelling):
    moved = noise.carried(*pair, depth(), SOURCE, view(spelling))
    given = {tuple(cell) for cell in pair.reshape(-1, 3)}
    cells = [tuple(cell) for cell in moved.reshape(-1, 3)]
    assert len(set(cells)) == len(cells)  # white, and as wide as before
    assert set(cells) <= given
    assert np.mean([cell in {tuple(c) for c in pair[0].reshape(-1, 3)} for cell in cells]) > 0.4


def test_the_nearest_of_those_that_meet_is_seen(pair):
    """All of the scene behind one column of cells that stands close to a camera which slides across."""
    z = depth(8.0)
    z[:, :, 5 * CELL : 6 * CELL] = 2.0
    slid = np.asarray(SOURCE.camera_to_world).copy()
    slid[:, 0, 3] = -CELL * 2.0 / K[0, 0]  # a cell for what is near, a quarter for what is far
    moved = noise.carried(*pair, z, SOURCE, cameras.Cameras(SOURCE.K, jnp.asarray(slid)))
    np.testing.assert_array_equal(moved[:, :, 6], pair[0][:, :, 5])
    np.testing.assert_array_equal(moved[:, :, 7], pair[0][:, :, 7])
    np.testing.assert_array_equal(moved[:, :, 5], pair[1][:, :, 5])  # uncovered
