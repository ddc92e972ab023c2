"""One run by several processes of this machine: one for each GPU, or on CPUs with so many devices as are asked for.

    python launch/local.py --processes 2 -- --config configs/dynamic.py --workdir runs/first ...
    python launch/local.py --processes 2 --devices-per-process 4 -- ...        on CPUs, to try it

What follows ``--`` is `reangle_jax.main`'s command line. Process 0 speaks; what the others say has their number before
it. A signal goes to all; they end together with one exit code, and so does this one.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parents[1]))  # the code that it stands beside, as its processes do

from reangle_jax import commands
from reangle_jax.errors import InputError

MOST = 64  # processes of one machine: no machine has more GPUs
PATIENCE = 60.0  # seconds that the others have to end by themselves after one has ended in failure


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's flags, and those of the run."""
    own, _, flags = "\0".join(argv).partition("\0--\0") if "--" in argv[1:] else ("\0".join(argv), "", "")
    parser = commands.parser(__doc__)
    parser.add_argument("--processes", type=commands.whole(1, MOST), required=True, help="how many")
    parser.add_argument(
        "--devices-per-process",
        type=commands.positive,
        default=0,
        help="on CPUs: so many devices each; without it a GPU each",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be started")
    arguments, unknown = parser.parse_known_args([word for word in own.split("\0") if word])
    if unknown:
        raise InputError(f"unknown flag {unknown[0]}: the run's own flags follow -- (see --help)")
    return arguments, [word for word in flags.split("\0") if word]


def environments(processes: int, devices: int, port: int) -> list[dict[str, str]]:
    """What each process has in its environment beside this one's.

    Args:
        processes: how many.
        devices: of a CPU for each; 0: process K has GPU K.
        port: a free one of this machine.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names fewer GPUs than there are processes.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.split(",") if visible else [str(index) for index in range(processes)]
    if not devices and len(gpus) < processes:
        words = f"CUDA_VISIBLE_DEVICES={visible} names {len(gpus)} for --processes={processes}"
        raise InputError(f"each process takes a GPU, and {words}: name more, or start fewer")
    found = []
    for index in range(processes):
        own = {"REANGLE_COORDINATOR": f"127.0.0.1:{port}"}
        own |= {"REANGLE_PROCESSES": str(processes), "REANGLE_PROCESS": str(index)}
        if devices:
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
            own |= {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": flags.strip()}
        else:
            own["CUDA_VISIBLE_DEVICES"] = gpus[index]
        found.append(own)
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run(started_as: Sequence[Sequence[str]], environment: Sequence[Mapping[str, str]]) -> int:
    """Runs processes until all have ended; gives the exit code of the first that failed, or 0."""
    started: list[subprocess.Popen] = []
    readers = []

    def pass_on(signum: int, frame: object) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, pass_on)
    for index, (command, own) in enumerate(zip(started_as, environment, strict=True)):
        kept = None if index == 0 else subprocess.PIPE
        process = subprocess.Popen(
            command, env=os.environ | dict(own), stdout=kept, stderr=kept and subprocess.STDOUT, start_new_session=True
        )
        started.append(process)
        if process.stdout is not None:
            readers.append(threading.Thread(target=_prefix, args=(index, process.stdout), daemon=True))
            readers[-1].start()

    code = _wait(started)
    for reader in readers:
        reader.join(timeout=5)
    return code


def _wait(started: Sequence[subprocess.Popen]) -> int:
    code, since = 0, None
    while True:
        codes = [process.poll() for process in started]  # each is asked, whoever lives before it
        failed = [(index, code) for index, code in enumerate(codes) if code]
        if failed and since is None:
            (index, code), since = failed[0], time.monotonic()
            if code < 0:
                name = signal.Signals(-code).name
                print(f"process {index} was ended by {name}, and the others with it", file=sys.stderr, flush=True)
        if None not in codes:
            return code if code >= 0 else 128 - code
        if since is not None and time.monotonic() - since > PATIENCE:
            for process in started:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.1)


def _prefix(index: int, stream: IO[bytes]) -> None:
    for line in stream:
        sys.stderr.buffer.write(f"[{index}] ".encode() + line)
        sys.stderr.buffer.flush()


def main(argv: Sequence[str]) -> int:
    """Runs the command line and gives the exit code."""
    arguments, flags = parse(argv[1:])
    command = [sys.executable, "-m", "reangle_jax.main", *flags]
    environment = environments(arguments.processes, arguments.devices_per_process, free_port())
    if arguments.dry_run:
        for own in environment:
            print(" ".join(f"{key}={value!r}" for key, value in own.items()), *command)
        return 0
    return run([command] * arguments.processes, environment)


if __name__ == "__main__":
    commands.run(lambda: main(sys.argv))
