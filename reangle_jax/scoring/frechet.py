"""The Frechet distance of two sets of vectors (Heusel et al., 2017, arXiv 1706.08500): what FID and FVD are."""

import numpy as np
from jaxtyping import Float


def frechet_distance(first: Float[np.ndarray, "n C"], second: Float[np.ndarray, "m C"]) -> float:
    """|mean1 - mean2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of at least two, in float64.

    The covariances divide by n - 1. Their product's root is not formed, so that n may be smaller than C: its trace is
    the nuclear norm of X1 X2^T / sqrt((n - 1) (m - 1)), where the X are the features less their mean, a sample a row.

    The fewer the features, the larger it is, of two sets of one distribution too: compare at equal n alone.

    Raises:
        ValueError: a set has fewer than two.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"sets of {len(first)} and {len(second)}: each needs two or more")
    means, centred, variances = [], [], []
    for features in (first, second):
        features = np.asarray(features, np.float64)
        means.append(features.mean(axis=0))
        x = (features - means[-1]) / np.sqrt(len(features) - 1)
        variances.append(np.sum(np.square(x)))
        # A rotation of the rows changes no singular value: no more rows are needed than there are columns.
        centred.append(np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x)
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(np.sum(np.square(means[0] - means[1])) + sum(variances) - 2.0 * shared)
