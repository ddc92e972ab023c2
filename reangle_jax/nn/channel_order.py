"""Order of a head's channels: the published weights of CogVideoX and FLUX rotate neighbours, ours halves."""

import numpy as np
from jaxtyping import Shaped


def to_halves(x: Shaped[np.ndarray, "*s"], head_dim: int) -> Shaped[np.ndarray, "*s"]:
    """Reorders the last axis, head by head, from pairs (2k, 2k + 1) to pairs (k, k + head_dim / 2)."""
    return x.reshape(*x.shape[:-1], -1, head_dim // 2, 2).swapaxes(-1, -2).reshape(x.shape)


def to_pairs(x: Shaped[np.ndarray, "*s"], head_dim: int) -> Shaped[np.ndarray, "*s"]:
    """The inverse of :func:`to_halves`."""
    return x.reshape(*x.shape[:-1], -1, 2, head_dim // 2).swapaxes(-1, -2).reshape(x.shape)
