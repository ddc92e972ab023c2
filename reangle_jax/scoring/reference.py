"""Likeness of pictures and videos to a reference, pixel by pixel: PSNR, SSIM and, with its weights, LPIPS.

Unlike MEt3R, these ask for the same view of the same moment.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from reangle_jax.arrays import Picture
from reangle_jax.errors import TooSmallError
from reangle_jax.scoring.image import known, psnr, ssim
from reangle_jax.scoring.inputs import Note, like
from reangle_jax.scoring.perceptual import Measure


class Likeness(NamedTuple):
    """What two pictures have in common: PSNR in dB, infinite for equal ones; SSIM, at most 1; LPIPS, 0 for equal ones.

    SSIM and LPIPS are None where a side is too short for them, LPIPS without its network.
    """

    psnr: float
    ssim: float | None
    lpips: float | None


def likeness(picture: Picture, reference: Picture, lpips: Measure | None = None) -> Likeness:
    """Compares two RGB pictures of one size; ``lpips`` is `perceptual.load`'s, None leaves the distance out.

    Raises:
        ValueError: the shapes or dtypes differ.
    """
    decibels = psnr(picture, reference)  # it checks both
    return Likeness(
        decibels,
        _unless_small(lambda: ssim(picture, reference)),
        None if lpips is None else _unless_small(lambda: float(lpips(picture[None], reference[None])[0])),
    )


def _unless_small(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except TooSmallError:
        return None


def compare(
    images: Iterable[Picture],
    references: Iterable[Picture],
    lpips: Measure | None = None,
    *,
    name: str = "the input",
    reference_name: str = "the reference",
    note: Note = lambda line: None,
) -> dict[str, Any]:
    """Compares a picture or video with a reference, one frame of each in memory: frame k with frame k, at any rate.

    Frames of another size are resized to the reference's, their centre kept; frames that have no counterpart are not
    compared. The names are for the notes.

    Returns:
        What JSON can hold: ``frames``, the number compared; ``psnr`` (dB), ``ssim`` and, with the network
        (`perceptual.load`), ``lpips``, each the mean over the frames; for more than one frame ``per_frame``, a list for
        each of the three. None stands for an infinite PSNR (equal frames, and any mean over one) and for what no frame
        is large enough for.

    Raises:
        ValueError: there is no frame to compare.
    """
    figures: list[Likeness] = []
    for image, reference in itertools.zip_longest(images, references):
        if image is None or reference is None:
            ended, other = (name, reference_name) if image is None else (reference_name, name)
            note(f"{ended} ends after {len(figures)} frames: the later ones of {other} are not compared")
            break
        figures.append(likeness(like(name, image, reference, reference_name, note), reference, lpips))
    if not figures:
        raise ValueError(f"{name} and {reference_name} have no frame to compare")
    _note_gaps(figures, lpips is not None, name, reference_name, note)
    fields = Likeness._fields if lpips is not None else Likeness._fields[:2]
    columns = {field: [getattr(one, field) for one in figures] for field in fields}
    result: dict[str, Any] = {"frames": len(figures)}
    result |= {field: _mean(values) for field, values in columns.items()}
    if len(figures) > 1:
        result["per_frame"] = {field: [known(value) for value in values] for field, values in columns.items()}
    return result


def _note_gaps(figures: Sequence[Likeness], with_lpips: bool, name: str, reference_name: str, note: Note) -> None:
    equal = sum(math.isinf(one.psnr) for one in figures)
    if equal:
        frames = f" in {equal} of {len(figures)} frames" if len(figures) > 1 else ""
        note(f"{name} equals {reference_name}{frames}: PSNR is infinite, said as null")
    for field in ("ssim", "lpips") if with_lpips else ("ssim",):
        if any(getattr(one, field) is None for one in figures):
            note(f"{name}, at the size of {reference_name}, is too small for {field.upper()}: none is given")


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return known(statistics.fmean(given)) if len(given) == len(values) else None
