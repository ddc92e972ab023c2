import pytest

from tests.run.chain import Chain


@pytest.fixture
def chain():
    return Chain([])
