"""Exact renderer of the procedural scenes: one ray a sample, closed-form intersections, trilinear texture look-ups.

All objects stand in fixed slots (`scenes_objects`), so one compiled function renders every scene.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from training.scenes_lookup import bilinear, level_table, trilinear
from training.scenes_objects import (
    BALLS,
    BILLBOARDS,
    BOXES,
    COLUMNS,
    DOME,
    GROUND,
    NUM_LARGE,
    NUM_OBJECTS,
    NUM_PLANES,
    Objects,
    Pose,
    Scene,
    pose_at,
)
from training.scenes_textures import LARGE, SMALL

NEAR = 0.05  # scene units: nothing nearer than this is seen
_MISS = 1e9


@functools.partial(jax.jit, static_argnames=("height", "width", "supersample"))
def render(
    scene: Scene,
    K: Float[Array, "T 3 3"],
    camera_to_world: Float[Array, "T 4 4"],
    times: Float[Array, " T"],
    height: int,
    width: int,
    supersample: int = 1,
) -> tuple[Float[Array, "T H W 3"], Float[Array, "T H W"]]:
    """Renders one frame per camera and time, exactly.

    Args:
        scene: what is there.
        K: intrinsics in pixels; pixels' centres at +0.5.
        camera_to_world: OpenCV axes (x right, y down, z forward), scene units; rigid.
        times: each frame's time in [0, 1].
        height: rows of the picture.
        width: columns of the picture.
        supersample: s x s rays a pixel are averaged for the colour; the depth is always that of the pixel's centre.

    Returns:
        Colours in [0, 1], float32, and the depth along the camera's z axis in scene units, float32.
    """
    half = jnp.full(2, 0.5)

    def frame(inputs):
        intrinsics, pose, time = inputs
        objects = pose_at(scene.objects, time)
        focal = intrinsics[0, 0]
        origin, direction = _rays(scene, intrinsics, pose, _pixel_grid(height, width, half))
        depth, index = _nearest(scene, objects, focal, origin, direction)
        if supersample == 1:
            colour = _shade(scene, objects, focal, origin, direction, depth, index)
        else:

            def sample(total, offset):
                _, ray = _rays(scene, intrinsics, pose, _pixel_grid(height, width, offset))
                hit = _nearest(scene, objects, focal, origin, ray)
                return total + _shade(scene, objects, focal * supersample, origin, ray, *hit), None

            line = (np.arange(supersample, dtype=np.float32) + 0.5) / supersample
            offsets = jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2))
            colour = jax.lax.scan(sample, jnp.zeros((3, height * width)), offsets)[0] / supersample**2
        return colour.T.reshape(height, width, 3), depth.reshape(height, width)

    return jax.lax.map(frame, (K, camera_to_world, times))


def _pixel_grid(height: int, width: int, offset: Float[Array, "2"]) -> Float[Array, "2 P"]:
    """The point at `offset` (x, y in [0, 1]) of every pixel, row by row."""
    y, x = jnp.arange(height, dtype=jnp.float32) + offset[1], jnp.arange(width, dtype=jnp.float32) + offset[0]
    return jnp.stack([jnp.tile(x, height), jnp.repeat(y, width)])


def _rays(
    scene: Scene, K: Float[Array, "3 3"], camera_to_world: Float[Array, "4 4"], pixels: Float[Array, "2 P"]
) -> tuple[Float[Array, "3"], Float[Array, "3 P"]]:
    """Origin and directions in upright axes; a direction is one long along the camera's z: distance is depth."""
    y = (pixels[1] - K[1, 2]) / K[1, 1]
    x = (pixels[0] - K[0, 2] - K[0, 1] * y) / K[0, 0]
    to_upright = _dot(scene.upright, camera_to_world[:3, :3])
    direction = to_upright[:, :1] * x[None] + to_upright[:, 1:2] * y[None] + to_upright[:, 2:]
    return _dot(scene.upright, camera_to_world[:3, 3]), direction


def _dot(a: Array, b: Array) -> Array:
    """A matrix product in full float32 on every device."""
    return jnp.matmul(a, b, precision="highest")


def _nearest(
    scene: Scene, pose: Pose, focal: Float[Array, ""], origin: Float[Array, "3"], direction: Float[Array, "3 P"]
) -> tuple[Float[Array, " P"], Int[Array, " P"]]:
    """Distance and slot of the first thing each ray meets."""
    to_local = jnp.swapaxes(pose.rotation, 1, 2) / pose.half_size[:, :, None]
    o = _dot(to_local, (origin[None] - pose.centre)[:, :, None])  # [N, 3, 1]
    cards = jax.tree.map(lambda leaf: leaf[BILLBOARDS], scene.objects)
    # One mip level for the whole billboard, the one for its distance straight ahead, keeps the outline free of seams.
    reach = jnp.maximum(jnp.abs(o[BILLBOARDS, 2, 0]) * pose.half_size[BILLBOARDS, 2], NEAR)
    texels = SMALL / (2 * pose.half_size[BILLBOARDS, 0])
    level = jnp.round(jnp.clip(jnp.log2(texels * reach / focal), 0, 4)).astype(jnp.int32)
    base, size = level_table(cards.texture, level)

    def local(part: slice, direction: Array) -> tuple[list[Array], list[Array]]:
        matrix = to_local[part]
        x, y, z = direction[None, 0], direction[None, 1], direction[None, 2]
        d = [matrix[:, i, :1] * x + matrix[:, i, 1:2] * y + matrix[:, i, 2:] * z for i in range(3)]
        return [o[part, i] for i in range(3)], d

    def meet_cards(direction):
        o, d = local(BILLBOARDS, direction)
        t = -o[2] / _nonzero(d[2])
        cycle = pose.cycle[BILLBOARDS, None]
        x, y = _sway(o[0] + t * d[0], o[1] + t * d[1], cards.bend[:, None], cards.wave[:, None], cycle)
        inside = (jnp.abs(x) <= 1) & (jnp.abs(y) <= 1) & (t > NEAR)
        return (x + 1) / 2, (y + 1) / 2, jnp.where(inside, t, _MISS)

    def meet_all(direction, u, v, t):
        alpha = bilinear(scene.atlas, base[:, None], size[:, None], u, v, (24,))[0]
        distances = [
            _hit_squares(*local(slice(0, NUM_PLANES), direction)),
            jnp.where(alpha > 127.5, t, _MISS),
            _hit_balls(*local(BALLS, direction)),
            _hit_slabs(*local(BOXES, direction)),
            _hit_columns(*local(COLUMNS, direction)),
            _hit_dome(*local(slice(DOME, DOME + 1), direction)),
        ]
        distance = jnp.where(scene.objects.active[:, None], jnp.concatenate(distances), _MISS)
        return distance.min(0), distance.argmin(0).astype(jnp.int32)

    return _tiled(meet_all, direction, *_tiled(meet_cards, direction))


def _hit_squares(o: list[Array], d: list[Array]) -> Array:
    t = -o[2] / _nonzero(d[2])
    inside = (jnp.abs(o[0] + t * d[0]) <= 1) & (jnp.abs(o[1] + t * d[1]) <= 1) & (t > NEAR)
    return jnp.where(inside, t, _MISS)


def _sway(x: Array, y: Array, bend: Array, wave: Array, cycle: Array) -> tuple[Array, Array]:
    """Undoes a square's in-plane deformation: the foot (y = 1) stays, the top (y = -1) sways, ripples run along it."""
    rise = (1 - y) / 2
    return x - bend * jnp.sin(cycle) * rise**2 - wave * rise * jnp.sin(4 * y + cycle), y


def _hit_balls(o: list[Array], d: list[Array]) -> Array:
    a = d[0] ** 2 + d[1] ** 2 + d[2] ** 2
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    c = o[0] ** 2 + o[1] ** 2 + o[2] ** 2 - 1
    root = b * b - a * c
    t = (-b - jnp.sqrt(jnp.maximum(root, 0))) / a
    return jnp.where((root > 0) & (t > NEAR), t, _MISS)


def _hit_dome(o: list[Array], d: list[Array]) -> Array:
    a = d[0] ** 2 + d[1] ** 2 + d[2] ** 2
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    c = o[0] ** 2 + o[1] ** 2 + o[2] ** 2 - 1
    return (-b + jnp.sqrt(jnp.maximum(b * b - a * c, 0))) / a


def _slab(o: Array, d: Array) -> tuple[Array, Array]:
    """Where a ray enters and leaves |x| <= 1."""
    inverse = 1 / _nonzero(d)
    middle, half = -o * inverse, jnp.abs(inverse)
    return middle - half, middle + half


def _hit_slabs(o: list[Array], d: list[Array]) -> Array:
    spans = [_slab(o[i], d[i]) for i in range(3)]
    enter = functools.reduce(jnp.maximum, [span[0] for span in spans])
    leave = functools.reduce(jnp.minimum, [span[1] for span in spans])
    return jnp.where((enter < leave) & (enter > NEAR), enter, _MISS)


def _hit_columns(o: list[Array], d: list[Array]) -> Array:
    a = jnp.maximum(d[0] ** 2 + d[2] ** 2, 1e-12)
    b = o[0] * d[0] + o[2] * d[2]
    root = b * b - a * (o[0] ** 2 + o[2] ** 2 - 1)
    half = jnp.sqrt(jnp.maximum(root, 0)) / a
    below, above = _slab(o[1], d[1])
    enter, leave = jnp.maximum(-b / a - half, below), jnp.minimum(-b / a + half, above)
    return jnp.where((root > 0) & (enter < leave) & (enter > NEAR), enter, _MISS)


def _nonzero(x: Array) -> Array:
    return jnp.where(jnp.abs(x) < 1e-9, jnp.float32(1e-9), x)


def _shade(
    scene: Scene,
    pose: Pose,
    focal: Float[Array, ""],
    origin: Float[Array, "3"],
    direction: Float[Array, "3 P"],
    distance: Float[Array, " P"],
    index: Int[Array, " P"],
) -> Float[Array, "3 P"]:
    """Colours of the hits: texture, Lambert's law and soft contact shadows on the ground."""
    objects = scene.objects
    to_local = jnp.swapaxes(pose.rotation, 1, 2) / pose.half_size[:, :, None]
    shift = -_dot(to_local, pose.centre[:, :, None])[:, :, 0]
    columns = [
        to_local.reshape(-1, 9), shift, objects.tint, objects.repeat, objects.offset, pose.cycle[:, None],
        jnp.stack([objects.bend, objects.wave, objects.texture.astype(jnp.float32), _density(objects, pose)], -1),
    ]  # fmt: skip
    table = jnp.concatenate(columns, -1).T  # [24, N]

    def surface(direction, distance, index):
        row = table[:, index]  # [24, P]
        matrix, repeat, offset = row[:9].reshape(3, 3, -1), row[15:17], row[17:19]
        point = origin[:, None] + distance[None] * direction
        p = (matrix * point[None]).sum(1) + row[9:12]
        is_ball = ((index >= BALLS.start) & (index < BALLS.stop)) | (index >= DOME)
        is_box = (index >= BOXES.start) & (index < BOXES.stop)
        is_column = (index >= COLUMNS.start) & (index < COLUMNS.stop)
        normal = _normals(p, is_ball, is_box, is_column)
        normal = (matrix * normal[:, None]).sum(0)  # the inverse transpose of rotation times size, up to scale
        normal = normal * jax.lax.rsqrt((normal**2).sum(0) + 1e-20)[None]
        facing = (normal * direction).sum(0)
        lambert = jnp.maximum((normal * scene.light[:, None]).sum(0) * jnp.where(facing > 0, -1.0, 1.0), 0)
        # Texels between neighbouring pixels: distance / focal is a pixel's width on a surface that faces the camera.
        slope = jnp.clip(jnp.abs(facing) * jax.lax.rsqrt((direction**2).sum(0)), 0.02, 1.0)
        lod = jnp.log2(jnp.maximum(row[23] * distance / focal * jax.lax.rsqrt(slope), 1e-6))
        u, v = _surface(p, is_ball, is_box, is_column, row[19], row[20], row[21])
        u, v = u * repeat[0] + offset[0], v * repeat[1] + offset[1]
        shadow = jnp.where(index == GROUND, _contact(scene, pose, point), 1.0)
        lit = scene.ambient + (1 - scene.ambient) * lambert * shadow
        tint = row[12:15] * jnp.where(index == DOME, 1.0, lit)[None]
        return u, v, lod, row[22].astype(jnp.int32), tint

    def look_up(u, v, lod, texture, tint):
        return jnp.clip(trilinear(scene.atlas, texture, lod, u, v) * tint, 0, 1)

    return _tiled(look_up, *_tiled(surface, direction, distance, index))


def _tiled(function, *arrays):
    """Applies `function` to arrays [..., P], in a loop over a few tiles of P.

    On CPU a loop is the one border that XLA does not fuse across: without it each of the many users of a cheap-looking
    value (texture co-ordinates) computes it again, which took a third longer.
    """
    leaves, tree = jax.tree.flatten(arrays)
    count = leaves[0].shape[-1]
    tiles = next(n for n in (4, 3, 2, 1) if count % n == 0)
    if tiles == 1:
        return function(*arrays)
    split = [jnp.moveaxis(x.reshape(*x.shape[:-1], tiles, count // tiles), -2, 0) for x in leaves]
    done = jax.lax.map(lambda tile: function(*jax.tree.unflatten(tree, tile)), split)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], count), done)


def _normals(p: Array, is_ball: Array, is_box: Array, is_column: Array) -> Array:
    """Outward normals of the unit shapes, in local axes, [3, P]."""
    size = jnp.abs(p)
    largest = size.max(0)
    face = jnp.where(size >= largest[None], jnp.sign(p), 0.0)
    cap = size[1] > jnp.sqrt(p[0] ** 2 + p[2] ** 2)
    zero = jnp.zeros_like(p[0])
    tube = jnp.where(cap[None], jnp.stack([zero, jnp.sign(p[1]), zero]), jnp.stack([p[0], zero, p[2]]))
    square = jnp.stack([zero, zero, zero + 1])
    return jnp.where(is_ball[None], p, jnp.where(is_box[None], face, jnp.where(is_column[None], tube, square)))


def _surface(
    p: Array, is_ball: Array, is_box: Array, is_column: Array, cycle: Array, bend: Array, wave: Array
) -> tuple[Array, Array]:
    """Texture co-ordinates u, v in [0, 1]."""
    round_shape = is_ball | is_column
    turn = jnp.arctan2(p[0], -p[2]) / (2 * jnp.pi) + 0.5
    polar = jnp.arccos(jnp.clip(p[1], -0.99999, 0.99999)) / jnp.pi
    size = jnp.abs(p)
    on_x, on_y = (size[0] >= size[1]) & (size[0] >= size[2]), size[1] >= size[2]
    box_u = jnp.where(on_x, p[2], p[0])
    box_v = jnp.where(on_x, p[1], jnp.where(on_y, p[2], p[1]))
    flat_x, flat_y = _sway(p[0], p[1], bend, wave, cycle)
    u = jnp.where(round_shape, turn, (jnp.where(is_box, box_u, flat_x) + 1) / 2)
    v = jnp.where(is_ball, 1 - polar, (jnp.where(is_box, box_v, flat_y) + 1) / 2)
    return u, v


def _density(objects: Objects, pose: Pose) -> Float[Array, " N"]:
    """Texels a scene unit on each object's surface, the finer direction of the two: it sets the mip level."""
    x, y, z = pose.half_size[:, 0], pose.half_size[:, 1], pose.half_size[:, 2]
    slot = jnp.arange(NUM_OBJECTS)
    is_ball, is_box = (
        (slot >= BALLS.start) & (slot < BALLS.stop) | (slot >= DOME),
        (slot >= BOXES.start) & (slot < BOXES.stop),
    )
    is_round = is_ball | (slot >= COLUMNS.start)
    across = jnp.where(is_round, 2 * jnp.pi * x, jnp.where(is_box, 2 * jnp.minimum(x, z), 2 * x))
    along = jnp.where(is_ball, jnp.pi * y, jnp.where(is_box, 2 * jnp.minimum(y, z), 2 * y))
    size = jnp.where(objects.texture < NUM_LARGE, float(LARGE), float(SMALL))
    return size * jnp.maximum(objects.repeat[:, 0] / across, objects.repeat[:, 1] / along)


def _contact(scene: Scene, pose: Pose, point: Float[Array, "3 P"]) -> Float[Array, " P"]:
    """Light left by what stands on or floats over the ground: a soft blob under each thing, view-independent."""
    light = jnp.ones_like(point[0])
    bottom = pose.centre[:, 1] + pose.half_size[:, 1]
    ground = pose.centre[GROUND, 1]
    for slot in range(NUM_PLANES, DOME):
        radius = pose.half_size[slot, 0]
        height = jnp.maximum(ground - bottom[slot], 0) / radius
        near = ((point[0] - pose.centre[slot, 0]) ** 2 + 2 * (point[2] - pose.centre[slot, 2]) ** 2) / radius**2
        strength = jnp.where(scene.objects.active[slot], 0.75, 0.0) / (1 + height) ** 2
        light = light * (1 - strength / (1 + near**2))
    return light
