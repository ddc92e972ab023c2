"""Which kernels a program's time goes to, by JAX's profiler."""

import collections
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData


class Kernel(NamedTuple):
    """What one kind of kernel took.

    Attributes:
        name: of the kernel, or of XLA's operation where kernels are not told.
        source: of its dearest operation in the program: the path of scopes that JAX writes down; "" where unknown.
        seconds: of all its calls; those on one device after another are added up.
        calls: how many.
    """

    name: str
    source: str
    seconds: float
    calls: int


def slowest(run: Callable[[], Any], program: str, number: int) -> list[Kernel]:
    """Runs something once under the profiler.

    Args:
        run: starts the program; its result is waited for.
        program: its optimised HLO, of which the sources are read.
        number: of kernels, at most.

    Returns:
        The dearest, falling.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (path,) = Path(folder).rglob("*.xplane.pb")
        with warnings.catch_warnings():
            # Of its own types, by Python 3.13 and later: as an error it would end the process.
            warnings.simplefilter("ignore", DeprecationWarning)
            events = list(_events(ProfileData.from_file(str(path))))
    sources = dict(re.findall(r'%?([\w.-]+) = [^\n]*?op_name="([^"]*)"', program))
    seconds: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    calls: dict[str, int] = collections.Counter()
    for kernel, operation, took in events:
        name = re.sub(r"[._]\d+$", "", kernel)
        seconds[name][sources.get(operation, "")] += took
        calls[name] += 1
    found = [Kernel(name, max(by, key=by.__getitem__), sum(by.values()), calls[name]) for name, by in seconds.items()]
    return sorted(found, key=lambda kernel: -kernel.seconds)[:number]


def _events(data: Any) -> Iterator[tuple[str, str, float]]:
    """Kernels: their name, XLA's operation, seconds. A device has lines of streams or of operations, a CPU threads."""
    for plane in data.planes:
        for line in plane.lines:
            kernels = plane.name.startswith("/device:") and (line.name or "").startswith(("Stream", "XLA Ops"))
            for event in line.events:
                operation = str(dict(event.stats).get("hlo_op", ""))
                if kernels or (operation and plane.name.startswith("/host:")):
                    yield event.name or "?", operation or event.name or "", event.duration_ns / 1e9


def in_words(kernels: list[Kernel]) -> str:
    """A line for each."""
    return "\n".join(f"{k.seconds:9.4f} s {k.calls:6} x {k.name[:70]:70} {k.source[-80:]}" for k in kernels)
