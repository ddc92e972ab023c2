"""Errors with a meaning of their own. `InputError`: what the user gave cannot be used, and here is the mend."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """The user's input cannot be used.

    The message is a single line that names the setting or the file and says how to mend it; the command prints it as
    ``error: <message>`` and exits with status 2. Anything else that escapes is a bug.
    """


@contextlib.contextmanager
def named(key: str) -> Iterator[None]:
    """Within it, what is refused of a folder of weights as ``config.weights`` goes by another setting or flag.

    Args:
        key: the setting or flag; empty: the file alone is named.

    Raises:
        InputError: one was raised.
    """
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("config.weights: ", f"{key}: " if key else "", 1)) from None


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
