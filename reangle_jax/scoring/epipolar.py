"""Do images agree with the cameras that they are meant to be seen by? SED and TSED of matched points.

The symmetric epipolar distance (SED) and its thresholded form (TSED) of Yu et al., 2023, arXiv 2304.10700: points that
look alike in two images (SIFT; Lowe, 2004) should lie on each other's epipolar lines, which the cameras alone decide.

The protocol:

* The pairs of a video are its neighbours (0, 1), (1, 2), ..., as published; for views of one moment give all unordered
  pairs.
* A pair's SED is the median over its matches of the mean of the two distances, in pixels.
* A pair is consistent if it has at least `MIN_MATCHES` matches and an SED below `MAX_ERROR`; TSED is the share of
  consistent pairs. A pair with too few matches counts as inconsistent, as published.
* The SED of many images is the mean over the pairs with enough matches.

Cameras at one place have no epipolar lines: such a pair has no SED and is left out of both.
"""

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from reangle_jax.arrays import Pictures

MIN_MATCHES, MAX_ERROR = 10, 2.0  # T_matches, and T_error in pixels
RATIO = 0.8  # Lowe's: a match is kept if it is nearer than this times the second nearest
# Baselines shorter than this share of the cameras' distances from the origin (and of a unit) are round-off.
_NO_BASELINE = 1e-6


class PairSed(NamedTuple):
    """How one pair of images agrees with its cameras."""

    first: int  # index of an image
    second: int  # index of another
    matches: int  # how many points were matched
    sed: float | None  # median symmetric epipolar distance in pixels; None without a match or without a baseline
    has_baseline: bool  # whether the cameras stand at two places; without one the pair says nothing


class Tsed(NamedTuple):
    """How many images agree with their cameras.

    ``tsed`` is the share of consistent pairs among those with a baseline, ``sed`` the mean over the pairs with enough
    matches, pixels; None if there is none.
    """

    tsed: float | None
    sed: float | None
    pairs: tuple[PairSed, ...]


def tsed(
    images: Pictures,
    K: Float[np.ndarray, "N 3 3"],
    camera_to_world: Float[np.ndarray, "N 4 4"],
    pairs: Sequence[tuple[int, int]] | None = None,
    *,
    min_matches: int = MIN_MATCHES,
    max_error: float = MAX_ERROR,
    ratio: float = RATIO,
) -> Tsed:
    """TSED and SED of RGB images under known cameras (see `geometry.cameras` for the conventions).

    The pairs are each image and the next by default, as published; ``ratio`` is Lowe's. Errors are in pixels of the
    images as given: the published figures are of 256x256.

    Raises:
        ValueError: not one camera an image, or fewer than two images.
    """
    K, poses = np.asarray(K, np.float64), np.asarray(camera_to_world, np.float64)
    if not len(images) == len(K) == len(poses) or len(images) < 2:
        raise ValueError(
            f"{len(images)} images, {len(K)} K, {len(poses)} camera_to_world: need two or more of each, of one number"
        )
    pairs = list(itertools.pairwise(range(len(images)))) if pairs is None else pairs
    found = {index: keypoints(images[index]) for index in sorted({i for pair in pairs for i in pair})}
    results = []
    for i, j in pairs:
        points1, points2 = match(found[i], found[j], ratio=ratio)
        matrix = fundamental(K[i], poses[i], K[j], poses[j])
        distances = None if matrix is None else epipolar_distance(points1, points2, matrix)
        sed = float(np.median(distances)) if distances is not None and len(distances) else None
        results.append(PairSed(i, j, len(points1), sed, matrix is not None))
    valid = [pair for pair in results if pair.has_baseline]
    enough = [pair.sed for pair in valid if pair.sed is not None and pair.matches >= min_matches]
    share = sum(sed < max_error for sed in enough) / len(valid) if valid else None
    return Tsed(share, statistics.fmean(enough) if enough else None, tuple(results))


class Keypoints(NamedTuple):
    """SIFT keypoints of an image: places (x, y) in pixels, whose centres are at +0.5, and their descriptors."""

    places: Float[np.ndarray, "N 2"]
    descriptors: Float[np.ndarray, "N 128"]


def keypoints(image: UInt8[np.ndarray, "H W 3"]) -> Keypoints:
    """Finds an RGB image's keypoints."""
    # Without precise upscaling every keypoint is off by a quarter of a pixel.
    sift = cv2.SIFT.create(enable_precise_upscale=True)
    found, descriptors = sift.detectAndCompute(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), None)
    if descriptors is None or not len(found):
        return Keypoints(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    # OpenCV's pixel centres lie at whole numbers.
    return Keypoints(np.array([point.pt for point in found], np.float64) + 0.5, np.asarray(descriptors))


def match(
    first: Keypoints, second: Keypoints, *, ratio: float = RATIO
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"]]:
    """Places of points that look alike: each other's nearest, and clearly nearer than the second nearest."""
    nobody = np.zeros((0, 2))
    if min(len(first.places), len(second.places)) < 2:
        return nobody, nobody
    there, back = (_best(a.descriptors, b.descriptors, ratio) for a, b in ((first, second), (second, first)))
    chosen = sorted({(i, j) for i, j in there.items() if back.get(j) == i})
    # One point found with two orientations gives its match twice.
    rows = np.array([[*first.places[i], *second.places[j]] for i, j in chosen]).reshape(-1, 4)
    rows = np.unique(rows, axis=0)
    return rows[:, :2], rows[:, 2:]


def _best(queries: np.ndarray, among: np.ndarray, ratio: float) -> dict[int, int]:
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(queries, among, k=2)
    return {near.queryIdx: near.trainIdx for near, second in candidates if near.distance < ratio * second.distance}


def fundamental(
    K1: Float[np.ndarray, "3 3"],
    camera_to_world1: Float[np.ndarray, "4 4"],
    K2: Float[np.ndarray, "3 3"],
    camera_to_world2: Float[np.ndarray, "4 4"],
) -> Float[np.ndarray, "3 3"] | None:
    """The matrix F with ``x2 F x1 = 0`` for both images (x, y, 1) of one point; None for cameras at one place."""
    relative = np.linalg.inv(camera_to_world2) @ camera_to_world1
    rotation, (x, y, z) = relative[:3, :3], relative[:3, 3]
    scale = 1.0 + max(np.linalg.norm(pose[:3, 3]) for pose in (camera_to_world1, camera_to_world2))
    if np.linalg.norm(relative[:3, 3]) <= _NO_BASELINE * scale:
        return None
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.linalg.inv(K2).T @ cross @ rotation @ np.linalg.inv(K1)


def epipolar_distance(
    points1: Float[np.ndarray, "N 2"], points2: Float[np.ndarray, "N 2"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, " N"]:
    """Mean of each match's two distances from its epipolar lines, pixels."""
    ones = np.ones((len(points1), 1))
    homogeneous1, homogeneous2 = (np.concatenate([points, ones], axis=1) for points in (points1, points2))
    lines2, lines1 = homogeneous1 @ matrix.T, homogeneous2 @ matrix
    error = np.abs(np.sum(homogeneous2 * lines2, axis=1))
    # A point on the epipole has no line: its distance from it is 0, and so is the error.
    lengths = [np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12) for lines in (lines1, lines2)]
    return 0.5 * (error / lengths[0] + error / lengths[1])
