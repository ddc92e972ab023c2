"""Procedural 4D scenes: random worlds of textured, moving, deforming things, their captions and cameras.

The world is the source camera's at frame 0 (OpenCV axes): things lie at depths of 2 to 12 scene units, the subject
near 4. The slots of a scene are in `scenes_objects`, textures in `scenes_textures`, rendering in `scenes_render`; this
file decides what there is to see.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from training.pool import ImagePool
from training.scenes_objects import (
    BALLS,
    BILLBOARDS,
    BOXES,
    COLUMNS,
    DOME,
    DOME_RADIUS,
    GROUND,
    NUM_LARGE,
    NUM_OBJECTS,
    NUM_SMALL,
    SIDE,
    WALL,
    Objects,
    Scene,
)
from training.scenes_render import render
from training.scenes_textures import LARGE, SMALL, pack_atlas, random_sky, random_texture, value_noise

__all__ = ["CameraPath", "Objects", "Scene", "random_scene", "render", "source_cameras"]

# Small textures: one for the sky, four that solids share, and one cut-out for each billboard.
_SKY_TEXTURE, _SHARED, _CUTOUTS = NUM_LARGE, NUM_LARGE + 1, NUM_LARGE + NUM_SMALL - 4


class CameraPath(NamedTuple):
    """Intrinsics in pixels and camera-to-world matrices, one of each a frame."""

    K: Float[np.ndarray, "T 3 3"]
    camera_to_world: Float[np.ndarray, "T 4 4"]


def random_scene(rng: np.random.Generator, pool: ImagePool | None = None, *, close: bool = False) -> tuple[Scene, str]:
    """A random scene and a short sentence that says what is seen.

    Args:
        rng: decides everything; equal generators and pools give equal scenes.
        pool: photographs and cut-outs; without it every texture is noise or a pattern and billboards are blobs.
        close: a room with high walls near by, and all things in one heap in its middle.
    """
    builder = _Builder(rng, pool, close)
    ground_word, wall_word = builder.room()
    phrases = builder.things()
    arrays = {name: jnp.asarray(value) for name, value in builder.values.items()}
    pitch = rng.uniform(0.04, 0.26)
    cosine, sine = np.cos(pitch), np.sin(pitch)
    upright = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]], np.float32)
    light = np.array([rng.uniform(-0.8, 0.8), -1.0, rng.uniform(-1.3, -0.5)])
    scene = Scene(
        objects=Objects(**arrays),
        atlas=jnp.asarray(pack_atlas(builder.large, builder.small)),
        upright=jnp.asarray(upright),
        light=jnp.asarray(light / np.linalg.norm(light), jnp.float32),
        ambient=jnp.float32(rng.uniform(0.45, 0.75)),
    )
    return scene, _sentence(phrases, ground_word, wall_word)


def source_cameras(
    rng: np.random.Generator, num_frames: int, height: int, width: int, *, handheld: bool = False
) -> CameraPath:
    """The source camera: the identity throughout, or (handheld) drifting smoothly away from it by a few per cent.

    The focal length is 0.8 to 1.25 times the width, the principal point the middle of the picture.
    """
    focal = width * rng.uniform(0.8, 1.25)
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1))
    if handheld:
        time = np.linspace(0, 1, num_frames)[:, None]
        # A drift and two sways each for three angles (radians) and three shifts (scene units); zero at frame 0.
        size = np.array([0.02, 0.02, 0.008, 0.08, 0.05, 0.05])
        path = rng.normal(size=6) * time
        for rate in (1.0, 2.3):
            path = path + 0.5 / rate * rng.normal(size=6) * np.sin(2 * np.pi * rate * time)
        for pose, (pitch, yaw, roll, *shift) in zip(poses, path * size, strict=True):
            pose[:3, :3] = _rotation(pitch, yaw, roll)
            pose[:3, 3] = shift
    return CameraPath(np.tile(K, (num_frames, 1, 1)), poses)


def _rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    cx, cy, cz, sx, sy, sz = (f(angle) for f in (np.cos, np.sin) for angle in (pitch, yaw, roll))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


class _Builder:
    """Fills the slots of one scene."""

    def __init__(self, rng: np.random.Generator, pool: ImagePool | None, close: bool = False):
        self.rng, self.pool, self.close = rng, pool, close
        n = NUM_OBJECTS
        vector, scalar = (n, 3), (n,)
        zeros = {"velocity": vector, "swing": vector, "position": vector, "offset": (n, 2)}
        zeros |= dict.fromkeys(("angle", "spin", "rate", "phase", "hop", "squash", "bend", "wave", "anchored"), scalar)
        ones = {"half_size": vector, "tint": vector, "repeat": (n, 2)}
        self.values: dict[str, np.ndarray] = {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
        self.values |= {name: np.ones(shape, np.float32) for name, shape in ones.items()}
        self.values["axis"] = np.tile(np.array([0, 1, 0], np.float32), (n, 1))
        self.values["active"] = np.zeros(n, bool)
        self.values["texture"] = np.zeros(n, np.int32)
        self.large: list[np.ndarray] = []
        self.small: list[np.ndarray] = []
        self.ground = float(rng.uniform(0.95, 1.5))
        self.taken: list[tuple[float, float, float]] = []  # x, z, radius on the ground

    def put(self, slot: int, **values) -> None:
        """Activates a slot and sets the given fields of it."""
        self.values["active"][slot] = True
        for name, value in values.items():
            self.values[name][slot] = value

    def room(self) -> tuple[str, str]:
        """Ground, walls and sky; returns the words for ground and wall."""
        rng, pool, ground = self.rng, self.pool, self.ground
        floor, ground_word = random_texture(rng, LARGE, pool, 0.4)
        back, wall_word = random_texture(rng, LARGE, pool, 0.7)
        photo_wall = not wall_word
        side, _ = random_texture(rng, LARGE, pool, 0.4)
        self.large = [floor, back, side]
        self.small = [random_sky(rng, SMALL)]
        words = []
        for _ in range(_CUTOUTS - _SHARED):
            texture, word = random_texture(rng, SMALL, pool, 0.3)
            self.small.append(texture)
            words.append(word)
        self.words = words
        tint = rng.uniform(0.85, 1.1)
        metres = rng.uniform(1.5, 5.0)  # one repeat of the ground's texture
        extent = 64.0
        self.put(
            GROUND,
            position=(rng.uniform(-2, 2), ground, rng.uniform(-2, 2)),
            half_size=(extent, extent, 1),
            axis=(1, 0, 0),
            angle=np.pi / 2,
            texture=0,
            repeat=2 * extent / metres,
            tint=tint,
        )
        distance = rng.uniform(4.0, 7.5) if self.close else rng.uniform(6.0, 12.0)
        aspect = 1.5
        if self.close or rng.random() < 0.9:
            # A photograph once across what the camera sees and a little more; patterns repeat at a size of their own.
            half = distance * rng.uniform(0.7, 1.1)
            high = half / aspect * rng.uniform(0.8, 1.2) if rng.random() < 0.75 else rng.uniform(0.8, 1.6)
            high = max(high, 1.6) if self.close else high
            wide = half * rng.choice([1.0, 3.0], p=[0.3, 0.7])
            period = 2 * half if photo_wall else rng.uniform(2.0, 6.0)
            self.put(
                WALL,
                position=(rng.uniform(-0.5, 0.5), ground - high + 0.01, distance),
                half_size=(wide, high, 1),
                angle=rng.normal() * 0.12,
                texture=1,
                repeat=(2 * wide / period, 1.0 if photo_wall else 2 * high / period),
                offset=(0.5 * (1 - 2 * wide / period), 0.0) if photo_wall else rng.uniform(size=2),
                tint=rng.uniform(1.0, 1.25),
            )
        else:
            wall_word = "open"
        if rng.random() < (0.6 if self.close else 0.3):
            sign, high = rng.choice([-1, 1]), rng.uniform(0.8, 3.0)
            near, far = rng.uniform(1.5, 4.0), distance
            self.put(
                SIDE,
                position=(sign * rng.uniform(2.4, 4.0), ground - high + 0.01, (near + far) / 2),
                half_size=((far - near) / 2, high, 1),
                angle=np.pi / 2 + rng.normal() * 0.1,
                texture=2,
                repeat=((far - near) / 4, high / 2),
                tint=rng.uniform(0.9, 1.2),
            )
        self.put(DOME, half_size=DOME_RADIUS, texture=_SKY_TEXTURE, repeat=(2, 1), offset=rng.uniform(size=1) * [1, 0])
        return ground_word, wall_word

    def things(self) -> list[str]:
        """Puts things in, the subject first; returns a phrase for each."""
        rng = self.rng
        kinds = rng.permutation(["ball", "box", "billboard", "billboard"])
        free = {"ball": list(range(BALLS.start, BALLS.stop)), "box": list(range(BOXES.start, BOXES.stop))}
        free |= {"billboard": list(range(BILLBOARDS.start, BILLBOARDS.stop))}
        free |= {"column": list(range(COLUMNS.start, COLUMNS.stop))}
        makers = {"ball": self.ball, "box": self.box, "billboard": self.billboard, "column": self.column}
        self.cutouts()
        phrases = []
        if self.close:
            depth = rng.uniform(2.3, 3.4)
            self.heap = (rng.normal() * 0.15 * depth, depth)
        for turn in range(int(rng.integers(6, 12) if self.close else rng.integers(3, 9))):
            kind = str(kinds[turn]) if turn < 2 else str(rng.choice(["ball", "box", "billboard", "column"]))
            if not free[kind]:
                continue
            place = self.place(near=turn == 0)
            phrases.append(makers[kind](free[kind].pop(0), *place))
        if rng.random() < 0.4:  # a near occluder at one side of the picture
            depth = rng.uniform(1.9, 2.5)
            x = rng.choice([-1, 1]) * depth * rng.uniform(0.2, 0.42)
            kind = "billboard" if free["billboard"] and rng.random() < 0.4 else "column"
            if free[kind]:
                phrases.append("near " + makers[kind](free[kind].pop(0), x, depth, still=True))
        return phrases

    def place(self, *, near: bool) -> tuple[float, float]:
        """A free spot on the ground: x and depth; the subject's is near depth 4."""
        if self.close:
            return self.heap[0] + self.rng.normal() * 0.5, max(1.8, self.heap[1] + self.rng.normal() * 0.35)
        spot = (0.0, 4.0)
        for _ in range(20):
            depth = self.rng.uniform(3.5, 4.6) if near else self.rng.uniform(2.9, 7.5)
            spot = (self.rng.uniform(-1, 1) * (0.2 if near else 0.45) * depth, depth)
            if all(np.hypot(spot[0] - x, spot[1] - z) > radius + 0.5 for x, z, radius in self.taken):
                break
        self.taken.append((*spot, 0.4))
        return spot

    def motion(self) -> np.ndarray:
        """A velocity along the ground, units a clip; mostly sideways."""
        angle = self.rng.normal() * 0.5 + (np.pi if self.rng.random() < 0.5 else 0)
        return self.rng.uniform(0.3, 1.6) * np.array([np.cos(angle), 0, np.sin(angle)])

    def look(self) -> tuple[dict, str]:
        """Fields and words of one of the shared textures."""
        choice = int(self.rng.integers(len(self.words)))
        photo = not self.words[choice]
        tint = self.rng.uniform(0.85, 1.25) * (1 + self.rng.uniform(-0.15, 0.15, 3) * photo)
        repeat = self.rng.uniform(0.5, 1.5) * np.ones(2)
        fields = {"texture": _SHARED + choice, "tint": tint, "repeat": repeat, "offset": self.rng.uniform(size=2)}
        return fields, self.words[choice] or "painted"

    def ball(self, slot: int, x: float, depth: float) -> str:
        """A ball that rolls or bounces, or an egg that floats and pulses."""
        rng = self.rng
        fields, word = self.look()
        fields["repeat"] = np.array([2.0, 1.0]) * rng.integers(1, 3)
        radius = rng.uniform(0.25, 0.6)
        action = rng.choice(["rolls", "bounces", "floats"])
        common = {"rate": rng.uniform(0.5, 1.6), "phase": rng.uniform(), **fields}
        if action == "rolls":
            velocity = self.motion()
            speed = np.linalg.norm(velocity)
            axis = np.array([-velocity[2], 0, velocity[0]]) / speed
            start = (x - velocity[0] / 2, self.ground, depth - velocity[2] / 2)
            turning = {"axis": axis, "spin": speed / radius, "angle": rng.uniform(0, 6)}
            self.put(slot, position=start, half_size=radius, anchored=1, velocity=velocity, **turning, **common)
        elif action == "bounces":
            hop = {"hop": rng.uniform(0.3, 1.0), "squash": rng.uniform(0, 0.12), "velocity": self.motion() * 0.5}
            self.put(slot, position=(x, self.ground, depth), half_size=radius, anchored=1, **hop, **common)
        else:
            sizes = radius * rng.uniform(0.7, 1.4, 3)
            drift = {"swing": rng.uniform(-0.4, 0.4, 3), "squash": rng.uniform(0.1, 0.35)}
            height = self.ground - rng.uniform(0.8, 1.7)
            turning = {"spin": rng.uniform(-2, 2), "angle": rng.uniform(0, 6)}
            self.put(slot, position=(x, height, depth), half_size=sizes, **drift, **turning, **common)
        return f"{word} {'balloon' if action == 'floats' else 'ball'} {action}"

    def box(self, slot: int, x: float, depth: float) -> str:
        """A box that turns, slides, stands or tumbles in the air."""
        rng = self.rng
        fields, word = self.look()
        sizes = rng.uniform(0.2, 0.55, 3)
        action = rng.choice(["turns", "slides", "stands", "tumbles"], p=[0.35, 0.25, 0.15, 0.25])
        common = {"half_size": sizes, "angle": rng.uniform(0, 6), **fields}
        position = np.array([x, self.ground, depth])
        if action == "tumbles":
            axis = rng.normal(size=3)
            position[1] -= rng.uniform(0.7, 1.6)
            moving = {
                "axis": axis / np.linalg.norm(axis),
                "spin": rng.uniform(1, 4),
                "swing": rng.uniform(-0.4, 0.4, 3),
            }
            self.put(slot, position=position, rate=rng.uniform(0.4, 1.2), phase=rng.uniform(), **moving, **common)
        else:
            moving = {"spin": rng.choice([-1, 1]) * rng.uniform(0.7, 3.0)} if action == "turns" else {}
            if action == "slides":
                moving = {"velocity": self.motion(), "spin": rng.normal() * 0.4}
            self.put(slot, position=position, anchored=1, **moving, **common)
        return f"{word} box {action}"

    def column(self, slot: int, x: float, depth: float, *, still: bool = True) -> str:
        """An upright column, tall or a stump."""
        rng = self.rng
        fields, word = self.look()
        radius = rng.uniform(0.08, 0.26)
        height = rng.uniform(1.5, 3.0) if rng.random() < 0.6 else rng.uniform(0.25, 0.7)
        fields["repeat"] = np.array([2.0, max(1.0, np.round(height / radius / 3))])
        sizes = (radius, height, radius)
        self.put(slot, position=(x, self.ground, depth), half_size=sizes, anchored=1, angle=rng.uniform(0, 6), **fields)
        return f"{word} {'column' if height > 1 else 'stump'}"

    def cutouts(self) -> None:
        """One cut-out a billboard: a photographic stamp, or a blob of some texture."""
        self.names = []
        for _ in range(BILLBOARDS.stop - BILLBOARDS.start):
            if self.pool is not None and len(self.pool.stamps):
                choice = int(self.rng.integers(len(self.pool.stamps)))
                stamp, name = self.pool.stamps[choice], self.pool.stamp_names[choice]
                self.small.append(np.ascontiguousarray(stamp[:, ::-1] if self.rng.random() < 0.5 else stamp))
            else:
                texture, word = random_texture(self.rng, SMALL, None, 0.0)
                y, x = np.mgrid[0:SMALL, 0:SMALL] / SMALL - 0.5
                outline = np.hypot(x, y) < 0.25 + 0.2 * (value_noise(self.rng, SMALL, 5) - 0.5) * 2
                texture[..., 3] = 255 * outline
                self.small.append(texture)
                name = f"{word} bush"
            self.names.append(name)

    def billboard(self, slot: int, x: float, depth: float, *, still: bool = False) -> str:
        """A flat cut-out that stands, sways, walks or floats."""
        rng = self.rng
        size = rng.uniform(0.4, 0.9) * (0.8 if still else 1.0)
        action = "sways" if still else rng.choice(["sways", "walks", "floats"], p=[0.4, 0.4, 0.2])
        number = slot - BILLBOARDS.start
        # The picture's transparent border keeps the foot of the cut-out off the ground: sink it by that much.
        alpha = self.small[_CUTOUTS - NUM_LARGE + number][..., 3]
        rows = np.where(alpha.max(1) > 127)[0]
        sink = 2 * size * (1 - (rows[-1] + 1) / SMALL)
        position = np.array([x, self.ground + sink, depth])
        common = {"half_size": (size, size, 1), "texture": _CUTOUTS + number, "anchored": 1, "phase": rng.uniform()}
        common |= {"angle": rng.normal() * 0.25, "tint": rng.uniform(1.0, 1.2)}
        common |= {"bend": rng.uniform(-0.25, 0.25), "wave": rng.uniform(0, 0.07), "squash": rng.uniform(0, 0.06)}
        if action == "walks":
            velocity = self.motion()
            position -= velocity / 2
            walk = {"velocity": velocity, "hop": rng.uniform(0.02, 0.12), "rate": rng.uniform(1.0, 2.5)}
            self.put(slot, position=position, **walk, **common)
        elif action == "floats":
            position[1] -= rng.uniform(0.4, 1.2)
            swing = {"swing": rng.uniform(-0.5, 0.5, 3), "rate": rng.uniform(0.4, 1.1), "spin": rng.normal() * 0.3}
            self.put(slot, position=position, **swing, **common)
        else:
            self.put(slot, position=position, rate=rng.uniform(0.6, 1.6), **common)
        return f"{self.names[number]} {action}"


def _a(phrase: str) -> str:
    return f"{'an' if phrase[:1] in set('aeiou') else 'a'} {phrase}"


def _sentence(phrases: list[str], ground_word: str, wall_word: str) -> str:
    """At most four things and the place, as one lower-case sentence without a full stop."""
    seen = list(dict.fromkeys(phrases))
    near = [phrase for phrase in seen if phrase.startswith("near ")]
    things = [_a(phrase) for phrase in seen if phrase not in near][:4]
    text = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    floor = f"{_a(ground_word)} floor" if ground_word else "textured ground"
    wall = {"": "in front of a photograph", "open": "under an open sky"}.get(wall_word, f"by {_a(wall_word)} wall")
    behind = f", behind {_a(near[0].removeprefix('near '))}" if near else ""
    return f"{text} on {floor} {wall}{behind}"
