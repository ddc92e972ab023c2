"""What a setting may be: a test, and the words for it in errors, ``--help`` and docs/settings.md."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection
from typing import Any

_MOST = 10**9


@dataclasses.dataclass(frozen=True)
class Rule:
    """A bound of a setting's value."""

    words: str  # what is allowed, after "it must be"
    holds: Callable[[Any], bool]  # whether a value, of the setting's type, is allowed
    mend: Callable[[Any], str] = lambda value: ""  # what to add in an error about a value


def at_least(low: float) -> Rule:
    """No less than ``low``, and no slip of the keyboard: C's integers, which count frames and steps, end at 2**63."""
    return Rule(
        f"at least {_spelt(low)}",
        lambda value: low <= value <= _MOST,
        lambda value: f" and at most {_spelt(_MOST)}" if value > _MOST else "",
    )


def between(low: float, high: float) -> Rule:
    """From ``low`` to ``high``, both allowed."""
    return Rule(f"from {_spelt(low)} to {_spelt(high)}", lambda value: low <= value <= high)


def above(low: float, mend: str = "") -> Rule:
    """More than ``low``; ``mend`` ends the error."""
    return Rule(f"above {_spelt(low)}", lambda value: value > low, lambda value: mend)


def one_of(*words: str) -> Rule:
    """One of some words."""
    return one_listed(words)


def one_listed(words: Collection[str]) -> Rule:
    """One of the words of a collection that may grow."""

    def closest(value: Any) -> str:
        close = difflib.get_close_matches(str(value), words, n=1)
        return f" (did you mean {close[0]}?)" if close else ""

    return Rule(f"one of {', '.join(words)}", lambda value: value in words, closest)


def multiple_of(step: int, *, plus: int = 0) -> Rule:
    """``plus`` and any number of times ``step``, at least once where nothing is added."""

    def nearest(value: int) -> str:
        if value > _MOST:
            return f" and at most {_spelt(_MOST)}"
        low = max(plus or step, (value - plus) // step * step + plus)
        return f", such as {low} or {low + step}"

    words = f"{plus} + {step}k" if plus else f"a multiple of {step}"
    return Rule(words, lambda value: (plus or step) <= value <= _MOST and value % step == plus % step, nearest)


def word_or_above(low: float, *words: str) -> Rule:
    """One of some words, or a finite number above ``low``."""
    return Rule(
        f"{', '.join(words)} or a number above {_spelt(low)}",
        lambda value: value in words or (isinstance(value, float) and low < value < math.inf),
    )


def pair_below(high: float) -> Rule:
    """Two numbers from 0 to below ``high``."""
    words = f"two numbers from 0 to below {_spelt(high)}"
    return Rule(words, lambda values: len(values) == 2 and all(0 <= value < high for value in values))


def window() -> Rule:
    """FIRST:LAST, two shares of which the first is no larger."""
    return Rule(
        "FIRST:LAST, two numbers from 0 to 1 in order, such as 0.25:1.0", lambda text: _window(text) is not None
    )


def read_window(text: str) -> tuple[float, float]:
    """The two numbers of what `window` allows."""
    found = _window(text)
    assert found is not None
    return found


def _window(text: str) -> tuple[float, float] | None:
    parts = text.split(":")
    try:
        first, last = map(float, parts)
    except ValueError:
        return None
    return (first, last) if 0 <= first <= last <= 1 else None


def _spelt(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
