"""Networks that these tests share with the score's."""

from tests.scoring.conftest import scorer_weights  # noqa: F401  (fixture)
