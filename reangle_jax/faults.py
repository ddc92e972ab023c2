"""Faults of the machine: a full disk, too little memory. They are the user's to mend, not bugs: each gets one line."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reangle_jax import measure
from reangle_jax.errors import InputError

# How the libraries say how much was asked for: XLA in bytes or with a unit, its TPU compiler, NumPy, OpenCV.
_ASKED = re.compile(r"(?:allocat\w*|Used) ([0-9.]+) ?(bytes|[KMGTP]i?B?\b)", re.IGNORECASE)
_NO_MEMORY = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "out of memory",
    "Insufficient memory",
    "bad_alloc",
    "bad allocation",
)
# What makes the work smaller, in the order of what it costs the user least, and how.
SMALLER = {
    "finetune.batch_size": "lower",
    "mesh": "divide the model over more devices, r:N",
    "vae_tiles": "on",
    "execution.remat": "full",
    "base_dtype": "int8",
    "base_layout": "divided",
    "finetune.rank": "lower",
    "first_frames.scale": "lower",
    "num_frames": "lower",
    "height": "lower",
    "width": "lower",
}

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_CANNOT_WRITE += (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # a file where a folder is to be, or a folder for a file


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: libraries wrap them."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def disk_full(error: BaseException) -> str | None:
    """Where the disk was full (`` while writing FILE``, or nothing), if that is at the bottom of an error."""
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return f" while writing {link.filename}" if link.filename else ""
        if "No space left on device" in str(link):
            return ""
    return None


def cannot_write(error: BaseException) -> str | None:
    """Why what is written cannot be, in words (with the file, where it is known), if that is what an error says."""
    if not isinstance(error, OSError) or error.errno not in _CANNOT_WRITE:
        return None
    path = error.filename2 or error.filename  # the former is what a file is renamed to
    return f"{error.strerror}: {path}" if path else f"{error.strerror}"


def out_of_memory(error: BaseException) -> str | None:
    """What was asked for and what there is, in words, if an error comes from too little memory."""
    for link in chain(error):
        text = str(link)
        no_memory = isinstance(link, MemoryError) or (isinstance(link, OSError) and link.errno == errno.ENOMEM)
        if no_memory or any(word in text for word in _NO_MEMORY):
            asked, limit = _ASKED.search(text), measure.device_limit_bytes()
            words = f"{_human(*asked.groups())} were asked for at once" if asked else "more was asked for than is left"
            return words + (f", of {measure.human_bytes(limit)} in all" if limit else "")
    return None


def explained(
    out: str = "--out", *, less: str = "", then: str = "or choose another"
) -> Callable[[Exception], str | None]:
    """What `commands.answer` is to say of the machine's faults in a command's work.

    Args:
        out: the flag that names what is written.
        less: what helps where memory is short; empty where the work needs little.
        then: what to do beside mending what keeps it from being written.
    """

    def explain(error: Exception) -> str | None:
        words = out_of_memory(error) if less else None
        if words is not None:
            return f"out of memory: {words}; what helps: {less}"
        why = cannot_write(error)
        return why and f"{out} cannot be written ({why}): mend that, {then}"

    return explain


def _human(number: str, unit: str) -> str:
    power = "BKMGTP".index(unit[0].upper())
    return measure.human_bytes(float(number.rstrip(".")) * 1024**power)


@contextlib.contextmanager
def memory_explained(work: str, settings: Mapping[str, Any], keys: Sequence[str]) -> Iterator[None]:
    """Turns what is raised for want of memory inside of the block into the user's one line.

    The line has the settings (dotted key to value, all of them) of those keys of SMALLER that make this work smaller.

    Raises:
        InputError: there was too little memory.
    """
    try:
        yield
    except Exception as error:
        words = out_of_memory(error)
        if words is None:
            raise
        raise InputError(f"{work}: out of memory: {words}; what helps: {smaller(settings, keys)}") from error


def smaller(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Those of SMALLER's settings that are among the keys, what they are and how to change them."""
    found = {key: settings[key] for key, how in SMALLER.items() if key in keys and settings.get(key, how) != how}
    at_least = [key for key, value in found.items() if isinstance(value, int) and value == 1]  # such as a batch of one
    return ", ".join(f"config.{key}={found[key]} ({SMALLER[key]})" for key in found if key not in at_least)
