"""The run's folder: one process at a time works in it, and what a killed one left half-written is cleared."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reangle_jax.data import files
from reangle_jax.errors import InputError

RECORD = "run.json"
INDEX = ".hashes.json"  # what was read of files that are untouched need not be read again
_FORMAT = 1

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(root: Path) -> Iterator[None]:
    """Makes and locks the folder, and clears leftovers.

    Raises:
        InputError: it cannot be written, or another process works in it.
    """
    with files.own_folder(root, "--workdir"):
        for folder in (root, root / "input", *root.glob("views/*")):
            for path in files.remove_leftovers(folder):
                _log.info("removed the unfinished %s", path)
        yield


def read_record(root: Path) -> dict[str, Any]:
    """The content of run.json, with what is damaged in it left out.

    Returns:
        ``stages`` by name; ``devices``, ``settings`` and ``added`` if they are known. All else is written anew.

    Raises:
        InputError: it is there and cannot be read.
    """
    path, record = root / RECORD, None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {"format": _FORMAT, "stages": {}}
    except (ValueError, RecursionError):
        _log.warning("%s is damaged: everything will be redone", path)
    except OSError as error:
        words = f"--workdir {root}: its {RECORD} cannot be read ({error.strerror})"
        raise InputError(f"{words}: move it away, or choose another folder") from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT or not isinstance(record.get("stages"), dict):
        return {"format": _FORMAT, "stages": {}}
    stages = {name: entry for name, entry in record["stages"].items() if _is_entry(entry)}
    for name in sorted(record["stages"].keys() - stages.keys()):
        _log.warning("%s: what it says of %s is damaged: that will be redone", path, name)
    kept = {key: value for key in ("devices", "settings") if _is_json(value := record.get(key))}
    added = record.get("added")
    if isinstance(added, list) and all(isinstance(key, str) for key in added):
        kept["added"] = added
    return {"format": _FORMAT, **kept, "stages": stages}


def _is_entry(entry: Any) -> bool:
    """Whether what a record says of a unit has the shape that the ledger gave it."""
    if not _is_json(entry) or not all(isinstance(entry.get(key), dict) for key in ("depends", "outputs")):
        return False
    known = [entry.get(key) for key in ("seconds", "peak_host_bytes")]
    known += [value for key in ("peak_device_bytes", "sampled_device_bytes") if (value := entry.get(key)) is not None]
    return all(isinstance(value, int | float) and abs(value) < 1e18 for value in known)


def _is_json(value: Any) -> bool:
    """Whether it is an object that can be written again: JSON has no infinities, though Python reads them."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return isinstance(value, dict)
