"""The small FLUX's committed weights: they load as their configs say, code pictures and paint a hole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.tiny import WEIGHTS
from training.holes import Holes
from training.judge_flux import Judge

SIZE = (64, 96)


@pytest.fixture(scope="module")
def holes():
    """A coloured slope whose middle is not known."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    picture = np.stack([40 + 2 * x, 60 + y, 200 - x - y], -1).astype(np.uint8)
    visible = np.ones(SIZE, bool)
    visible[20:40, 30:54] = False
    return Holes(picture, np.where(visible[..., None], picture, np.uint8(0)), visible, "")


@pytest.fixture(scope="module")
def judge():
    """One painting of a few steps."""
    return Judge(WEIGHTS, WEIGHTS, samples=1, steps=6)


def test_the_weights_take_a_few_megabytes():
    names = ("flux_transformer", "flux_controlnet", "flux_autoencoder")
    size = sum((WEIGHTS / name / "model.safetensors").stat().st_size for name in names)
    assert 5e6 < size < 20e6


@pytest.mark.slow
def test_a_hole_is_painted_by_what_is_around_it(judge, holes):
    painted = judge.paintings(holes, jax.random.key(0))
    truth, hole = holes.picture / np.float32(255), ~holes.visible
    for way in ("decoded", "pasted", "reimposed"):
        error = np.square(painted[way][0] - truth)
        assert -10 * np.log10(error[hole].mean()) > 15, way  # black: 4 dB; their mean colour: 16 to 20 dB
    known = painted["pasted"][0][holes.visible]
    np.testing.assert_array_equal(known, truth[holes.visible])
    # What is not pasted back is close to it: it went through the autoencoder.
    assert -10 * np.log10(np.square(painted["decoded"][0] - truth)[holes.visible].mean()) > 22


@pytest.mark.slow
def test_other_noise_paints_otherwise(judge, holes):
    first, other = (judge.paintings(holes, jax.random.key(k))["pasted"][0] for k in (0, 1))
    assert np.abs(first - other)[~holes.visible].mean() > 1e-3
    assert jnp.isfinite(first).all()
