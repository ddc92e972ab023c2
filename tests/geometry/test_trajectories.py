import itertools

import numpy as np
import pytest

from reangle_jax.errors import InputError
from reangle_jax.geometry.cameras import default_intrinsics
from reangle_jax.geometry.trajectories import parse_view, view_cameras

K = default_intrinsics(48, 72)
SPELLINGS = [
    "+".join(parts)
    for count in (1, 2, 3)
    for parts in itertools.permutations(["left:10", "right:12.5", "up:8", "down:.5", "in:0.15", "out:0.3"], count)
    if not {"left", "right"} <= {p.split(":")[0] for p in parts}
    and not {"up", "down"} <= {p.split(":")[0] for p in parts}
    and not {"in", "out"} <= {p.split(":")[0] for p in parts}
]


def _poses(spelling, frames=5, mode="dynamic", pivot=3.0):
    return np.asarray(view_cameras(parse_view(spelling), K, pivot, frames, mode).camera_to_world, np.float64)


@pytest.mark.parametrize(
    ("spelling", "prefix"),
    [
        ("left:10", "CAMERA_ORBIT_LEFT Camera movement orbit left, "),
        ("in:0.15", "CAMERA_DOLLY_IN Camera movement dolly in, "),
        (
            "left:10+up:5",
            "CAMERA_ORBIT_LEFT CAMERA_ORBIT_UP Camera movement orbit left and orbit up, ",
        ),
    ],
)
def test_prompts(spelling, prefix):
    view = parse_view(spelling)
    assert (view.spelling, view.prompt_prefix) == (spelling, prefix)


def test_every_composition_is_a_rigid_motion_looking_at_the_pivot():
    pivot = np.array([0, 0, 3.0])
    for spelling in SPELLINGS:
        poses = _poses(spelling)
        rotation, position = poses[:, :3, :3], poses[:, :3, 3]
        # float32 entries of size 1.
        np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (5, 1, 1)), atol=1e-6)
        np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
        np.testing.assert_array_equal(poses[:, 3], np.tile([0, 0, 0, 1], (5, 1)))
        np.testing.assert_array_equal(poses[0], np.eye(4))  # dynamic views start at the source camera
        distance = np.linalg.norm(pivot - position, axis=1, keepdims=True)
        np.testing.assert_allclose((pivot - position) / distance, rotation[:, :, 2], atol=2e-6)
        np.testing.assert_allclose(rotation[:, 1, 0], 0, atol=1e-7)  # x stays level: no roll


def test_the_order_of_parts_does_not_matter():
    for parts in itertools.permutations(["left:10", "up:8", "in:0.15"]):
        np.testing.assert_array_equal(_poses("+".join(parts)), _poses("left:10+up:8+in:0.15"))


@pytest.mark.parametrize(
    ("spelling", "axis", "sign"), [("left:10", 0, -1), ("right:10", 0, 1), ("up:10", 1, -1), ("down:10", 1, 1)]
)
def test_orbits_travel_to_their_side_on_the_sphere(spelling, axis, sign):
    position = _poses(spelling)[-1, :3, 3]
    angle = np.radians(10)
    expected = np.zeros(3)
    expected[axis], expected[2] = sign * 3 * np.sin(angle), 3 * (1 - np.cos(angle))
    np.testing.assert_allclose(position, expected, atol=1e-6)


def test_dolly_goes_along_the_axis_by_the_fraction():
    np.testing.assert_allclose(_poses("in:0.15")[-1, :3, 3], [0, 0, 0.45], atol=1e-6)
    np.testing.assert_allclose(_poses("out:0.5")[-1, :3, 3], [0, 0, -1.5], atol=1e-6)


def test_dynamic_grows_linearly_and_static_is_held():
    dynamic, static = _poses("right:12"), _poses("right:12", mode="static")
    angles = np.degrees(np.arctan2(-dynamic[:, 0, 2], dynamic[:, 2, 2]))
    np.testing.assert_allclose(angles, [0, 3, 6, 9, 12], atol=1e-5)
    np.testing.assert_array_equal(static, np.tile(dynamic[-1], (5, 1, 1)))
    np.testing.assert_array_equal(_poses("right:12", frames=1), np.eye(4)[None])


@pytest.mark.parametrize(
    ("spelling", "says"),
    [
        ("", "is no view"),
        ("sideways:10", "unknown motion 'sideways'; the motions are left:A with 0 < A <= 60 degrees"),
        ("left:10+jump:1", "unknown motion 'jump' in 'left:10+jump:1'"),
        ("cameras.json", "unknown motion"),
        ("left", "no readable amount; write left:AMOUNT with a number above 0 up to 60"),
        ("left:", "no readable amount"),
        ("left:ten", "no readable amount"),
        ("left:1e1", "no readable amount"),
        ("left:nan", "no readable amount"),
        ("left: 10", "no readable amount"),
        ("left:-10", "no readable amount"),
        ("left:10+", "unknown motion ''"),
        ("left:0", "out of range; left takes a number above 0 up to 60"),
        ("left:61", "out of range"),
        ("in:1", "out of range"),
        ("left:5+right:5", "twice along one axis (left and right)"),
        ("left:5+left:5", "twice along one axis"),
    ],
)
def test_bad_views_are_refused(spelling, says):
    with pytest.raises(InputError) as caught:
        parse_view(spelling)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


def test_bad_pivot_and_mode_are_refused():
    view = parse_view("left:10")
    for pivot in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"^pivot_depth: "):
            view_cameras(view, K, pivot, 5)
    with pytest.raises(InputError, match=r"^mode: "):
        view_cameras(view, K, 1.0, 5, "sideways")
