"""Is everything here that a run needs? A line for each thing, with the mend where it is missing.

reangle doctor [DIR ...] [--workdir DIR]
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from reangle_jax import commands, compilation_cache, measure, stopping, tiny
from reangle_jax.backbones import registry as backbones
from reangle_jax.data.paths import expand
from reangle_jax.data.weights_folder import CONFIG, check_whole, read_config
from reangle_jax.errors import InputError
from reangle_jax.painters import registry as painters

DISTRIBUTION = "reangle-jax"
LEAST_DISK = 1 << 30  # bytes; adapters of full size and their optimiser's state alone are more
INSTALL = "pip install -e . in the repository"
# Devices that the system has, and what JAX must be installed with to use them.
ACCELERATORS = (("/dev/nvidia0", "an NVIDIA GPU", "cuda"), ("/dev/accel0", "a TPU", "tpu"))
SCORE = ("dust3r", "featup")


class Finding(NamedTuple):
    """One thing that was looked at, how it is, and what to do about it; empty where it is well.

    An ``optional`` one is not here, and only some settings need it.
    """

    thing: str
    text: str
    mend: str = ""
    optional: bool = False

    def __str__(self) -> str:
        mark = "-" if self.optional else "MISSING" if self.mend else "ok"
        return f"{mark:7}  {self.thing}: {self.text}{self.mend and f': {self.mend}'}"


def packages() -> Iterator[Finding]:
    """Python's version, and that of each package that a run imports, against what setup.py asks for."""
    try:
        asked = importlib.metadata.requires(DISTRIBUTION) or []
        python = str(importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"])
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", f"{DISTRIBUTION} is not installed, so that nothing says what it needs", INSTALL)
        return
    here = platform.python_version()
    yield Finding("python", here, "" if _within(here, SpecifierSet(python)) else f"install Python {python}")
    well = []
    for wanted in map(Requirement, asked):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        name, mend = wanted.name, f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "is not installed", mend)
            continue
        if _within(version, wanted.specifier):
            well.append(f"{name} {version}")
        else:
            yield Finding(name, f"is {version}", mend)
    # Not asked for by name, but what jax computes with.
    well[1:1] = [f"jaxlib {version}" for name, version in measure.versions().items() if name == "jaxlib"]
    yield Finding("packages", ", ".join(well))


def _within(version: str, wanted: SpecifierSet) -> bool:
    return wanted.contains(version, prereleases=True)  # who has a nightly build means it


def devices() -> Iterator[Finding]:
    """What computes, its memory, and an accelerator that JAX does not use."""
    try:
        found = measure.devices()
    except (ImportError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        yield Finding("devices", f"JAX finds none ({why})", "install the extra for them, or set JAX_PLATFORMS=cpu")
        return
    yield Finding("devices", f"{found['count']} x {found['kind']} ({found['platform']})")
    limit = measure.device_limit_bytes()
    where = "of this process" if found["platform"] == "cpu" else "of one device"
    yield Finding("memory", f"{measure.human_bytes(limit)} {where}" if limit else "not told by the device")
    if found["platform"] == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        for path, name, extra in ACCELERATORS:
            if os.path.exists(path):
                yield Finding("devices", f"JAX does not use {name}, which is here", f"pip install -e '.[{extra}]'")


def ffmpeg() -> Finding:
    """FFmpeg's libraries, which PyAV brings, and the encoder of the videos."""
    mend = "pip install --force-reinstall av, whose wheels bring them"
    try:
        import av

        av.Codec("libx264", "w")
    except (ImportError, ValueError) as error:  # a codec that is unknown: a ValueError
        return Finding("ffmpeg", f"its libraries or their H.264 encoder are not here ({error})", mend)
    version = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return Finding("ffmpeg", f"libavcodec {version}, with libx264")


def disk(workdir: str) -> Iterator[Finding]:
    """Room where runs go, and where compiled programs are kept."""
    yield _room("runs", Path(workdir).absolute(), "choose another --workdir")
    compilation_cache.use()
    cache = compilation_cache.folder()
    if cache is None:
        mend = "give --config.compilation_cache=DIR"
        yield Finding("compiled programs", "are not kept: the user's cache folder cannot be used", mend)
    else:
        yield _room("compiled programs", Path(cache).absolute(), "give --config.compilation_cache=DIR")


def _room(thing: str, folder: Path, otherwise: str) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding(thing, f"{there} cannot be written", otherwise)
    free = shutil.disk_usage(there).free
    mend = f"free some, or {otherwise}" if free < LEAST_DISK else ""
    return Finding(thing, f"{measure.human_bytes(free)} free for {folder}", mend)


def weights(folders: Sequence[str]) -> Iterator[Finding]:
    """The small family's weights, those that runs look for in ``weights/``, and those in given folders."""
    parts = ("depth", *backbones.ENTRIES["tiny"].parts, *painters.ENTRIES["tiny"].parts, *SCORE)
    small = list(dict.fromkeys(parts))  # both have a text encoder
    missing = [part for part in small if not (tiny.WEIGHTS / part / CONFIG).is_file()]
    mend = f"{INSTALL}, from a whole checkout"
    if missing:
        yield Finding("small weights", f"{tiny.WEIGHTS} has no {', '.join(missing)}", mend)
    else:
        yield _whole("small weights", tiny.WEIGHTS, [tiny.WEIGHTS / part for part in small], mend)
    for name in (*backbones.ENTRIES, *painters.ENTRIES):
        folder = Path("weights") / name
        if name != "tiny" and folder.is_dir():
            yield _in_folder(folder)
        elif name != "tiny":
            how = f"--config.model={name}" if name in backbones.ENTRIES else f"--config.first_frames.model={name}"
            command = f"python -m converters {name} --source SOURCE --out {folder}"
            yield Finding(name, f"not in {folder}; {how} alone needs it", f"`{command}`", optional=True)
    for folder in folders:
        yield _in_folder(Path(folder))


def _in_folder(folder: Path) -> Finding:
    parts = sorted(path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}{CONFIG}"))
    if not parts:
        mend = "give a folder that `python -m converters` wrote"
        return Finding(f"weights in {folder}", "none are there", mend)
    return _whole("weights", folder, parts, "see `python -m converters --help`")


def _whole(thing: str, folder: Path, parts: Sequence[Path], mend: str) -> Finding:
    names = []
    for part in parts:
        try:
            check_whole(part)
            names.append(f"{part.relative_to(folder)} ({read_config(part).get('class')})")
        except InputError as error:
            return Finding(thing, str(error), mend)
    return Finding(thing, f"{folder}: {', '.join(names)}, whole")


def main(argv: Sequence[str]) -> int:
    """Looks at everything and gives the exit code: 0 where all is well, 2 where something is missing.

    Raises:
        InputError: the arguments, those after the command's name, cannot be used.
    """
    description = "Devices, memory, versions, FFmpeg's libraries, room on the disk and weights: a line each."
    parser = commands.Parser(prog="reangle doctor", description=description)
    parser.add_argument("weights", metavar="DIR", nargs="*", help="folders of converted weights to look at, too")
    parser.add_argument("--workdir", metavar="DIR", default=".", help="where runs are to go (here)")
    arguments = parser.parse_args(argv)
    expand(arguments, "workdir", "weights")
    found = []
    for part in (packages(), devices(), [ffmpeg()], disk(arguments.workdir), weights(arguments.weights)):
        for finding in part:
            print(finding, flush=True)
            found.append(finding)
    return 2 if any(finding.mend and not finding.optional for finding in found) else 0


if __name__ == "__main__":
    stopping.run(lambda: commands.answer(lambda stop: main(sys.argv[1:])))
