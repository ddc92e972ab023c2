"""Several processes at one run: who they are, what process 0 tells the others, how all stop and end together.

Process 0 owns the run's folder and reads the user's files. The others follow it: they get settings, files and work from
it (:meth:`Team.tell`, :meth:`Team.share`), take the same steps, and write into a folder of their own that goes when
they end. Small messages go through the coordination service of `jax.distributed`, files through the devices.

A process that ends without the others' knowing would leave them waiting: whoever ends first says so with its exit code,
and all end with that one. One that dies without a word is missed after `LOST` seconds, and named; with process 0 the
service dies, and JAX itself ends the others at once, with a stack trace.
"""

import contextlib
import glob
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reangle_jax import heartbeat
from reangle_jax.data import blocks as file_blocks
from reangle_jax.errors import InputError

LOST = 25.0  # seconds without a sign of life after which a process counts as lost
HEARTBEAT = 50  # the same by JAX, which ends the others then: after they could end by themselves
GRACE = 10.0  # seconds that a process has to end by itself, when another one has ended
BLOCK = 4 << 20  # bytes of files that go through the devices at once
_POLL = 0.2  # seconds between two looks at whether another process has ended
_WAIT = 1000  # milliseconds that a call of the service may take before Python looks at signals again
# What collectives say of a connection to a process that is no more: gloo's and NCCL's words.
_BROKEN = re.compile("connection (closed|reset|refused)|broken pipe|socket closed|timed out|remote process exit", re.I)
_VARIABLES = ("REANGLE_COORDINATOR", "REANGLE_PROCESSES", "REANGLE_PROCESS")

_log = logging.getLogger(__name__)


def options(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told; None where there is one process, {} where JAX finds it all.

    In this order: REANGLE_COORDINATOR=HOST:PORT with REANGLE_PROCESSES=N and REANGLE_PROCESS=K; a step of SLURM's srun
    or Open MPI's mpirun with several tasks; several hosts of a TPU slice.

    Raises:
        InputError: the first three are not all given, or not possible.
    """
    given = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    if given:
        return _explicit(given)
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "1") not in ("", "0", "1"):
            return {}
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or environment.get("MEGASCALE_NUM_SLICES", "1") != "1":
        return {}
    return {} if _on_tpu_vm(environment) else None


def _explicit(given: Mapping[str, str]) -> dict[str, Any] | None:
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        raise InputError(f"{', '.join(given)} without {', '.join(missing)}: give all three, or none")
    address, count, index = (given[name] for name in _VARIABLES)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"REANGLE_COORDINATOR={address} is not possible: it must be HOST:PORT of process 0")
    if not (count.isdecimal() and index.isdecimal() and 0 <= int(index) < int(count)):
        words = "the processes are counted from 0, as in REANGLE_PROCESSES=2 REANGLE_PROCESS=0"
        raise InputError(f"REANGLE_PROCESSES={count} REANGLE_PROCESS={index} is not possible: {words}")
    if int(count) == 1:
        return None
    found = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    return {**found, "cluster_detection_method": "deactivate"}


def _on_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether this may be a host of a larger slice, whose hosts know of each other from their metadata server."""
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


class Team:
    """The processes of a run, as one of them sees them; by itself alone.

    Attributes:
        index: this one's number.
        count: how many there are.
        folder: of one that follows, its own; it goes when the process ends.
    """

    index = 0
    count = 1
    folder: Path | None = None

    @property
    def owns(self) -> bool:
        """Whether this process owns the run's folder."""
        return self.index == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def tell(self, value: Any = None) -> Any:
        """A JSON value from process 0 to all: what the others give does not count. Each calls it in the same order."""
        return value

    def share(self, root: Path, names: Sequence[str]) -> None:
        """Files below process 0's own folder, ``root``, come to lie below the others', but for what they have already.

        Process 0 gives their names, relative to it.
        """

    def sees(self, folder: Path) -> bool:
        """Whether all processes see process 0's folder, which need not be so."""
        del folder
        return True

    def unanimous(self, holds: bool) -> bool:
        """Whether something holds for every process; all wait for each other's word, and ask in the same order."""
        return holds

    def agree(self, signum: int) -> int:
        """The signal that stops all, or 0: the same answer to all processes that ask for the n-th time."""
        return signum

    def claim(self, code: int) -> bool:
        """Whether this process is the first to end, with an exit code; if not, another one has said why."""
        del code
        return True

    def blame(self, error: Exception) -> None:
        """Does not return where an error is another process's being lost, which is then told in its place."""

    def run(self, command: Callable[[], int]) -> int:
        """Runs a command's work and gives its exit code; several processes end together."""
        return command()


ALONE = Team()


def join() -> Team:
    """Meets the other processes, if there are any; before anything is computed.

    Raises:
        InputError: the environment is not possible, or they cannot be met.
    """
    found = options(os.environ)
    if found is None:
        return ALONE
    import jax  # late: alone, nothing here needs it

    try:
        jax.distributed.initialize(**found, heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:  # a TPU's host that nobody told of others
        _log.info("one process: %s", error)
        return ALONE
    except RuntimeError as error:
        words = str(error).splitlines()[0]
        raise InputError(
            f"the processes of this run cannot meet ({words}): see that each is started with the same "
            "REANGLE_COORDINATOR (or by srun, mpirun, on each host of the slice), a number of its own, and that the "
            "port is free"
        ) from None
    if jax.process_count() == 1:
        return ALONE
    if jax.default_backend() == "cpu":
        # XLA's CPU programs have their collectives in one order by a resource that these share. One that is read back
        # from the cache has lost it between a loop and what is around that (WhileThunkFromProto in XLA's
        # backends/cpu/runtime/thunk_proto_serdes.cc makes another for the loop), and a process takes the one or the
        # other first: gloo, which puts no tags on messages, then gives one collective another's. Programs for GPUs and
        # TPUs have their order in themselves.
        jax.config.update("jax_enable_compilation_cache", False)
    return Several()


class Ended(BaseException):
    """Another process has ended: this one ends, too, and says nothing."""


class Several(Team):
    """One of several processes that have met."""

    def __init__(self) -> None:
        import jax
        from jax._src import distributed  # JAX's public interface gives no handle on its key-value store

        self.index, self.count = jax.process_index(), jax.process_count()
        self._client: Any = distributed.global_state.client
        self._told = self._asked = self._votes = 0
        self._shared: dict[str, tuple[int, int]] = {}
        self._ended: int | None = None  # the exit code of the process that ended first
        self._lost: list[int] = []  # those that nobody waits for any more
        self._heartbeat = heartbeat.Heartbeat(self._client, self.index, self.count, LOST)
        self._leaving = threading.Lock()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="team", daemon=True)
        self._watcher.start()

    # Messages.

    def tell(self, value: Any = None) -> Any:
        """See `Team.tell`."""
        key = f"reangle/told/{self._told}"
        self._told += 1
        if self.owns:
            self._client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(self._get(key))

    def unanimous(self, holds: bool) -> bool:
        """See `Team.unanimous`."""
        key = f"reangle/votes/{self._votes}"
        self._votes += 1
        if not self.owns:
            self._client.key_value_set(f"{key}/{self.index}", json.dumps(bool(holds)))
            return self.tell()
        others = [json.loads(self._get(f"{key}/{index}")) for index in range(1, self.count)]
        return self.tell(bool(holds) and all(others))

    def _get(self, key: str) -> str:
        """Waits for a value that another process sets: as long as it works, since it may be at anything."""
        while True:
            if self._ended is not None:
                raise Ended
            try:
                return self._client.blocking_key_value_get(key, _WAIT)
            except Exception as error:  # JAX's own, of many names
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def agree(self, signum: int) -> int:
        """See `Team.agree`: process 0 decides, when it has heard of a signal to any."""
        key = f"reangle/stop/{self._asked}"
        self._asked += 1
        if self.owns:
            found = signum or next((int(text) for key, text in self._events().items() if "/stop/" in key), 0)
            self._client.key_value_set(key, str(found))
            return found
        if signum:
            self._client.key_value_set(f"reangle/events/stop/{self.index}", str(signum), allow_overwrite=True)
        return int(self._get(key))

    # Files.

    def share(self, root: Path, names: Sequence[str]) -> None:
        """See `Team.share`."""
        found: dict[str, int] = {}
        if self.owns:
            for name in dict.fromkeys(names):
                status = (root / name).stat()
                state = status.st_size, status.st_mtime_ns
                if self._shared.get(name) != state:
                    self._shared[name], found[name] = state, status.st_size
        found = self.tell(found)
        blocks = self._broadcast(file_blocks.read(root, found, BLOCK) if self.owns else None, sum(found.values()))
        if self.owns:
            for _ in blocks:
                pass
        else:
            file_blocks.write(root, found, blocks)

    def _broadcast(self, blocks: Iterator[bytes] | None, total: int) -> Iterator[bytes]:
        """Process 0's blocks of bytes, to all."""
        import numpy as np
        from jax.experimental import multihost_utils

        for start in range(0, total, BLOCK):
            size = min(BLOCK, total - start)
            block = np.zeros(BLOCK, np.uint8)
            if blocks is not None:
                block[:size] = np.frombuffer(next(blocks), np.uint8)
            yield multihost_utils.broadcast_one_to_all(block)[:size].tobytes()

    def sees(self, folder: Path) -> bool:
        """See `Team.sees`."""
        with tempfile.NamedTemporaryFile(dir=folder) if self.owns else contextlib.nullcontext() as token:
            name = self.tell(token.name if token else None)
            return self.unanimous(Path(name).exists())

    # The end.

    def claim(self, code: int) -> bool:
        """See `Team.claim`."""
        if self._end(code):
            return True
        for _ in range(round(GRACE / _POLL)):  # it is set already; or the service, and process 0 with it, is gone
            if self._ended is not None:
                return False
            time.sleep(_POLL)
        return True

    def _end(self, code: int, lost: Sequence[int] = ()) -> bool:
        """Says that the run ends; whether nobody has said so before."""
        try:
            self._client.key_value_set("reangle/events/end", json.dumps({"code": code, "by": self.index, "lost": lost}))
        except Exception:  # JAX's own, of many names: it is set already, or the service is gone
            return False
        return True

    def blame(self, error: Exception) -> None:
        """See `Team.blame`: it takes `LOST` seconds until that is known."""
        until = time.monotonic() + LOST + 5
        while _BROKEN.search(str(error)) and time.monotonic() < until:
            if self._ended is not None:
                raise Ended
            time.sleep(_POLL)

    def run(self, command: Callable[[], int]) -> int:
        """See `Team.run`."""
        code = 1
        try:
            code = command()
        except Ended:
            pass
        except BaseException:  # a bug's; Python, as it ends in good order, would wait for the others
            traceback.print_exc()
        if code == 0 and self._ended is None:
            self._clear()
            with contextlib.suppress(Exception):  # then another one has died at the very end, and the watch knows
                if self.owns:
                    self.tell(None)
                self._client.wait_at_barrier("reangle/done", 60_000)
                self._over.set()
                self._watcher.join()  # Python, as it ends, would find it inside of the service
                return 0
            code = 1
        self._leave(code if self._ended is None else self._ended)
        return code

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            ended = next((json.loads(text) for key, text in self._events().items() if key.endswith("/end")), None)
            if ended is not None:
                self._ended, self._lost = int(ended["code"]), ended["lost"]
                if ended["by"] == self.index and not self._lost:
                    return
                time.sleep(GRACE)  # the work may be about to end by itself, and what it saves to be whole
                self._leave(int(ended["code"]))
            lost = self._heartbeat.lost()
            if lost and self._end(1, lost):
                print(f"error: {heartbeat.farewell(lost, self.count, LOST)}", file=sys.stderr, flush=True)

    def _events(self) -> dict[str, str]:
        """What others have said that nobody waits for."""
        try:
            return dict(self._client.key_value_dir_get("reangle/events/"))
        except Exception:  # the service ends, or has nothing yet
            return {}

    def _leave(self, code: int) -> None:
        """Ends this process at once: its work may be waiting, inside of a library, for one that is no more."""
        self._leaving.acquire()
        self._clear()
        with contextlib.suppress(Exception):
            rest = [index for index in range(self.count) if index not in self._lost]
            self._client.wait_at_barrier("reangle/left", round(2 * GRACE * 1000), rest)
        if self.owns:
            time.sleep(0.5)  # the answers to the others are on their way
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    def _clear(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
