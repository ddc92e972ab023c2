"""The Frechet distance against its definition, and where the answer is known."""

import numpy as np
import pytest

from reangle_jax.scoring.frechet import frechet_distance


def defined(first, second):
    """By covariances: the trace of (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1 S2."""
    means = [x.mean(axis=0) for x in (first, second)]
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1])
    root = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    return np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1]) - 2 * root


def sets(rng, n, m, width):
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    return rng.normal(size=(n, width)), 1.5 * rng.normal(size=(m, width)) @ mixing + 0.3


@pytest.mark.parametrize(("n", "m"), [(40, 60), (200, 25), (21, 400)])
def test_more_features_than_dimensions(rng, n, m):
    first, second = sets(rng, n, m, 20)
    assert frechet_distance(first, second) == pytest.approx(defined(first, second), rel=1e-9)


def test_fewer_features_than_dimensions(rng):
    """The covariances are singular: their eigenvalues that are 0 come out as 1e-16, whose roots are 1e-8."""
    first, second = sets(rng, 10, 12, 50)
    assert frechet_distance(first, second) == pytest.approx(defined(first, second), rel=1e-5)
    # By scipy 1.17's sqrtm of both covariances + e I, computed once, extrapolated to e = 0 in the root of e.
    assert frechet_distance(first, second) == pytest.approx(146.91201, rel=1e-6)


def test_scipys_root_gives_the_same(rng):
    """By scipy 1.17's sqrtm, computed once."""
    assert frechet_distance(*sets(rng, 40, 60, 20)) == pytest.approx(23.859074122101887, rel=1e-12)


def test_a_known_answer():
    """Independent axes: the sum of (mean difference)^2 + (difference of deviations)^2."""
    first = np.array([[-1.0, -2], [1, -2], [-1, 2], [1, 2]])
    second = np.array([[2.0, 6], [8, 6], [2, 8], [8, 8]])
    deviations = np.sqrt(4 / 3) * np.array([[1, 2], [3, 1]])
    expected = 25 + 49 + np.sum((deviations[0] - deviations[1]) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_symmetric_and_zero_with_itself(rng):
    for n, m in ((30, 50), (5, 8)):
        first, second = sets(rng, n, m, 16)
        assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-10)
        assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(first, first + 2.0) == pytest.approx(4 * 16)


def test_equal_distributions_have_a_distance_that_falls_with_n(rng):
    few, many = (frechet_distance(*rng.normal(size=(2, n, 100))) for n in (20, 400))
    assert few > 5 * many > 0


def test_one_feature_has_no_variance(rng):
    with pytest.raises(ValueError, match="sets of 1 and 3"):
        frechet_distance(rng.normal(size=(1, 4)), rng.normal(size=(3, 4)))
