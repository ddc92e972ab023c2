"""From a ConfigDict, a dict or the words of a command line to `Settings`; what is impossible is refused here."""

import ast
import dataclasses
import difflib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from reangle_jax.backbones import registry
from reangle_jax.cameras import views as camera_views
from reangle_jax.config.rules import Rule, multiple_of
from reangle_jax.config.settings import AUTO, TRAIN_VIEWS, VIEWS, Settings
from reangle_jax.data import lora_files
from reangle_jax.data.paths import user_path
from reangle_jax.errors import InputError, about
from reangle_jax.painters import registry as painters

# The types of settings, in words.
KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    str | float: "a word or a number",
    tuple[str, ...]: "a tuple of strings, ('left:10', 'up:8')",
    tuple[float, ...]: "a tuple of numbers, (0.9, 0.95)",
}
UNTUNED = "untuned"  # ends the names of units beside the views' own
RESERVED_NAMES = ("edit", "input")  # and these are units' and tracks' of no view
_LONGEST_VALUE = 200  # characters of a value in an error
_LONGEST_NAME = 150  # of a view's folder; file systems take 255, with what is added to it
_SWITCH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def leaves(cls: type = Settings, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Dotted key and field of every setting, in order; see `reangle_jax.config.settings.setting`."""
    for field in dataclasses.fields(cls):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def parse(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Settings:
    """Checks a ConfigDict (or nested dict) and gives typed settings.

    Values are converted only where nothing is lost: an int for a float, a float that is whole for an int, a list for a
    tuple, ``"260"`` for a number where a word is also allowed.

    Raises:
        InputError: an unknown or missing key, a wrong type, an impossible value; it names ``config.KEY``, what it got,
            and what is allowed.
    """
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    settings = _build(Settings, values, "config")
    if not settings.video:
        raise InputError("config.video is not set: give a video file or a folder of frames, --config.video=FILE")
    flat = flatten(settings)
    for key, field in leaves():
        if field.metadata["rule"] is not None:
            _require(key, flat[key], field.metadata["rule"])
    grid = registry.ENTRIES[settings.model].grid
    _require("num_frames", settings.num_frames, multiple_of(grid.frames, plus=1))
    _require("height", settings.height, multiple_of(grid.multiple))
    _require("width", settings.width, multiple_of(grid.multiple))
    _check_depth(settings)
    settings = _of_mode(settings)
    _check_cameras(settings)
    _check_first_frames(settings)
    from reangle_jax import mesh  # late: it brings jax

    mesh.parse(settings.mesh)
    for lora in settings.loras:
        lora_files.choice(lora)
    return settings


def type_of(key: str) -> Any:
    """The type of a setting, by its dotted key without ``config.``; None if there is no such setting."""
    return next((field.type for name, field in leaves() if name == key), None)


def from_text(key: str, text: str) -> Any:
    """The value that a command line gives to a setting, by its dotted key without ``config.``.

    The text is ``true``, ``17``, ``left:10,up:5`` or ``('left:10', 'up:5')``, as the setting's type has it.

    Raises:
        InputError: there is no such setting, or the text is of another type.
    """
    kinds: dict[str, Any] = {name: field.type for name, field in leaves()}
    name = f"config.{key}"
    if key not in kinds:
        group = next((known for known in kinds if known.startswith(f"{key}.")), None)
        if group is not None:
            raise InputError(f"{name}={text!r} has the wrong type: set it key by key, as in --config.{group}=...")
        raise _unknown("config", key, kinds)
    kind = kinds[key]
    try:
        if kind is bool:
            return _SWITCH[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind in (tuple[str, ...], tuple[float, ...]):
            return _tuple(text, is_number=kind == tuple[float, ...])
    except (KeyError, ValueError, SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{name}={shown(text)} has the wrong type: it must be {KINDS[kind]}") from None
    return text


def shown(value: Any) -> str:
    """A value within an error's one line, whatever a config file gave."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python spells no whole number of more than 4300 digits
        return f"<{type(value).__name__} of too many digits>"
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def flatten(settings: Settings) -> dict[str, Any]:
    """Dotted key to plain JSON value, for run.json and fingerprints."""
    flat = {}
    for key, _ in leaves():
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name)
        flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def defaults() -> dict[str, Any]:
    """What every setting is where nobody says otherwise, the paper's where it says: keys and values as `flatten`'s."""
    return {key: list(f.default) if isinstance(f.default, tuple) else f.default for key, f in leaves()}


def from_flat(flat: Mapping[str, Any]) -> Settings:
    """The settings that `flatten` gave, which were checked then."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return _build(Settings, nested, "config")


def camera_wishes(s: Settings) -> Any:
    """How camera files are to be taken: `cameras.placing.Wishes`."""
    from reangle_jax.cameras import placing  # late: it brings jax

    return placing.Wishes(s.camera_frame, s.camera_scale, s.camera_resample)


def _require(key: str, value: Any, rule: Rule) -> None:
    if not rule.holds(value):
        raise InputError(f"config.{key}={shown(value)} is not possible: it must be {rule.words}{rule.mend(value)}")


def _unknown(prefix: str, key: str, known: Iterable[str]) -> InputError:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    words = f"did you mean {prefix}.{close[0]}?" if close else f"there are {', '.join(known)}"
    return InputError(f"{prefix}.{key} is not a setting: {words}")


def _tuple(text: str, *, is_number: bool) -> tuple:
    if text.strip()[:1] in ("(", "[", "'", '"'):
        value = ast.literal_eval(text.strip())
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(float(part) for part in parts) if is_number else tuple(parts)


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise _unknown(prefix, str(key), fields)
    result = {}
    for key, field in fields.items():
        name = f"{prefix}.{key}"
        if key not in values:
            raise InputError(f"{name} is missing: start the config from reangle_jax.config.get_default()")
        value = values[key]
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            if not isinstance(value, Mapping):
                raise InputError(f"{name} is a group of settings, not {shown(value)}: set its keys one by one")
            result[key] = _build(field.type, value, name)
        else:
            result[key] = _convert(value, field.type, name, is_path=field.metadata["is_path"])
    return cls(**result)


def _convert(value: Any, kind: Any, name: str, *, is_path: bool = False) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is int and is_number and value == int(value):
        return int(value)
    if kind in (float, str | float) and is_number:
        return float(value)
    if kind is str and isinstance(value, str):
        return user_path(value, name) if is_path else value
    if kind == (str | float) and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if kind == tuple[str, ...] and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(_convert(v.strip(), str, name, is_path=is_path) for v in value)
    if kind == tuple[float, ...] and isinstance(value, list | tuple):
        return tuple(_convert(v, float, name) for v in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    fault = f"has the wrong type ({type(value).__name__})" if finite else "is not finite"
    words = f"{fault}: it must be {KINDS[kind]}"
    raise InputError(f"{name}={shown(value)} {words}")


def _check_depth(s: Settings) -> None:
    if s.depth == "model":
        return
    if Path(s.depth).suffix.lower() not in (".npy", ".npz"):
        words = "it must be model, or a .npy or .npz file of T,H,W"
        raise InputError(f"config.depth={s.depth!r} is not possible: {words}")
    if not Path(s.depth).is_file():
        raise InputError(f"config.depth: no such file: {s.depth}")


def _of_mode(s: Settings) -> Settings:
    """With the mode's own views where they are auto."""
    views, train_views = (
        defaults[s.mode] if given == AUTO else given
        for given, defaults in ((s.views, VIEWS), (s.train_views, TRAIN_VIEWS))
    )
    return dataclasses.replace(s, views=views, train_views=train_views)


def _check_cameras(s: Settings) -> None:
    if not s.views:
        raise InputError("config.views is empty: give at least one, such as left:10")
    both: dict[str, str] = {}
    for key in ("views", "train_views"):
        for folder, view in _check_views(key, getattr(s, key), s).items():
            if both.setdefault(folder, view) != view:
                words = f"config.views has {both[folder]!r}, and both share the folder {folder}: rename a file"
                raise InputError(f"config.train_views: {view!r}: {words}")
    with about("config.prompts"):
        camera_views.read_prompts(s.prompts, (*s.views, *s.train_views))
    if s.source_cameras:
        from reangle_jax.cameras import registry as formats  # late: it brings jax

        with about("config.source_cameras"):
            formats.read(Path(s.source_cameras))


def _check_views(key: str, views: tuple[str, ...], s: Settings) -> dict[str, str]:
    """The views by their folders."""
    from reangle_jax.cameras import placing  # late: they bring jax
    from reangle_jax.cameras import registry as formats
    from reangle_jax.geometry import trajectories

    folders: dict[str, str] = {}
    for view in views:
        with about(f"config.{key}"):
            if camera_views.is_file(view):
                placing.check_count(formats.read(Path(view)), camera_wishes(s), s.num_frames, s.mode)
            else:
                trajectories.parse_view(view)
        folder = camera_views.folder_name(view)
        if not 0 < len(folder) <= _LONGEST_NAME:
            words = (
                f"the view's folder would be called {folder[:40]!r}: give it a name of 1 to {_LONGEST_NAME} characters"
            )
            raise InputError(f"config.{key}: {view[:40]!r}: {words}")
        if folder in RESERVED_NAMES or folder.endswith(f"_{UNTUNED}"):
            raise InputError(f"config.{key}: {view!r}: a run has something else called {folder}: rename the file")
        if folder in folders:
            mend = "keep one, or rename a file"
            raise InputError(f"config.{key}: {folders[folder]!r} and {view!r} share the folder {folder}: {mend}")
        folders[folder] = view
    return folders


def _check_first_frames(s: Settings) -> None:
    order, given = s.first_frames.order, Path(s.first_frames.given)
    if order != AUTO and sorted(order) != sorted(s.views):
        words = f"it must be auto, or each of config.views once: {', '.join(s.views)}"
        raise InputError(f"config.first_frames.order={','.join(order)!r} is not possible: {words}")
    if s.first_frames.given:
        if not given.exists():
            raise InputError(f"config.first_frames.given: no such file or folder: {given}")
        if given.is_file() and s.edit.caption:
            words = f"{given} is the first frame as you edited it, and config.edit.caption asks for another: set one"
            raise InputError(f"config.first_frames.given: {words}")
    if s.first_frames.fewest > s.first_frames.candidates:
        words = f"it must be at most config.first_frames.candidates={s.first_frames.candidates}, or 0"
        raise InputError(f"config.first_frames.fewest={s.first_frames.fewest} is not possible: {words}")
    if s.first_frames.strength < 1 and not s.first_frames.infill:
        words = "less than 1 begins at the filled warp: set config.first_frames.infill=True too, or 1 here"
        raise InputError(f"config.first_frames.strength={s.first_frames.strength:g} is not possible: {words}")
    if s.edit.caption and not painters.ENTRIES[s.first_frames.model].edits:
        able = " or ".join(name for name, entry in painters.ENTRIES.items() if entry.edits)
        words = f"{s.first_frames.model} only fills holes: set config.first_frames.model to {able}"
        raise InputError(f"config.edit.caption: {words}")
    if s.edit.skip >= s.edit.steps:
        words = f"it must be below config.edit.steps={s.edit.steps}"
        raise InputError(f"config.edit.skip={s.edit.skip} is not possible: {words}")
