"""Files with slow tests are run first, then those with most tests: no worker is left alone with minutes at the end.

pytest-xdist's own order goes by the number of tests alone, so that the few tests of minutes came last; the Makefile
turns it off.
"""

import collections

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files; the tests of each keep their order."""
    count = collections.Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -count[item.path], item.path))
