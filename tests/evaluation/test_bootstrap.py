"""Intervals whose width is known."""

import numpy as np
import pytest

from reangle_jax.evaluation.bootstrap import interval


def test_of_many_values_it_is_the_normal_one(rng):
    values = rng.normal(3.0, 2.0, 400)
    mean, low, high = interval(list(values))
    error = values.std() / np.sqrt(400)
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((1.96 * error, 1.96 * error), rel=0.06)


def test_values_of_one_group_are_one_draw(rng):
    """Ten equal copies say nothing more: the interval is as wide as without them."""
    values = rng.normal(0.0, 1.0, 30)
    copies, groups = np.repeat(values, 10), np.repeat(np.arange(30), 10)
    assert interval(list(copies), list(groups)) == pytest.approx(interval(list(values)))
    _, low, high = interval(list(copies))
    _, wide_low, wide_high = interval(list(values))
    assert high - low < 0.5 * (wide_high - wide_low)


def test_groups_of_unequal_size_weigh_by_their_values():
    mean, low, high = interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])
    assert (mean, low, high) == (2.0, 1.0, 5.0)
