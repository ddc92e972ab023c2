"""What a run used: memory peaks, versions, devices."""

import contextlib
import importlib.metadata
import platform
import resource
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import reangle_jax

SAMPLE_SECONDS = 0.2  # between two looks at what the devices hold


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


class Meter:
    """Time and memory of one piece of work after another.

    XLA keeps one peak for the whole process. Where it rose during a piece of work it is that work's own. Where an
    earlier one was higher nobody knows: what is allocated is sampled, which may miss what was held for a moment.
    """

    def __init__(self) -> None:
        self._sampler: threading.Thread | None = None
        self._closed = threading.Event()
        self.start()

    def start(self) -> None:
        """Begins a piece of work."""
        self._began = time.monotonic()
        reset_host_peak()
        self._peak_before, self._largest = device_bytes("peak_bytes_in_use"), device_bytes("bytes_in_use")
        if self._largest is not None and self._sampler is None:
            self._sampler = threading.Thread(target=self._sample, name="memory", daemon=True)
            self._sampler.start()

    def read(self) -> dict[str, Any]:
        """What the work has taken since `start`, as run.json holds it; None where it is not known."""
        self._see()
        peak = device_bytes("peak_bytes_in_use")
        return {
            "seconds": round(time.monotonic() - self._began, 3),
            "peak_host_bytes": host_peak_bytes(),
            "peak_device_bytes": peak if peak is not None and peak > (self._peak_before or 0) else None,
            "sampled_device_bytes": self._largest,
        }

    def close(self) -> None:
        """Ends the sampling."""
        self._closed.set()
        if self._sampler is not None:
            self._sampler.join()

    def _sample(self) -> None:
        while not self._closed.wait(SAMPLE_SECONDS):
            self._see()

    def _see(self) -> None:
        now = device_bytes("bytes_in_use")
        if now is not None:
            self._largest = max(now, self._largest or 0)


def together(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What two parts of one piece of work took, each as `Meter.read` gives it: their time, and the larger peaks."""
    found = {key: max(filter(None, (first.get(key), value)), default=None) for key, value in second.items()}
    return {**found, "seconds": round(first["seconds"] + second["seconds"], 3)}


def peak_bytes(record: Mapping[str, Any]) -> int:
    """The most memory that work took, of what `Meter.read` gave: on the device if that is known, on the host if not."""
    return record.get("peak_device_bytes") or record.get("sampled_device_bytes") or record["peak_host_bytes"]


def device_bytes(statistic: str) -> int | None:
    """The largest of the local devices' values, in bytes; None where devices do not tell (CPU).

    The statistic is ``bytes_in_use``, or ``peak_bytes_in_use``, the largest since the process began.
    """
    if "jax" not in sys.modules:
        return None
    import jax

    values = [_statistics(device).get(statistic) for device in jax.local_devices()]
    return max((value for value in values if value is not None), default=None)


def _statistics(device: Any) -> dict[str, int]:
    try:
        return device.memory_stats() or {}
    except (NotImplementedError, RuntimeError):  # a platform that does not count
        return {}


def device_limit_bytes() -> int | None:
    """Memory of one local device in bytes; what this process may use where the device is the CPU; None if unknown."""
    import jax

    limit = _statistics(jax.local_devices()[0]).get("bytes_limit")
    return host_limit_bytes() if limit is None and jax.default_backend() == "cpu" else limit


def host_limit_bytes() -> int | None:
    """Memory that this process may use: the machine's, its container's or its own limit (``ulimit -v``)."""
    limits = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(int(next(line for line in lines if line.startswith("MemTotal:")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" where there is none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    return min(limits, default=None)


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
    return f"{count:.1f} GiB" if count < 10240 else f"{count / 1024:.1f} TiB"


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
