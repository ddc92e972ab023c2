"""Progress of a long piece of work: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import Any

import tqdm

from reangle_jax.measure import human_seconds

LINE_SECONDS = 30.0  # between two lines where there is no terminal

_log = logging.getLogger(__name__)


class progress:  # noqa: N801 (used like the function tqdm)
    """A bar with rate and remaining time.

        with progress(400, "finetune", initial=120, unit="step") as bar:
            bar.update(loss=0.1)

    ``total`` is how many steps there will be, None if that is not known; ``initial`` those done before.
    """

    def __init__(self, total: int | None, description: str, *, initial: int = 0, unit: str = "step"):
        self._total, self._description, self._unit = total, description, unit
        self._done = initial
        self._values: dict[str, Any] = {}
        self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first update came, and what was done then
        self._bar = None
        if sys.stderr.isatty() and _log.isEnabledFor(logging.INFO):  # one process of several shows it
            self._bar = tqdm.tqdm(
                total=total, desc=description, initial=initial, unit=unit, dynamic_ncols=True, file=sys.stderr
            )

    def set(self, **values: Any) -> None:
        """Shows values, such as the loss, with the next update."""
        self._values |= values
        if self._bar is not None:
            self._bar.set_postfix(self._values, refresh=False)

    def update(self, steps: int = 1, **values: Any) -> None:
        """Counts steps as done."""
        self._done += steps
        self.set(**values)
        if self._bar is not None:
            self._bar.update(steps)
            return
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        if now - self._last >= LINE_SECONDS and (self._total is None or self._done < self._total):
            self._last = now
            _log.info("%s", self._line(now))

    def _line(self, now: float) -> str:
        start, before = self._first or (now, self._done)
        parts = [f"{self._description} {self._done}" + ("" if self._total is None else f"/{self._total}")]
        if self._done > before:  # the first step compiles: it says nothing about the others
            each = (now - start) / (self._done - before)
            parts.append(f"{human_seconds(each)}/{self._unit}")
            if self._total is not None:
                parts.append(f"{human_seconds(each * (self._total - self._done))} left")
        parts += [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._values.items()
        ]
        return ", ".join(parts)

    def __enter__(self) -> "progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
