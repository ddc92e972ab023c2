"""Signals: nothing worth keeping is lost."""

import os
import signal

import pytest

from reangle_jax.stopping import Stop, Stopped, at_once


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_at_once(signum, code):
    with Stop().installed(), pytest.raises(Stopped) as caught:
        send(signum)
    assert caught.value.exit_code == code


def test_work_worth_saving_is_saved_first():
    done = []
    stop = Stop()

    def work():
        with stop.installed(), stop.at_safe_points() as held:
            for step in range(5):
                if step == 2:
                    send(signal.SIGTERM)
                done.append(step)
                if held.requested:
                    done.append("saved")
                    held.now()

    with pytest.raises(Stopped):
        work()
    assert done == [0, 1, 2, "saved"]


def test_a_second_signal_does_not_wait():
    stop = Stop()

    def work():
        with stop.installed(), stop.at_safe_points():
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            raise AssertionError

    with pytest.raises(Stopped):
        work()


def test_the_end_of_the_block_is_a_safe_point():
    stop = Stop()

    def work():
        with stop.installed(), stop.at_safe_points():
            send(signal.SIGINT)

    with pytest.raises(Stopped):
        work()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stop().installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_that_keeps_nothing_ends_at_once():
    """The handler would be called when the work, which Python waits for, is done."""
    with Stop().installed():
        held = signal.getsignal(signal.SIGTERM)
        with at_once():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == held
