"""How the commands of this room end: a mistake in one line and exit code 2, a signal with what is done kept."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from reangle_jax import commands, stopping


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags of a command, whose help is its module's docstring."""
    return commands.Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def answer(main: Callable[[], None]) -> int:
    """Does a command's work and gives its exit code, as `reangle_jax.commands.answer` has them."""

    def work() -> None:
        with stopping.Stop().installed():
            main()

    return commands.answer(work)


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command as this process."""
    stopping.run(lambda: answer(main))
