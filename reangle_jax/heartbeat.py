"""Signs of life of several processes: which of them is lost, told before JAX itself ends the others.

JAX's own end is a C++ stack trace. The callback that its client takes instead is given a status that Python cannot be
given (``std::bad_cast``, with jaxlib 0.10.2 and 0.11.2), so that whoever wants words must be first.
"""

import time
from collections.abc import Sequence
from typing import Any

EVERY = 1.0  # seconds between two signs


class Heartbeat:
    """One process's signs of life, and what it sees of the others'.

    Args:
        client: of JAX's coordination service, which keeps them.
        index: this process's number.
        count: how many there are.
        patience: seconds without a sign after which one counts as lost.
    """

    def __init__(self, client: Any, index: int, count: int, patience: float):
        self._client, self._index, self._patience = client, index, patience
        self._signs, self._next, now = 0, 0.0, time.monotonic()
        self._seen = {other: ("", now) for other in range(count) if other != index}

    def lost(self) -> list[int]:
        """Gives a sign, where it is time; the numbers of those that have given none for too long."""
        now = time.monotonic()
        if now < self._next:
            return []
        self._next = now + EVERY
        self._signs += 1
        try:
            self._client.key_value_set(f"reangle/alive/{self._index}", str(self._signs), allow_overwrite=True)
            found = dict(self._client.key_value_dir_get("reangle/alive/"))
        except Exception:  # JAX's own, of many names: without its service nothing is known of anyone
            return []
        for other, (sign, _) in self._seen.items():
            latest = found.get(f"reangle/alive/{other}", "")
            if latest != sign:
                self._seen[other] = latest, now
        return [other for other, (_, since) in self._seen.items() if now - since > self._patience]


def farewell(lost: Sequence[int], count: int, patience: float) -> str:
    """What the user reads of processes that gave no sign of life."""
    who = f"process {lost[0]}" if len(lost) == 1 else f"processes {', '.join(map(str, lost))}"
    return (
        f"{who} of {count} (counted from 0) gave no sign of life for {patience:g} s: killed, or cut off with its host; "
        "its own last lines may say why. The same command goes on from what is saved"
    )
