r"""Many clips by one command, each by a process of its own on a group of this machine's devices.

python -m reangle_jax.many CLIPS.txt --out DIR [--groups N] [--share K/N | --share auto] [--dry-run] -- FLAGS

A line of CLIPS.txt is a clip: its name, then flags of its own as `reangle_jax.main` takes them; ``#`` begins a remark::

    beach  --config.video=beach.mp4 --config.caption="a dog runs along a beach"
    street --config.video=street.mp4

FLAGS, such as ``--config configs/dynamic.py``, are every clip's. Each has its folder DIR/NAME and what it says in
DIR/NAME.log. One that fails does not end the others; the same command again continues those that are not done.
"""

import argparse
import contextlib
import glob
import itertools
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reangle_jax import commands, stopping
from reangle_jax.data.paths import user_path
from reangle_jax.errors import InputError
from reangle_jax.measure import human_seconds
from reangle_jax.stopping import Stop

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_CHIPS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # how so many TPU chips of a host lie
# Whatever the machine is part of: each clip's process is alone.
_ALONE = {"REANGLE_COORDINATOR": "localhost:1", "REANGLE_PROCESSES": "1", "REANGLE_PROCESS": "0"}
_PORT = 8476  # of a TPU process's controller: processes that share a host need one each

_log = logging.getLogger(__name__)


class Clip(NamedTuple):
    """A clip of the list: the name of its folder, and flags of its own."""

    name: str
    flags: tuple[str, ...]


def read(path: Path) -> list[Clip]:
    """The clips of a list.

    Raises:
        InputError: it cannot be read, a line of it cannot be used, or there are none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path} cannot be read ({why}): give a text file with a clip on each line") from None
    clips: dict[str, Clip] = {}
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}: close the quotation") from None
        if not words:
            continue
        name, flags = words[0], words[1:]
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}, line {number}: {name!r} is no name of a folder: begin the line with one")
        if name in clips:
            raise InputError(f"{path}, line {number}: there is a clip {name} above: give each a name of its own")
        if any(flag.lstrip("-").split("=")[0] == "workdir" for flag in flags):
            raise InputError(f"{path}, line {number}: --workdir follows from --out and the name: leave it out")
        clips[name] = Clip(name, tuple(flags))
    if not clips:
        raise InputError(f"{path} holds no clips: write one on each line, its name first")
    return list(clips.values())


def share_of(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which share of the list is this machine's, and of how many: ``K/N``, counted from 0, or ``auto``.

    That is this task's of a SLURM array, this pod's of an indexed job (with REANGLE_SHARES), of a slice's hosts this
    one's, or all, as the environment says.

    Raises:
        InputError: it is another form.
    """
    if text == "auto":
        first, last = (environment.get(f"SLURM_ARRAY_TASK_{end}", "0") for end in ("MIN", "MAX"))
        if "SLURM_ARRAY_TASK_ID" in environment:
            return int(environment["SLURM_ARRAY_TASK_ID"]) - int(first), int(last) - int(first) + 1
        if "JOB_COMPLETION_INDEX" in environment and "REANGLE_SHARES" in environment:
            pods, slices = int(environment["REANGLE_SHARES"]), int(environment.get("REANGLE_SLICES", "1"))
            index = int(environment.get("REANGLE_SLICE", "0")) * pods + int(environment["JOB_COMPLETION_INDEX"])
            return index, pods * slices
        hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
        return int(environment.get("TPU_WORKER_ID", "0")), len(hosts)
    share, _, shares = text.partition("/")
    if not (share.isdecimal() and shares.isdecimal() and int(share) < int(shares)):
        raise InputError(f"--share={text} is not possible: it must be auto, or K/N with K from 0 to N - 1")
    return int(share), int(shares)


def groups(count: int) -> list[dict[str, str]]:
    """What a process of each of so many groups of this machine's devices has in its environment.

    0 is one group for each GPU; of TPU chips or CPUs one in all.

    Raises:
        InputError: the devices do not divide into so many.
    """
    gpus, chips = _gpus(), sorted(glob.glob("/dev/accel[0-9]*")) or sorted(glob.glob("/dev/vfio/[0-9]*"))
    devices = gpus or [str(index) for index in range(len(chips))]
    count = count or max(1, len(gpus))
    if not devices or (gpus and count == 1):
        return [{} for _ in range(count)]
    each = len(devices) // count
    if each * count != len(devices) or (chips and not gpus and each not in _CHIPS):
        raise InputError(f"--groups={count}: {len(devices)} devices do not divide into so many: choose another number")
    parts = [",".join(devices[each * k : each * (k + 1)]) for k in range(count)]
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": part} for part in parts]
    own = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": _CHIPS[each]}
    own |= {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}
    return [
        {
            **own,
            "TPU_VISIBLE_CHIPS": part,
            "TPU_MESH_CONTROLLER_PORT": str(_PORT + k),
            "TPU_MESH_CONTROLLER_ADDRESS": f"localhost:{_PORT + k}",
        }
        for k, part in enumerate(parts)
    ]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [path.removeprefix("/dev/nvidia") for path in sorted(glob.glob("/dev/nvidia[0-9]*"))]


def command_of(clip: Clip, out: Path, flags: Sequence[str]) -> list[str]:
    """The command that makes a clip's folder: its own flags come last, and count."""
    return [sys.executable, "-m", "reangle_jax.main", *flags, *clip.flags, f"--workdir={out / clip.name}"]


def run(clips: Sequence[Clip], out: Path, flags: Sequence[str], places: Sequence[Mapping[str, str]], stop: Stop) -> int:
    """Makes every clip, so many at once as there are groups of devices.

    Returns:
        0 where all are done; else the exit code of the first that is not.

    Raises:
        Stopped: a signal came; it was passed on, and all have saved what they had done.
    """
    waiting, free = list(reversed(clips)), list(reversed(places))
    codes: dict[str, int] = {}
    told: set[str] = set()  # to stop
    at_work: dict[str, tuple[subprocess.Popen, Mapping[str, str], float]] = {}
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as logs, stop.at_safe_points():
        while at_work or (waiting and not stop.requested):
            while waiting and free and not stop.requested:
                clip, place = waiting.pop(), free.pop()
                log = logs.enter_context((out / f"{clip.name}.log").open("ab"))
                process = subprocess.Popen(
                    command_of(clip, out, flags),
                    env={**os.environ, **_ALONE, **place},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a terminal's Ctrl-C comes by this process alone
                )
                at_work[clip.name] = process, place, time.monotonic()
                _log.info("begin %s: %s", clip.name, log.name)
            for name, (process, place, since) in list(at_work.items()):
                if stop.requested and name not in told:
                    told.add(name)
                    process.terminate()
                if process.poll() is None:
                    continue
                codes[name] = process.returncode if process.returncode >= 0 else 128 - process.returncode
                del at_work[name]
                free.append(place)
                _log.info("%s in %s", _outcome(out, name, codes[name]), human_seconds(time.monotonic() - since))
            time.sleep(0.2)
    failed = {clip.name: codes[clip.name] for clip in clips if codes[clip.name]}
    for name, code in failed.items():
        print(_outcome(out, name, code), file=sys.stderr)
    print(f"{len(clips) - len(failed)} of {len(clips)} clips are done, in {out}", file=sys.stderr)
    return next(iter(failed.values()), 0)


def _outcome(out: Path, name: str, code: int) -> str:
    if code == 0:
        return f"{name}: done"
    lines = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    return f"{name}: exit code {code}: {last}"


def main(argv: Sequence[str]) -> int:
    """Runs a command line, the program's name first, and gives the exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    return commands.answer(lambda stop: _main(argv, stop))


def _main(argv: Sequence[str], stop: Stop) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    parser = commands.Parser(
        prog="reangle_jax.many", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("clips", help="the list")
    parser.add_argument("--out", required=True, help="where each clip gets its folder")
    parser.add_argument(
        "--groups", type=commands.positive, default=0, help="of devices: so many clips at once; a GPU each by default"
    )
    parser.add_argument(
        "--share", default="0/1", help="K/N: every N-th clip from the K-th on; auto: by SLURM or the job"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    given = parser.parse_args(list(argv[1:at]))
    share, shares = share_of(given.share, os.environ)
    clips, flags = read(Path(user_path(given.clips, "CLIPS.txt")))[share::shares], argv[at + 1 :]
    out, places = Path(user_path(given.out, "--out")), groups(given.groups)
    if given.dry_run:
        for clip, place in zip(clips, itertools.cycle(places)):
            print(*(f"{key}={value}" for key, value in place.items()), shlex.join(command_of(clip, out, flags)))
        return 0
    return run(clips, out, flags, places, stop)


if __name__ == "__main__":
    stopping.run(lambda: main(sys.argv))
