"""Errors with a meaning of their own. `InputError`: what the user gave cannot be used, and here is the mend."""

import contextlib
import re
from collections.abc import Iterator, Sequence


class InputError(ValueError):
    """The user's input cannot be used.

    The message is a single line that names the setting or the file and says how to mend it; the command prints it as
    ``error: <message>`` and exits with status 2. Anything else that escapes is a bug.

    Attributes:
        report: every fault, one a line, where there may be many; empty where the message says all.
    """

    def __init__(self, message: str, report: Sequence[str] = ()):
        super().__init__(message)
        self.report = tuple(report)


# A config.json is a file.
_SETTING = re.compile(r"(config\.(?!json\b)|--)[\w.-]+[:=]")


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Begins the line of what is refused within it by the setting or flag that it came from: ``config.video: ...``.

    What reads a file names the file; by which setting it was given, the caller knows. A line that begins with a setting
    already, another one perhaps, which is to be mended, stays as it is; and so with flags.
    """
    try:
        yield
    except InputError as error:
        own = _SETTING.match(str(error))
        if own and name.startswith(own[1]):
            raise
        raise InputError(f"{name}: {error}", error.report) from None


@contextlib.contextmanager
def called(**flags: str) -> Iterator[None]:
    """Names, in what is refused within it, settings as a command's own flags: ``called(mesh="--mesh")``.

    What reads a setting names it as runs have it, ``config.mesh``; two underscores are a dot: ``execution__dtype``.
    """
    names = {f"config.{name.replace('__', '.')}": flag for name, flag in flags.items()}
    try:
        yield
    except InputError as error:
        line = re.sub(r"config\.\w+(\.\w+)*", lambda found: names.get(found[0], found[0]), str(error))
        raise InputError(line, error.report) from None


class TooSmallError(ValueError):
    """A side is too short for what a metric looks at around each pixel."""


class NotFiniteError(ArithmeticError):
    """Numbers that were computed are not finite (NaN, infinity): work that goes on with them is lost.

    The message is a single line that says where and how to mend it; the command prints it as ``error: <message>`` and
    exits with status 1.
    """


def wider(dtype: str) -> str:
    """The mend of numbers too large for what the networks compute in, to go before others; none for float32."""
    return "" if dtype == "float32" else f"set config.execution.dtype=float32 (it is {dtype}), "
