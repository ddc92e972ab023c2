"""What every command has in common: its flags, mistakes in one line, and for each kind of end an exit code."""

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from reangle_jax import stopping
from reangle_jax.errors import InputError, NotFiniteError
from reangle_jax.stopping import Stop, Stopped

SHOWN = 60  # lines of a report on one input
CONTINUES = "the same command continues"


class Parser(argparse.ArgumentParser):
    """argparse's, but that a mistake is an `InputError`: one line, as any other; texts keep their lines."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message} (see --help)")


def parser(doc: str | None) -> Parser:
    """The flags of a command, whose help is its module's docstring."""
    return Parser(description=doc)


def whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """The type of a flag that is a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            to = "on" if most == math.inf else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} {to}")
        return number

    return read


positive, count = whole(1), whole(0)


def above_zero(text: str) -> float:
    """The type of a flag that is a finite number above 0."""
    return _real(text, lambda number: 0 < number < math.inf, "above 0")


def share(text: str) -> float:
    """The type of a flag that is a number from 0 to 1."""
    return _real(text, lambda number: 0 <= number <= 1, "from 0 to 1")


def _real(text: str, fits: Callable[[float], bool], words: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not fits(number):
        raise argparse.ArgumentTypeError(f"{text} is no number {words}")
    return number


def answer(
    work: Callable[[Stop], int | None],
    *,
    stopped: str = CONTINUES,
    explain: Callable[[Exception], str | None] = lambda error: None,
    claim: Callable[[int], bool] = lambda code: True,
) -> int:
    """Does a command's work and gives its exit code.

    Args:
        work: is given what handles signals meanwhile; may give an exit code of its own; None is 0.
        stopped: what to say when a signal ended it.
        explain: the line to say in place of another exception; None if it is a bug.
        claim: whether it is this process that says why several of them end, with an exit code.

    Returns:
        0 done, 2 unusable input or what ``explain`` knows, 1 numbers that are not finite, 143 or 130 stopped by a
        signal. Anything else that goes wrong is raised: it is a bug, and Python exits with 1.
    """
    try:
        with Stop().installed() as stop:
            return work(stop) or 0
    except InputError as error:
        more = [f"... and {len(error.report) - SHOWN} more"] if len(error.report) > SHOWN else []
        code, words = 2, _complaint(str(error), *error.report[:SHOWN], *more)
    except Stopped as stop:
        code, words = stop.exit_code, f"stopped by {stop}: {stopped}"
    except NotFiniteError as error:
        code, words = 1, _complaint(str(error))
    except Exception as error:  # whatever it is: what nobody can explain is raised again
        explained = explain(error)
        if explained is None:
            if claim(1):
                raise
            return 1
        code, words = 2, _complaint(explained)
    if claim(code):
        print(words, file=sys.stderr)
    return code


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, its columns as wide as their widest cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def run(main: Callable[[], int | None], *, stopped: str = CONTINUES) -> NoReturn:
    """Runs a command as this process; both are as of `answer`. The machine's faults get one line."""
    stopping.run(lambda: answer(lambda stop: main(), stopped=stopped, explain=_of_the_machine))


def _of_the_machine(error: Exception) -> str | None:
    from reangle_jax import faults  # when it is needed: JAX takes a second

    return faults.explained("what this command writes", less="less at once", then="or give another path")(error)


def start(module: str, stopped: str) -> NoReturn:
    """Runs a room's command, ``main`` of a module, as this process; ``stopped`` is as of `answer`.

    The module is imported here, which takes seconds: a signal is answered in a line meanwhile too.
    """
    run(lambda: importlib.import_module(module).main(sys.argv[1:]), stopped=stopped)


def _complaint(message: str, *lines: str) -> str:
    return "\n".join([f"error: {' '.join(message.split())}", *(f"  {line}" for line in lines)])
