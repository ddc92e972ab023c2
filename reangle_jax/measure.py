"""What a run used: memory peaks, versions, devices."""

import contextlib
import importlib.metadata
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import reangle_jax


def reset_host_peak() -> bool:
    """Starts anew with the peak of resident memory; False where the system cannot (then it is the whole process's)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def host_peak_bytes() -> int:
    """Peak resident memory since `reset_host_peak`, in bytes (since the start of the process where that failed)."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes() -> int | None:
    """Largest peak of the local devices since the process began, in bytes; None where devices do not tell (CPU)."""
    if "jax" not in sys.modules:
        return None
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else None


def device_limit_bytes() -> int | None:
    """Memory of one local device in bytes; the machine's memory where the device is the CPU; None if unknown."""
    import jax

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None and jax.default_backend() == "cpu":
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/meminfo").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("MemTotal:")).split()[1]) * 1024
    return limit


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"reangle_jax": reangle_jax.__version__, "python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def devices() -> dict[str, Any]:
    """Platform, kind and number of the devices."""
    import jax

    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def human_bytes(count: float) -> str:
    """``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def human_seconds(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 4 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
