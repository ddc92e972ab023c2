"""Networks that the tests of the score share."""

import pytest

from tests.scoring.small_scorer import write_weights


@pytest.fixture(scope="session")
def scorer_weights(tmp_path_factory):
    """A folder with dust3r/, featup/ and dino/; all points lie in front of the cameras."""
    return write_weights(tmp_path_factory.mktemp("scorer"))
