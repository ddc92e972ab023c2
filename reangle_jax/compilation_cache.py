"""Compiled programs, kept on the disk: the same command again need not compile anew."""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax

from reangle_jax.errors import InputError

_log = logging.getLogger(__name__)


def use(choice: str = "auto") -> None:
    """Tells JAX where to keep compiled programs; to be called before the first is compiled.

    The choice is a folder, ``off``, or ``auto``: where JAX's own setting, JAX_COMPILATION_CACHE_DIR, says, or else in
    the user's cache folder, unless that cannot be written. JAX_ENABLE_COMPILATION_CACHE=false turns it off, too.

    Raises:
        InputError: the folder cannot be written.
    """
    if choice == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if choice == "auto" and folder():
        return
    try:
        place = (_users() if choice == "auto" else Path(choice).expanduser().absolute()) / _machine()
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(0, "it is not writable")
    except (OSError, RuntimeError) as error:  # Path.home(): RuntimeError
        why = getattr(error, "strerror", None) or error
        if choice != "auto":
            raise InputError(
                f"config.compilation_cache={choice} cannot be used ({why}): give a folder, or off"
            ) from None
        _log.info("compiled programs are not kept: the user's cache folder cannot be used (%s)", why)
        return
    jax.config.update("jax_compilation_cache_dir", str(place))


def folder() -> str | None:
    """Where JAX keeps compiled programs; None where it has not been told."""
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] (made at run time)


def _users() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "reangle_jax"  # a relative one does not count


def _machine() -> str:
    """The processor: programs for CPUs use what it can do, and homes are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    able = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:8]}"
