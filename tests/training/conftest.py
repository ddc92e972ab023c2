"""Rendered views that the tests of the score's training share."""

import pytest

from tests.scoring.small_scorer import write_weights
from training.views import render_views


@pytest.fixture(scope="session")
def views():
    """Two scenes of four views each, of noise and patterns: no photographs are needed."""
    return [render_views(index, None) for index in (3, 4)]


@pytest.fixture(scope="session")
def scorer_weights(tmp_path_factory):
    """A folder with dust3r/, featup/ and dino/ of random weights."""
    return write_weights(tmp_path_factory.mktemp("scorer"))
