"""How sure a mean is: the bootstrap (Efron, 1979)."""

from collections.abc import Hashable, Sequence

import numpy as np


def interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, draws: int = 10_000
) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % bootstrap interval; equal arguments give equal intervals.

    What is drawn, with replacement, are whole groups: values of one group, the views of one clip, are not independent.
    Without groups each value is its own.
    """
    data = np.asarray(values, np.float64)
    order: dict[Hashable, int] = {}
    places = [order.setdefault(group, len(order)) for group in (range(len(data)) if groups is None else groups)]
    sums, counts = np.bincount(places, data), np.bincount(places)
    drawn = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(data.mean()), float(low), float(high)
