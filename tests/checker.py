"""What checks the annotations of the packages while the tests run (see conftest.py)."""

import inspect
from collections.abc import Callable
from typing import Any

import beartype

# As type checkers have it, an int is a float too.
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_checked: dict[tuple, Callable] = {}


def check(function: Any) -> Any:
    """Checks a function's annotations; the same ones again by the same code.

    jaxtyping hands over a function without a body, made from a signature. A function inside of another is made anew
    whenever the outer one is called, and writing its check takes a millisecond.
    """
    if not inspect.isfunction(function) or function.__code__.co_freevars:
        return _check(function)
    parameters = inspect.signature(function).parameters.values()
    key = (
        function.__module__,
        function.__qualname__,
        function.__code__.co_code,
        function.__annotations__.get("return"),
    )
    key += tuple((p.name, p.kind, p.annotation, p.default is p.empty) for p in parameters)
    try:
        found = _checked.get(key)
    except TypeError:  # an annotation that cannot be hashed
        return _check(function)
    if found is None:
        found = _checked[key] = _check(function)
    return found
