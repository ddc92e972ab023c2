"""Scenes whose truth is known, for `benchmarks.stochastic_control`, and what paintings of them are worth."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from reangle_jax.errors import InputError
from reangle_jax.geometry.splat import splat
from reangle_jax.scoring import epipolar
from training.views import Views, load_views

TARGETS = 2
HOLES = (0.04, 0.6)  # of each painted view: fewer ask for nothing, more show nothing


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene's pictures in the order in which they are painted, the input's first.

    Attributes:
        number: among the stored ones.
        truth: of all cameras.
        depth: along each camera's z axis.
        warps: of the input to the others, black in the holes.
        visible: where the warps show something.
        K: all cameras' matrix.
        camera_to_world: the cameras'.
    """

    number: int
    truth: UInt8[np.ndarray, "V H W 3"]
    depth: Float[np.ndarray, "V H W"]
    warps: UInt8[np.ndarray, "T H W 3"]
    visible: Bool[np.ndarray, "T H W"]
    K: Float[np.ndarray, "3 3"]
    camera_to_world: Float[np.ndarray, "V 4 4"]


@jax.jit
def _warp(image: Array, depth: Array, K: Array, motion: Array) -> tuple[Array, Array, Array]:
    result = splat(image.astype(jnp.float32), depth, K, K, motion)
    return jnp.round(result.image).astype(jnp.uint8), result.visible, result.depth


def warp(image: np.ndarray, views: Any, source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A camera's picture as another sees it by the true depth: RGB, where it is visible, and its depth there."""
    motion = np.linalg.inv(views.camera_to_world[target]) @ views.camera_to_world[source]
    depth = views.depth[source].astype(np.float32)
    return tuple(np.asarray(x) for x in _warp(image, depth, views.K, motion.astype(np.float32)))  # pyright: ignore


def scene_of(number: int, views: Views) -> Scene | None:
    """A scene with two targets whose warps have holes, as many as they should; None if it has no two."""
    found = []
    for target in range(1, len(views.images)):
        shown, visible, _ = warp(views.images[0], views, 0, target)
        if HOLES[0] < 1 - visible.mean() < HOLES[1]:
            found.append((-visible.mean(), target, np.where(visible[..., None], shown, np.uint8(0)), visible))
    if len(found) < TARGETS:
        return None
    chosen = sorted(found[:TARGETS], key=lambda item: item[0])
    order = [0, *(item[1] for item in chosen)]
    return Scene(
        number,
        views.images[order],
        views.depth[order].astype(np.float32),
        np.stack([item[2] for item in chosen]),
        np.stack([item[3] for item in chosen]),
        views.K,
        views.camera_to_world[order],
    )


def load_scenes(folder: str, count: int) -> list[Scene]:
    """The first scenes of a folder that serve.

    Raises:
        InputError: there are fewer.
    """
    found: list[Scene] = []
    for number, views in enumerate(load_views(folder)):
        scene = scene_of(number, views)
        if scene is not None:
            found.append(scene)
        if len(found) == count:
            return found
    raise InputError(f"--views: {folder} has {len(found)} scenes that serve, not {count}: ask for fewer")


def epipolar_figures(scene: Scene, pictures: list[np.ndarray]) -> dict[str, float | None]:
    """SED and TSED of all pairs, the pictures enlarged to the published size, a shorter side of 256 pixels."""
    height, width = pictures[0].shape[:2]
    scale = 256 / min(height, width)
    size = round(width * scale), round(height * scale)
    large = np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC) for picture in pictures])
    K = np.tile(np.diag([scale, scale, 1.0]) @ scene.K, (len(pictures), 1, 1))
    found = epipolar.tsed(large, K, scene.camera_to_world, [*itertools.combinations(range(len(pictures)), 2)])
    return {"sed": found.sed, "tsed": found.tsed}


def psnr(squares: np.ndarray) -> float:
    """Of squared errors of values 0 to 1."""
    return float(-10 * np.log10(max(float(squares.mean()), 1e-6)))


def step(image: UInt8[np.ndarray, "H W 3"], visible: Bool[np.ndarray, "H W"]) -> float:
    """Mean difference of neighbours of which one is known and one is not."""
    values, found = image.astype(np.float32), []
    for axis in (0, 1):
        edges = np.diff(visible.astype(np.int8), axis=axis) != 0
        found.append(np.abs(np.diff(values, axis=axis)).mean(-1)[edges])
    return float(np.concatenate(found).mean())


def detail(scene: Scene, pasted: list[np.ndarray]) -> float | None:
    """See ``detail`` at the top; None where holes have fewer than 50 pixels off their edges."""
    inside = [cv2.erode((~visible).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for visible in scene.visible]
    if sum(found.sum() for found in inside) < 50:
        return None

    def mean(images: Sequence[np.ndarray]) -> float:
        bent = [np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F)) for image in images]
        return float(np.concatenate([b[found] for b, found in zip(bent, inside, strict=True)]).mean())

    return mean(pasted) / mean([*scene.truth[1:]])


def agreement_of_holes(scene: Scene, pasted: list[np.ndarray]) -> float | None:
    """See ``agree`` at the top; None where fewer than 50 pixels are made up twice."""
    there, visible, depth = warp(pasted[0], scene, 1, 2)
    made, _, _ = warp(np.repeat(255 * (~scene.visible[0])[..., None].astype(np.uint8), 3, -1), scene, 1, 2)
    near = np.abs(depth - scene.depth[2]) < 0.03 * scene.depth[2]  # the same surface, not one before it
    twice = visible & near & (made[..., 0] > 250) & ~scene.visible[1]
    if twice.sum() < 50:
        return None
    return psnr(np.square((there.astype(np.float32) - pasted[1])[twice] / 255))
