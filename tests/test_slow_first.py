"""The order in which files of tests are handed out."""

from pathlib import Path
from types import SimpleNamespace

from tests.slow_first import pytest_collection_modifyitems


def test_slow_files_come_first_then_those_with_most_tests():
    def item(path, name, slow=False):
        return SimpleNamespace(path=Path(path), name=name, get_closest_marker=lambda marker: marker if slow else None)

    items = [item("a", "1"), item("b", "1"), item("b", "2"), item("c", "2"), item("c", "1", slow=True), item("d", "1")]
    pytest_collection_modifyitems(items)
    assert [f"{item.path}{item.name}" for item in items] == ["c2", "c1", "b1", "b2", "a1", "d1"]
