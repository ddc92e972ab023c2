"""Whether pictures agree, as first frames are chosen by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.errors import InputError
from reangle_jax.scoring import agreement, video
from reangle_jax.scoring.agreement import Agreement


@pytest.fixture(scope="module")
def score(scorer_weights):
    return Agreement.load(scorer_weights, 32, 48)


@pytest.fixture(scope="module")
def pictures():
    """Two pictures of waves, wide enough to be enlarged and shrunk."""
    y, x = np.mgrid[:32, :48]
    waves = [np.stack([x, y, x + y], axis=-1) / 9, np.stack([x - y, x, y], axis=-1) / 6]
    return (127 + 100 * np.sin(np.stack(waves))).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "compared"),
    [
        ((480, 720), (256, 384)),
        ((128, 192), (128, 192)),
        ((720, 480), (384, 256)),
        ((40, 36), (32, 32)),
        ((8, 8), (16, 16)),
    ],
)
def test_whole_frames_are_compared_at_a_modest_size(size, compared):
    assert agreement.compared_size(*size, 16) == compared


def test_candidates_against_what_is_finished(score, pictures):
    """A copy agrees as well as can be, others as MEt3R has it; room that is not used counts nothing."""
    assert score.size == (32, 48)
    finished = score.describe(pictures[:1], room=3)
    candidates = jnp.asarray(pictures / 255.0, jnp.float32)
    found = np.asarray(jax.jit(score.similarity)(score.states, candidates, finished, jnp.int32(1)))
    assert found.shape == (2, 3)
    assert found[0, 0] == pytest.approx(1.0, abs=1e-3)
    assert found[1, 0] < found[0, 0]
    np.testing.assert_array_equal(found[:, 1:], 0.0)
    (met3r,) = score.with_finished(pictures[1], pictures[:1])
    assert found[1, 0] == pytest.approx(1 - met3r, abs=1e-3)


def test_a_picture_is_compared_with_each_finished_one_alone(score, pictures, monkeypatch):
    three = [pictures[1], pictures[0], pictures[1][::-1].copy()]
    pairs = score.pairs(three)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    compared, compare = [], video._compare
    monkeypatch.setattr(video, "_compare", lambda *arguments: compared.append(0) or compare(*arguments))
    assert score.with_finished(three[0], np.stack(three[1:])) == [pair.met3r for pair in pairs[:2]]
    assert len(compared) == 2


def test_pictures_of_all_views_are_described_by_one_program(score, pictures):
    score.describe(pictures[:1], room=3)
    programs = video.describe._cache_size()
    score.describe(pictures, room=3)
    assert video.describe._cache_size() == programs


def test_larger_pictures_are_averaged(score, pictures):
    large = jnp.asarray(pictures.repeat(2, axis=1).repeat(2, axis=2) / 255.0, jnp.float32)
    np.testing.assert_allclose(score.resized(large), pictures / 255.0, atol=0.06)


def test_networks_that_are_not_there(tmp_path, scorer_weights):
    with pytest.raises(InputError, match="dust3r is missing: the score, which makes the first frames agree"):
        agreement.check(tmp_path)
    agreement.check(scorer_weights)
    (tmp_path / "dust3r").symlink_to(scorer_weights / "featup")
    (tmp_path / "featup").symlink_to(scorer_weights / "featup")
    with pytest.raises(InputError, match="holds FeatUpConfig, not Dust3rConfig"):
        agreement.check(tmp_path)
