"""VBench's consistency of features that are known."""

import numpy as np
import pytest

from reangle_jax.errors import InputError
from reangle_jax.scoring import vbench


def test_of_known_directions():
    def at(*degrees):
        return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1) * 3.0

    assert vbench.consistency(at(0, 0, 0)) == pytest.approx(1)
    assert vbench.consistency(at(0, 60)) == pytest.approx(0.5)
    # Against the one before 60 degrees each; against the first 60, and 120: below 0 counts as 0.
    assert vbench.consistency(at(0, 60, 120)) == pytest.approx((0.5 + (0.5 + 0) / 2) / 2)
    with pytest.raises(ValueError, match="two frames"):
        vbench.consistency(at(0))


def test_weights_that_are_missing(tmp_path):
    with pytest.raises(InputError, match=r"dino_vitb16 is missing: convert it .*dino-vitb16"):
        vbench.load(tmp_path / vbench.SUBJECT)
