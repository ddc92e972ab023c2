"""SIGTERM and SIGINT: stop soon, with nothing lost that was worth keeping; and how a command's process ends."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_log = logging.getLogger(__name__)


class Stopped(BaseException):
    """The process was asked to stop: an order, not an error, so `except Exception` lets it pass.

    The exit code is 128 + the signal's number: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Stop:
    """Whether the process was asked to stop, and how it reacts.

    Attributes:
        requested: True once a signal came while signals were held for a safe point.
        agree: of several processes that work together, gives the signal (0: none) that stops all of them, of the one
            that came to this one. All of them ask as often: at each step between safe points.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._holding = False
        self.agree: Callable[[int], int] = _own

    @property
    def requested(self) -> bool:
        """True once a signal came."""
        if self._holding:
            self._signum = self.agree(self._signum)
        return self._signum != 0

    def now(self) -> None:
        """Raises `Stopped` if a signal came: call it where everything worth keeping is on the disk."""
        if self.requested:
            raise Stopped(self._signum)

    @contextlib.contextmanager
    def at_safe_points(self) -> Iterator["Stop"]:
        """Holds the first signal until `now()` or the end of the block; a second one stops at once."""
        self._holding = True
        try:
            yield self
        finally:
            self._holding = False
        self.now()

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del frame
        first, self._signum = not self._signum, signum
        if self._holding and first:
            _log.warning("%s: stopping after this step", signal.Signals(signum).name)
            return
        raise Stopped(signum)

    @contextlib.contextmanager
    def installed(self) -> Iterator["Stop"]:
        """Handles SIGTERM and SIGINT inside of the block; Python lets only the main thread set handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, self.handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Lets signals end the process at once where Python, which runs handlers, waits: for work that keeps nothing."""
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _own(signum: int) -> int:
    return signum


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a command as this process, which ends with the exit code that it gives; at once if a signal stopped it.

    XLA may then still be computing, and Python, as it ends in good order, would take away what its threads work on.
    """
    _open_streams()
    try:
        code = main()
    except BrokenPipeError:  # its reader has seen enough, before everything was said
        code = 128 + signal.SIGPIPE
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # its reader has seen enough (``| head``); Python, as it ends, would flush again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code <= 128:
        sys.exit(code)
    os._exit(code)


def _open_streams() -> None:
    """Gives standard streams that the caller closed (``2>&-``) a place: else the next file opened would take it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
