"""The command's flags: absl and ml_collections underneath, every mistake one clear line."""

import ast
import dataclasses
import difflib
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from reangle_jax import config
from reangle_jax.data.paths import user_path
from reangle_jax.errors import InputError

USAGE = """\
python -m reangle_jax.main --config FILE [--config.KEY=VALUE ...] --workdir DIR [--plan | --preview]

New videos of the scene in one video, along other camera paths.

  --config FILE         settings: a file of configs/, such as configs/demo.py
  --config.KEY=VALUE    change one of them: --config.video=clip.mp4 --config.views=left:10,up:5 --config.seed=1
  --workdir DIR         where everything is written; the same command again continues there
  --plan                do nothing; print what each stage needs on this device, and what is done already
  --preview             depth and warps only
  --help                this text

Settings and their defaults:
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        config: the config file's ConfigDict with the command line's changes.
        workdir: the run's folder.
        plan: print the plan only.
        preview: depth and warps only.
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
    lines = [f"  config.{key}={_spell(value)}" for key, value in _leaves(config.get_default()).items()]
    return USAGE + "\n".join(lines)


def parse(argv: Sequence[str]) -> Command:
    """Reads a command line, the program's name first.

    Raises:
        InputError: anything about it that cannot be used.
    """
    argv = [argv[0], *_config_first([_spell_tuple(_at_home(argument)) for argument in _joined(argv[1:])])]
    _check_config_file(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", "", "the run's folder", flag_values=values)
    flags.DEFINE_bool("plan", False, "print the plan only", flag_values=values)
    flags.DEFINE_bool("preview", False, "depth and warps only", flag_values=values)
    # ml_collections would run a second config file inside of the first one's module.
    sys.modules.pop("config_config", None)
    try:
        with warnings.catch_warnings():
            # ml_collections loads the file through an interface that Python means to remove.
            warnings.simplefilter("ignore", DeprecationWarning)
            rest = values(argv)
            settings = values["config"].value
    except (KeyError, AttributeError) as error:
        raise _unknown_key(argv, error) from None
    except flags.Error as error:
        raise InputError(_say_flag_error(str(error))) from None
    except Exception as error:  # the config file is the user's code: whatever it raises is about that file
        raise InputError(
            f"--config {_config_file(argv)} cannot be used: {type(error).__name__}: {_last(error)}"
        ) from None
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} is no flag: every argument is --NAME=VALUE (see --help)")
    if not isinstance(settings, ml_collections.ConfigDict):
        raise InputError(
            f"--config {_config_file(argv)}: its get_config() must return reangle_jax.config.get_default()"
        )
    workdir, plan, preview = str(values["workdir"].value), bool(values["plan"].value), bool(values["preview"].value)
    if not workdir:
        raise InputError("--workdir is not set: give the folder to write to, --workdir=runs/first")
    if plan and preview:
        raise InputError("--plan and --preview exclude each other: give one")
    return Command(settings, user_path(workdir, "--workdir"), plan, preview)


def _leaves(settings: ml_collections.ConfigDict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key in settings:  # in the order of definition
        value = settings[key]
        found |= (
            _leaves(value, f"{prefix}{key}.") if isinstance(value, ml_collections.ConfigDict) else {prefix + key: value}
        )
    return found


def _spell(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--config.video FILE`` becomes ``--config.video=FILE``: absl takes both, one form is easier to rewrite."""
    joined, waiting = [], None
    for argument in arguments:
        if waiting is not None:
            joined.append(f"{waiting}={argument}")
            waiting = None
        elif re.fullmatch(r"--?(config(\.[\w.]+)?|workdir)", argument) and not _is_switch(argument):
            waiting = argument
        else:
            joined.append(argument)
    return joined + ([waiting] if waiting is not None else [])


def _at_home(argument: str) -> str:
    """``--config=~/mine.py``, which shells leave as it is, with the home written out."""
    flag, equals, file = argument.partition("=")
    return f"{flag}={user_path(file, flag)}" if equals and re.fullmatch(r"--?config", flag) else argument


def _is_switch(argument: str) -> bool:
    return isinstance(_leaves(config.get_default()).get(argument.lstrip("-").removeprefix("config.")), bool)


def _config_first(arguments: list[str]) -> list[str]:
    """--config before the --config.KEY that change it, wherever the user put it."""
    is_file = [re.match(r"--?config(=|$)", argument) is not None for argument in arguments]
    first = [argument for argument, yes in zip(arguments, is_file, strict=True) if yes]
    return first + [argument for argument, yes in zip(arguments, is_file, strict=True) if not yes]


def _spell_tuple(argument: str) -> str:
    """``--config.views=left:10,up:5`` to ``--config.views=('left:10','up:5')``."""
    match = re.fullmatch(r"--?config\.([\w.]+)=(.*)", argument, re.DOTALL)
    default = _leaves(config.get_default()).get(match[1]) if match else None
    if not match or not isinstance(default, tuple) or match[2].strip()[:1] in ("(", "[", "'", '"'):
        return argument
    parts = [part.strip() for part in match[2].split(",") if part.strip()]
    if default and isinstance(default[0], float):
        parts = [_literal(part) for part in parts]
    return f"--config.{match[1]}={tuple(parts)!r}"


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _config_file(argv: Sequence[str]) -> str:
    return next((argument.partition("=")[2] for argument in argv if re.match(r"--?config=", argument)), "")


def _check_config_file(argv: Sequence[str]) -> None:
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv[1:]):
        raise InputError("--config is not set: give a file of settings, such as --config=configs/demo.py")
    name = _config_file(argv)
    if name and not Path(name.split(":")[0]).is_file():
        raise InputError(f"--config: no such file: {name}: configs/ holds some, such as configs/demo.py")


def _unknown_key(argv: Sequence[str], error: Exception) -> InputError:
    known = _leaves(config.get_default())
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known and match[1] not in config.get_default():
            close = difflib.get_close_matches(match[1], known, n=1, cutoff=0.5)
            mend = f"did you mean config.{close[0]}?" if close else f"there are {', '.join(known)}"
            return InputError(f"config.{match[1]} is not a setting: {mend}")
    return InputError(f"--config {_config_file(argv)} cannot be used: {type(error).__name__}: {_last(error)}")


def _say_flag_error(text: str) -> str:
    match = re.match(r"flag --(config\.([\w.]+))=(.*?): ", text, re.DOTALL)
    if not match:
        if text.startswith("flag --config="):
            return (
                f"{text.split(': ')[0].removeprefix('flag ')} cannot be used: {text.strip().splitlines()[-1].strip()}"
            )
        return f"{' '.join(text.split())} (see --help)"
    default = _leaves(config.get_default()).get(match[2])
    words = {bool: "true or false", int: "a whole number", float: "a number", tuple: "names with commas between them"}
    allowed = words.get(type(default), "set key by key, as in --config.finetune.steps=100")
    return f"{match[1]}={match[3]!r} has the wrong type: it must be {allowed}"


def _last(error: Exception) -> str:
    """The last line of an error's text."""
    return (str(error).strip().splitlines() or [""])[-1]
