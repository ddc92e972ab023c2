"""What every command has in common: mistakes get one line, and each kind of end its exit code."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from reangle_jax.errors import InputError, NotFiniteError
from reangle_jax.stopping import Stopped

SHOWN = 60  # lines of a report on one input


class Parser(argparse.ArgumentParser):
    """argparse's, but that a mistake is an `InputError`: one line, as any other."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message} (see --help)")


def answer(
    work: Callable[[], int | None],
    *,
    stopped: str = "the same command continues",
    explain: Callable[[Exception], str | None] = lambda error: None,
) -> int:
    """Does a command's work and gives its exit code.

    Args:
        work: may give an exit code of its own; None is 0.
        stopped: what to say when a signal ended it.
        explain: the line to say in place of another exception; None if it is a bug.

    Returns:
        0 done, 2 unusable input or what ``explain`` knows, 1 numbers that are not finite, 143 or 130 stopped by a
        signal. Anything else that goes wrong is raised: it is a bug, and Python exits with 1.
    """
    try:
        return work() or 0
    except InputError as error:
        report = getattr(error, "report", ())  # of all its faults
        more = [f"... and {len(report) - SHOWN} more"] if len(report) > SHOWN else []
        return _complain(str(error), *report[:SHOWN], *more)
    except Stopped as stop:
        print(f"stopped by {stop}: {stopped}", file=sys.stderr)
        return stop.exit_code
    except NotFiniteError as error:
        _complain(str(error))
        return 1
    except Exception as error:  # whatever it is: what nobody can explain is raised again
        words = explain(error)
        if words is None:
            raise
        return _complain(words)


def _complain(message: str, *lines: str) -> int:
    print(f"error: {' '.join(message.split())}", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
    return 2
