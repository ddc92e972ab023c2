"""How the commands of this room end: a mistake in one line and exit code 2, a signal with what is done kept."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from reangle_jax import commands, stopping


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags of a command, whose help is its module's docstring."""
    return commands.Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive(text: str) -> int:
    """A flag's whole number from 1 on."""
    return _from(1, text)


def count(text: str) -> int:
    """A flag's whole number from 0 on."""
    return _from(0, text)


def _from(least: int, text: str) -> int:
    number = int(text) if text.lstrip("-").isdecimal() else None
    if number is None or number < least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} on")
    return number


def answer(main: Callable[[], None]) -> int:
    """Does a command's work and gives its exit code, as `reangle_jax.commands.answer` has them."""
    return commands.answer(lambda stop: main())


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command as this process."""
    stopping.run(lambda: answer(main))
