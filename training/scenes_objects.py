"""What a procedural scene is made of: fixed slots of unit shapes under moving, turning, stretching frames.

A slot's shape is a square (walls, ground, billboards), a ball, a cube or an upright cylinder; `pose_at` says where each
is at a time.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

# Slots, in this order. The dome is a large sphere seen from inside: the sky, so that every ray hits something.
NUM_PLANES, NUM_BILLBOARDS, NUM_BALLS, NUM_BOXES, NUM_COLUMNS, NUM_DOMES = 3, 4, 4, 3, 3, 1
BILLBOARDS = slice(NUM_PLANES, NUM_PLANES + NUM_BILLBOARDS)
BALLS = slice(BILLBOARDS.stop, BILLBOARDS.stop + NUM_BALLS)
BOXES = slice(BALLS.stop, BALLS.stop + NUM_BOXES)
COLUMNS = slice(BOXES.stop, BOXES.stop + NUM_COLUMNS)
DOME = COLUMNS.stop
NUM_OBJECTS = DOME + NUM_DOMES
GROUND, WALL, SIDE = 0, 1, 2
DOME_RADIUS = 60.0
# Textures: the first are LARGE, the others SMALL.
NUM_LARGE, NUM_SMALL = 3, 9


class Objects(NamedTuple):
    """All slots of a scene: N = NUM_OBJECTS; lengths in scene units, angles in radians, time in [0, 1] over the clip.

    Attributes:
        active: whether the slot is filled.
        position: the centre at rest; the middle of the foot where `anchored` is 1.
        velocity: units a clip.
        half_size: half extents along the object's own axes; the third is not used by squares.
        axis: unit axis of rotation.
        angle: the angle about `axis` at time 0.
        spin: radians a clip.
        swing: amplitude of a sinusoidal displacement.
        rate: cycles a clip of swing, hop, squash, bend and wave.
        phase: their phase, in cycles.
        hop: height of hops, |sin|.
        squash: relative change of height; width and depth change the other way.
        bend: sideways sway of a square's top, in half widths.
        wave: amplitude of a travelling ripple of a square, in half widths.
        anchored: 1 if the object stands on its position, 0 if it is centred there.
        texture: index of the texture.
        repeat: how many times the texture goes along u and v (mirrored at every other).
        offset: shift of the texture, in repeats.
        tint: factor on the colour.
    """

    active: Bool[Array, " N"]
    position: Float[Array, "N 3"]
    velocity: Float[Array, "N 3"]
    half_size: Float[Array, "N 3"]
    axis: Float[Array, "N 3"]
    angle: Float[Array, " N"]
    spin: Float[Array, " N"]
    swing: Float[Array, "N 3"]
    rate: Float[Array, " N"]
    phase: Float[Array, " N"]
    hop: Float[Array, " N"]
    squash: Float[Array, " N"]
    bend: Float[Array, " N"]
    wave: Float[Array, " N"]
    anchored: Float[Array, " N"]
    texture: Int[Array, " N"]
    repeat: Float[Array, "N 2"]
    offset: Float[Array, "N 2"]
    tint: Float[Array, "N 3"]


class Scene(NamedTuple):
    """A scene: arrays of fixed shape alone.

    Attributes:
        objects: the slots.
        atlas: packed RGBA textures with their mip levels (see `scenes_textures.pack_atlas`).
        upright: rotation from the world (the source camera's axes at frame 0) to the axes in which the objects are
            given (y straight down); the origins coincide.
        light: unit vector towards the light, in upright axes.
        ambient: share of the light that comes from everywhere.
    """

    objects: Objects
    atlas: UInt32[Array, " texels"]
    upright: Float[Array, "3 3"]
    light: Float[Array, "3"]
    ambient: Float[Array, ""]


class Pose(NamedTuple):
    """The objects at one instant: centre, rotation (object to upright axes), half extents, phase of the sway."""

    centre: Float[Array, "N 3"]
    rotation: Float[Array, "N 3 3"]
    half_size: Float[Array, "N 3"]
    cycle: Float[Array, " N"]


def pose_at(objects: Objects, time: Float[Array, ""]) -> Pose:
    """Where everything is at `time` in [0, 1]."""
    cycle = 2 * jnp.pi * (objects.rate * time + objects.phase)
    wave = jnp.sin(cycle)
    stretch = 1 + objects.squash * wave
    narrow = 1 / jnp.sqrt(stretch)  # keeps the volume
    half_size = objects.half_size * jnp.stack([narrow, stretch, narrow], -1)
    centre = objects.position + objects.velocity * time + objects.swing * wave[:, None]
    lift = objects.hop * jnp.abs(wave) + objects.anchored * half_size[:, 1]
    centre = centre - jnp.stack([jnp.zeros_like(lift), lift, jnp.zeros_like(lift)], -1)
    return Pose(centre, _axis_angle(objects.axis, objects.angle + objects.spin * time), half_size, cycle)


def _axis_angle(axis: Float[Array, "N 3"], angle: Float[Array, " N"]) -> Float[Array, "N 3 3"]:
    """Rodrigues' rotation about a unit axis."""
    x, y, z = axis[:, 0], axis[:, 1], axis[:, 2]
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    sine, versine = jnp.sin(angle)[:, None, None], (1 - jnp.cos(angle))[:, None, None]
    square = axis[:, :, None] * axis[:, None, :] - jnp.eye(3)[None]
    return jnp.eye(3)[None] + sine * cross + versine * square
