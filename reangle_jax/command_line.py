"""The command's arguments: every mistake one clear line."""

import dataclasses
import difflib
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from reangle_jax import config
from reangle_jax.config import table
from reangle_jax.data.paths import user_path
from reangle_jax.errors import InputError

USAGE = """\
python -m reangle_jax.main --config FILE [--config.KEY=VALUE ...] --workdir DIR [--plan | --preview]
reangle ...           the same
reangle doctor        is everything here that a run needs?

New videos of the scene in one video, along other camera paths.

  --config FILE         settings: a file of configs/, such as configs/demo.py
  --config.KEY=VALUE    change one of them: --config.video=clip.mp4 --config.views=left:10,up:5 --config.seed=1
  --workdir DIR         where everything is written; the same command again continues there
  --plan                do nothing; print what each stage needs on this device, and what is done already
  --preview             depth and warps only
  --help                this text

Settings and their defaults:
"""
_FLAGS = ("config", "workdir", "plan", "preview")
_SWITCHES = ("plan", "preview")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line: the config file's ConfigDict with its changes, the run's folder, and what else is asked for.

    ``plan`` is to print the plan only, ``preview`` to make depth and warps only.
    """

    config: ml_collections.ConfigDict
    workdir: str
    plan: bool
    preview: bool


def wants_help(argv: Sequence[str]) -> bool:
    """Whether help is asked for."""
    return any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:])


def usage() -> str:
    """The text of --help."""
    return USAGE + "\n".join(table.help_lines())


def parse(argv: Sequence[str]) -> Command:
    """Reads a command line, the program's name first: flags in any order, the last of each counts.

    ``--NAME VALUE`` is ``--NAME=VALUE``, ``--NAME`` and ``--noNAME`` turn a switch on and off, one hyphen does for two.

    Raises:
        InputError: anything about it that cannot be used.
    """
    given = _pairs(argv[1:])
    if "config" not in given:
        raise InputError("--config is not set: give a file of settings, such as --config=configs/demo.py")
    settings = _load(user_path(given.pop("config"), "--config"))
    workdir = given.pop("workdir", "")
    plan, preview = (_is_on(name, given.pop(name, "false")) for name in _SWITCHES)
    for name, text in given.items():
        _change(settings, name.removeprefix("config."), text)
    if not workdir:
        raise InputError("--workdir is not set: give the folder to write to, --workdir=runs/first")
    if plan and preview:
        raise InputError("--plan and --preview exclude each other: give one")
    return Command(settings, user_path(workdir, "--workdir"), plan, preview)


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    """Name, without hyphens, to text of each flag."""
    given, waiting = {}, list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        name, has_value, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            raise InputError(f"{argument!r} is no flag: every argument is --NAME=VALUE (see --help)")
        if not has_value and name.startswith("no") and _is_switch(name[2:]):
            name, text = name[2:], "false"
        elif not has_value and _is_switch(name):
            text = "true"
        elif name not in _FLAGS and not name.startswith("config."):
            close = difflib.get_close_matches(name, _FLAGS, n=1)
            hint = f". Did you mean: {close[0]} ?" if close else ""
            raise InputError(f"Unknown command line flag '{name}'{hint} (see --help)")
        elif not has_value and not waiting:
            raise InputError(f"Missing value for flag --{name} (see --help)")
        elif not has_value:
            text = waiting.pop()
        given[name] = text
    return given


def _is_switch(name: str) -> bool:
    return name in _SWITCHES or config.type_of(name.removeprefix("config.")) is bool


def _is_on(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"flag --{name}={text}: it must be true or false, or be left without a value")
    return text.lower() == "true"


def _load(file: str) -> ml_collections.ConfigDict:
    """What a config file's get_config() gives."""
    if not Path(file).is_file():
        raise InputError(
            f"--config: no such file: {file}: the repository's configs/ holds some, such as configs/demo.py"
        )
    try:
        names = runpy.run_path(file)
        if "get_config" not in names:
            raise AttributeError("it has no get_config()")
        settings = names["get_config"]()
    except Exception as error:  # the file is the user's code: whatever it raises is about that file
        raise InputError(f"--config {file} cannot be used: {type(error).__name__}: {_last(error)}") from None
    if not isinstance(settings, ml_collections.ConfigDict):
        raise InputError(f"--config {file}: its get_config() must return reangle_jax.config.get_default()")
    return settings


def _change(settings: ml_collections.ConfigDict, key: str, text: str) -> None:
    value = config.from_text(key, text)
    *groups, leaf = key.split(".")
    target: Any = settings
    try:
        for group in groups:
            target = target[group]
        with target.ignore_type():
            target[leaf] = value
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"config.{key}: the config file has no such key: start it from get_default()") from None


def _last(error: Exception) -> str:
    """The last line of an error's text."""
    return (str(error).strip().splitlines() or [""])[-1]
