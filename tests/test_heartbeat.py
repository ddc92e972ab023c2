"""Signs of life, by a clock and a store of the test's."""

import pytest

from reangle_jax import heartbeat
from reangle_jax.heartbeat import Heartbeat

PATIENCE = 5.0


class Store(dict):
    """As much of the coordination service's client as is asked."""

    working = True

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, key):
        if not self.working:
            raise RuntimeError("UNAVAILABLE")
        return [item for item in self.items() if item[0].startswith(key)]


@pytest.fixture
def clock(monkeypatch):
    time = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: time[0])
    return time


def test_who_gives_no_more_signs_is_lost(clock):
    store = Store()
    zero, one, two = (Heartbeat(store, index, 3, PATIENCE) for index in range(3))
    for second in range(20):
        clock[0] = 100.0 + second
        if second < 3:
            one.lost()
        expected = [1] if second > 2 + PATIENCE else []
        assert (two.lost(), zero.lost()) == (expected, expected)
        assert zero.lost() == []  # there is nothing new before the next second


def test_one_that_never_came_is_lost_too(clock):
    zero = Heartbeat(Store(), 0, 2, PATIENCE)
    clock[0] += PATIENCE + 1
    assert zero.lost() == [1]


def test_without_the_service_nobody_is_lost(clock):
    store = Store()
    zero, one = (Heartbeat(store, index, 2, PATIENCE) for index in range(2))
    one.lost()
    store.working = False
    clock[0] += 2 * PATIENCE
    assert zero.lost() == []
    store.working = True
    clock[0] += 1
    one.lost()  # it has lived on meanwhile
    assert zero.lost() == []


def test_the_line_names_them():
    assert heartbeat.farewell([1], 2, 25.0).startswith("process 1 of 2 (counted from 0) gave no sign of life for 25 s")
    assert heartbeat.farewell([1, 3], 4, 25.0).startswith("processes 1, 3 of 4 ")
