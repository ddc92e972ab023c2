"""The models that settings choose: where their weights lie, and whether they can be the right ones and whole.

No tensor is read; what they are is checked when they are loaded (`checkpoints.load_into`).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reangle_jax import tiny
from reangle_jax.backbones import registry
from reangle_jax.config import Settings, read_window
from reangle_jax.data import lora_files
from reangle_jax.data.weights_folder import check_whole, read_config
from reangle_jax.errors import InputError, about
from reangle_jax.nn.choices import ATTENTION, REMATS, Choice
from reangle_jax.painters import registry as painters

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from reangle_jax.backbones.interface import Backbone, Demand
    from reangle_jax.needs import Shares
    from reangle_jax.painters.interface import Editing, Painter, Painting


_GIB = 2**30
ROOM = 0.95
"""Share of a device's memory that the plan's arithmetic may fill: it is within 3 % of a GPU's (docs: measured)."""
PAINTER_KEY = "config.first_frames.weights"
DEPTH = "depth-anything-v2-large"  # of the converters' names, what the documents take


def folder(settings: Settings, part: str) -> Path:
    """The folder of a part's converted weights, whether or not it exists; `part` is one of `parts`."""
    if part == "depth" and settings.depth_weights:
        return tiny.WEIGHTS / "depth" if settings.depth_weights == "tiny" else Path(settings.depth_weights)
    if settings.weights:
        return Path(settings.weights) / part
    return (tiny.WEIGHTS if settings.model == "tiny" else Path("weights") / settings.model) / part


def depth_key(settings: Settings) -> str:
    """The setting that names the depth network's folder."""
    return "config.depth_weights" if settings.depth_weights else "config.weights"


def folders(settings: Settings, *parts: str) -> tuple[tuple[str, Path], ...]:
    """Name and folder of each part."""
    return tuple((part, folder(settings, part)) for part in parts)


def of_model(settings: Settings) -> tuple[tuple[str, Path], ...]:
    """Name and folder of each part of the video model."""
    return folders(settings, *registry.ENTRIES[settings.model].parts)


def backbone(settings: Settings) -> "Backbone":
    """The video model that settings name. No parameter is read yet."""
    choice = dataclasses.replace(settings.execution, remat=remat(settings)[0])
    return _backbone(settings, choice)


def _backbone(settings: Settings, choice: Choice) -> "Backbone":
    entry = registry.ENTRIES[settings.model]
    return entry.load()(
        settings.model,
        dict(of_model(settings)),
        registry.Clip(settings.num_frames, settings.height, settings.width, settings.vae_tiles),
        settings.finetune.rank,
        settings.finetune.alpha,
        choice,
        settings.base_dtype,
    )


def _limit() -> int | None:
    """A device's memory in whole GiB: several processes must choose alike, whatever each driver keeps for itself."""
    from reangle_jax import measure  # late: it brings jax

    limit = measure.device_limit_bytes()
    return limit and limit // _GIB * _GIB


def remat(settings: Settings) -> tuple[str, str]:
    """What fine-tuning's blocks keep for the backward pass (`reangle_jax.nn.remat`), and why, in words."""
    import jax  # late: these two bring it

    from reangle_jax import measure

    chosen = settings.execution.remat
    if chosen != "auto":
        return chosen, "as set"
    limit = _limit()
    if limit is None:
        return ATTENTION, "this device does not say how much memory it has"
    work = demand(settings)
    # On CPUs reading everything back takes longer than computing what is cheap again.
    names = REMATS[: REMATS.index("none")] if jax.default_backend() == "cpu" else REMATS
    together = in_one_memory(work.training)
    peaks = {
        name: together
        * _backbone(settings, dataclasses.replace(settings.execution, remat=name)).needs(work)["finetune"].peak_bytes
        for name in names
    }
    # The fastest first; where another phase needs the most, what blocks keep costs nothing.
    name = next(name for name in reversed(names) if peaks[name] <= max(ROOM * limit, peaks["full"]))
    words = f"fine-tuning needs {measure.human_bytes(peaks[name])} of {measure.human_bytes(limit)}"
    more = names[names.index(name) + 1 :][:1]
    return name, "; ".join([words, *(f"{other} would need {measure.human_bytes(peaks[other])}" for other in more)])


def in_one_memory(shares: "Shares") -> int:
    """How many devices have their shares of work in one memory, and do them in turn: those of a process on a CPU."""
    import jax  # late: it takes a while

    return max(1, shares.all // jax.process_count()) if jax.default_backend() == "cpu" else 1


def demand(settings: Settings) -> "Demand":
    """How much a run asks of the video model."""
    from reangle_jax.backbones.interface import Demand  # late: these bring jax
    from reangle_jax.diffusion.guidance import is_guided

    return Demand(
        steps=settings.finetune.steps,
        batch_size=settings.finetune.batch_size,
        videos=1 + len(settings.train_views),
        sampling_steps=settings.sample.steps,
        guided=is_guided(settings.sample.guidance_scale),
        variants=2 if settings.evaluate.untuned else 1,
        training=_shares(lambda: _laid_out(settings, "finetune")),
        sampling=_shares(lambda: _laid_out(settings, "generate")),
    )


def at_once(settings: Settings, stage: str) -> int:
    """How many videos may lie beside each other in a stage of the video model: guidance compares two."""
    from reangle_jax.diffusion.guidance import is_guided  # late: it brings jax

    if stage == "finetune":
        return settings.finetune.batch_size
    return len(settings.views) * (1 + is_guided(settings.sample.guidance_scale))


def on_mesh(settings: Settings, stage: str) -> contextlib.AbstractContextManager[None]:
    """Within it the video model works on the mesh that settings choose for a stage, its base laid out as they say.

    Raises:
        InputError: as `reangle_jax.mesh.make_mesh` does.
    """
    from reangle_jax import mesh  # late: it brings jax

    made, base = _laid_out(settings, stage)
    return mesh.use(made, base=base)


def _laid_out(settings: Settings, stage: str) -> "tuple[Mesh, str]":
    from reangle_jax import mesh  # late: it brings jax

    made = mesh.make_mesh(settings.mesh, batch_size=at_once(settings, stage))
    size = _backbone(settings, settings.execution).base_bytes
    return made, mesh.base_layout(settings.base_layout, made, size, _limit())


def _shares(laid_out: "Callable[[], tuple[Mesh, str]]") -> "Shares":
    """The devices that divide work on a mesh, and how its base lies there; one where that is not possible."""
    from reangle_jax import mesh  # late: they bring jax
    from reangle_jax.needs import ALONE

    try:
        return mesh.shares(*laid_out())
    except InputError:  # one of the checks says it
        return ALONE


def painter_folder(settings: Settings) -> Path:
    """Where the painter's weights lie, and the score's beside them."""
    chosen = settings.first_frames
    if chosen.weights:
        return Path(chosen.weights)
    return tiny.WEIGHTS if chosen.model == "tiny" else Path("weights") / chosen.model


def of_painter(settings: Settings) -> tuple[tuple[str, Path], ...]:
    """Name and folder of each part of the painter."""
    return tuple(
        (part, painter_folder(settings) / part) for part in painters.ENTRIES[settings.first_frames.model].parts
    )


def painted_size(settings: Settings) -> tuple[int, int]:
    """Rows and columns at which first frames are painted."""
    multiple, scale = painters.ENTRIES[settings.first_frames.model].multiple, settings.first_frames.scale
    rows, columns = (max(1, round(side * scale / multiple)) * multiple for side in (settings.height, settings.width))
    return rows, columns


def painter(settings: Settings) -> "Painter":
    """The picture model that settings name. Nothing is read yet."""
    chosen = settings.first_frames
    kind = painters.ENTRIES[chosen.model].load()
    return kind(
        chosen.model, dict(of_painter(settings)), painted_size(settings), settings.execution, settings.base_dtype
    )


def painting(settings: Settings) -> "Painting":
    """How first frames are painted."""
    from reangle_jax.painters.interface import Painting  # late: it brings jax

    chosen = settings.first_frames
    values = {name: getattr(chosen, name) for name in Painting._fields if name != "window"}
    return Painting(**values, window=read_window(chosen.guided))


def editing(settings: Settings) -> "Editing":
    """How the input's first frame is edited."""
    from reangle_jax.painters.interface import Editing  # late: it brings jax

    return Editing(**{name: getattr(settings.edit, name) for name in Editing._fields})


def paints(settings: Settings) -> bool:
    """Whether a run needs the painter, but for first frames that are given."""
    return settings.mode == "static" or bool(settings.edit.caption)


def painters_mesh(settings: Settings) -> "Mesh":
    """Where first frames are painted: rounds of candidates take every device, however many there are of both.

    Raises:
        InputError: as `reangle_jax.mesh.make_mesh` does.
    """
    import jax  # late: these bring it

    from reangle_jax import mesh

    several = settings.first_frames.candidates > 1
    return mesh.make_own_mesh(settings.mesh, batch_size=jax.local_device_count() if several else 1)


def painters_shares(settings: Settings) -> "Shares":
    """The devices that divide painting; one where the setting is impossible, of which a check tells."""
    return _shares(lambda: (painters_mesh(settings), settings.base_layout))


def check_painter(settings: Settings) -> None:
    """Refuses a painter's weights that are not there, or are plainly others, before any work is done.

    Raises:
        InputError: as `check` does.
    """
    name, model, where = settings.first_frames.model, painter(settings), painter_folder(settings)
    if name != "tiny" and not where.is_dir():
        raise _not_made(PAINTER_KEY, name, where, f"{name} --source SOURCE --out {where}")
    for part, expected in painters.ENTRIES[name].parts.items():
        _check_part(PAINTER_KEY, where / part, expected, name, functools.partial(model.check, part))


def _not_made(key: str, name: str, where: Path, command: str) -> InputError:
    return InputError(
        f"{key}: {name} needs its converted weights, and there is no {where}: set {key} to the folder that `python -m "
        f"converters` wrote, or make it: `python -m converters {command}`"
    )


def _check_part(key: str, where: Path, expected: str, name: str, fits: Callable[[dict[str, Any]], None] | None) -> None:
    """Refuses a folder whose config.json is of another class, or does not fit, or whose arrays are not whole."""
    with about(key):
        fields = read_config(where)
        if fields.get("class") != expected:
            raise InputError(f"{where} holds {fields.get('class')}, not {expected}: give the weights of {name}")
    if fits:
        fits(fields)
    with about(key):
        check_whole(where)


def parts(settings: Settings) -> dict[str, str]:
    """The parts of a run's weights, and the class of the config.json beside each one's arrays."""
    return {"depth": "DepthAnythingConfig", **registry.ENTRIES[settings.model].parts}


def needed(settings: Settings, *, preview: bool = False) -> list[str]:
    """The parts that a run needs, or its preview."""
    return [part for part in parts(settings) if (settings.depth == "model" if part == "depth" else not preview)]


def check(settings: Settings, names: Iterable[str]) -> None:
    """Refuses weights that are not there, or are plainly others, before any work is done; `names` are of `parts`.

    Raises:
        InputError: a folder or its config.json is missing or unreadable, is another kind of model's, or does not fit
            `settings.model` or the clip's size (`Backbone.check`); its arrays are missing or truncated; a LoRA of
            `settings.loras` does not fit.
    """
    classes, model = parts(settings), _backbone(settings, settings.execution)
    for part in names:
        where = folder(settings, part)
        key = depth_key(settings) if part == "depth" else "config.weights"
        if key == "config.weights" and settings.model != "tiny" and not where.is_dir():
            name = settings.model if part in model.folders else DEPTH
            raise _not_made(key, name, where, f"{name} --source SOURCE --out {where.parent}")
        fits = functools.partial(model.check, part) if part in model.folders else None
        _check_part(key, where, classes[part], settings.model, fits)
        if part == next(iter(model.folders)):
            for text in settings.loras:
                with about("config.loras"):
                    model.check_adapters(lora_files.choice(text)[0])
