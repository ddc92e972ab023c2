"""Scores of many images and of videos: which pairs are compared, and how they are averaged.

The protocol of MEt3R:

* Images, views of one moment: all unordered pairs, and their mean.
* Videos of one scene, frame k of each showing one moment: the pairs of each frame as above, and the mean over all
  frames and pairs. Two videos give one pair a frame. Frames of different moments are never compared: things move.

A pair that shows nothing in common has no score and is left out of the mean; how many pairs were is for the caller to
say. MEt3R is symmetric, so that the order of images is of no account.
"""

import collections
import functools
import itertools
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from reangle_jax.arrays import Picture, Pictures
from reangle_jax.scoring.image import known
from reangle_jax.scoring.met3r import Described, Met3r, OneWay, Score, summarise


class PairScore(NamedTuple):
    """One pair of images."""

    first: int  # index of an image
    second: int  # index of a later one
    met3r: float | None  # 0 (consistent) to 2; None where nothing is in common
    overlap: float  # share of pixels that both are seen in
    # Renderings in the first image's camera and in the second's, unbatched; None unless asked for.
    ways: tuple[OneWay, OneWay] | None = None


def score_views(
    metric: Met3r,
    states: tuple[Any, Any],
    images: Pictures,
    *,
    pairs: Iterable[tuple[int, int]] | None = None,
    keep_ways: bool = False,
) -> Iterator[PairScore]:
    """MEt3R of pairs of images of one size: all, in the order (0, 1), (0, 2), ..., (1, 2), ..., or some.

    Each image is described once, and its description is kept: 100 MB at 256x256 with 384 channels. Sides are multiples
    of DUSt3R's patch size.
    """
    described = [describe(metric, states, jnp.asarray(image)) for image in images]
    for i, j in itertools.combinations(range(len(images)), 2) if pairs is None else pairs:
        score, there, back = _compare(metric, states, described[i], described[j], keep_ways)
        ways = (there, back) if keep_ways else None
        yield PairScore(i, j, known(float(score.met3r[0])), float(score.overlap[0]), ways)


def score_sequence(
    metric: Met3r, states: tuple[Any, Any], images: Iterable[Picture], step: int = 1
) -> Iterator[PairScore]:
    """MEt3R of each image and the one so many before it, images of one size; step + 1 descriptions are kept."""
    before: collections.deque[Described] = collections.deque(maxlen=step)
    for index, image in enumerate(images):
        described = describe(metric, states, jnp.asarray(image))
        if len(before) == step:
            score = _compare(metric, states, before[0], described, False)[0]
            yield PairScore(index - step, index, known(float(score.met3r[0])), float(score.overlap[0]))
        before.append(described)


def mean_score(scores: Iterable[PairScore]) -> float | None:
    """Mean over the pairs that have a score; None if none has."""
    known = [score.met3r for score in scores if score.met3r is not None]
    return statistics.fmean(known) if known else None


def temporal_flickering(frames: Iterable[Picture]) -> float:
    """VBench's temporal flickering (Huang et al., 2023, arXiv 2311.17982): 1 - mean absolute change / 255.

    The change is that of each pixel and channel from one frame to the next; 1 means that nothing changes. Motion counts
    as flicker too, so that figures of different clips compare only where their motion is alike.

    Raises:
        ValueError: fewer than two frames.
    """
    changes = [float(np.abs(b.astype(np.int16) - a.astype(np.int16)).mean()) for a, b in itertools.pairwise(frames)]
    if not changes:
        raise ValueError("temporal flicker needs two frames or more")
    return 1.0 - statistics.fmean(changes) / 255.0


# The networks are arguments, so that every pair of every call shares one compiled program.
@functools.partial(jax.jit, static_argnums=0)
def describe(metric: Met3r, states: tuple[Any, Any], image: UInt8[Array, "H W 3"]) -> Described:
    """What is kept of an image that is compared with others."""
    return metric.describe(states, image[None].astype(jnp.float32) / 255.0)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _compare(
    metric: Met3r, states: tuple[Any, Any], first: Described, second: Described, keep_ways: bool
) -> tuple[Score, OneWay | None, OneWay | None]:
    there, back = metric.both_ways(states, first, second)
    score = summarise(there, back)
    if not keep_ways:
        return score, None, None
    return score, *(jax.tree.map(lambda x: x[0], way) for way in (there, back))
