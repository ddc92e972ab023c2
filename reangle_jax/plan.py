"""``--plan``: what each stage will need on this device, and what is done already. Estimates are arithmetic alone."""

import dataclasses
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from reangle_jax import checkpoints, chosen_models, faults, measure, mesh
from reangle_jax.config import Settings
from reangle_jax.diffusion import control
from reangle_jax.diffusion.guidance import is_guided
from reangle_jax.errors import InputError
from reangle_jax.measure import human_bytes, human_seconds
from reangle_jax.models.depth_anything import DepthAnythingConfig
from reangle_jax.needs import ALONE, Needs, Shares
from reangle_jax.run import Ledger, Stage
from reangle_jax.run.ledger import Verdict, listed
from reangle_jax.scoring import needs as of_score

# A device's peak in bfloat16, FLOP/s, and the share of it that is sustained in our kind of work (docs: scale).
CHIPS = {
    "H100": (989e12, 0.43),  # measured: fine-tuning's own and repeated operations 0.43 and 0.45, sampling 0.50
    "H200": (989e12, 0.43),
    "A100": (312e12, 0.42),
    "v5 lite": (197e12, 0.29),
    "v5p": (459e12, 0.3),
    "v6 lite": (918e12, 0.13),
}
_CPU_RATE = 5e10  # float32, per core
_WIDTH = 180  # of the table, characters
_REASONS = 6  # of a stage, that are spelt out


def table(ledger: Ledger, stages: Sequence[Stage], checks: Iterable[Callable[[], object]] = ()) -> str:
    """The plan as text: a line for each stage, why what is to be done is to be done, and which checks fail."""
    remat, why = chosen_models.remat(ledger.settings)
    # Decided here once: the backbone is not asked again what each way would need.
    decided = dataclasses.replace(ledger.settings.execution, remat=remat)
    settings = dataclasses.replace(ledger.settings, execution=decided)
    needs, layouts = estimate(settings), sharing(settings)
    device = measure.devices()
    limit, processors = measure.device_limit_bytes(), _processors(device)
    lines = [
        f"{ledger.root}: {settings.num_frames} frames of {settings.height}x{settings.width}, {settings.model}, on "
        f"{device['count']} x {device['kind']}" + (f" with {_memory(limit, device)}" if limit else ""),
        f"fine-tuning's backward pass: config.execution.remat={remat} ({why})",
        *(_layouts(settings, layouts, device["count"]) if device["count"] > 1 else []),
        "",
        f"{'stage':14}{'units':>7}{'done':>6}{'peak memory':>14}{'time':>18}  state",
    ]
    remade: dict[str, str] = {}  # by work that comes first: what follows from it may change
    total, open_units, may_stay, mends = 0.0, 0, False, []
    for stage in stages:
        verdicts = ledger.survey(stage, remade)
        units = [verdict.unit for verdict in verdicts]
        todo = [verdict for verdict in verdicts if verdict.pending]
        measured = [record for unit in units if (record := ledger.measured(stage, unit))]
        each = needs.get(stage.name)
        planned, held = cost(settings, stage.name, each, layouts) if each else (0.0, 0.0)
        if measured and (not todo or each is None):
            seconds = sum(record["seconds"] for record in measured) / len(measured) * len(units)
            peak = max(map(measure.peak_bytes, measured))
            time, memory = f"took {human_seconds(seconds)}", human_bytes(peak)
        elif each is not None:
            seconds = planned * len(units)
            time, memory = f"~ {human_seconds(seconds)}", f"~ {human_bytes(held)}"
        else:
            seconds, time, memory = 0.0, "seconds", "small"
        total += seconds * len(todo) / max(1, len(units))
        open_units += len(todo)
        may_stay |= any(not verdict.reasons for verdict in todo)
        states = _states(todo) or ["done" if units else "nothing to do"]
        if limit and held > limit:
            states[-1] += "  (DOES NOT FIT this device)"
            mends.append(f"does not fit: {stage.name}; what helps: {_smaller(ledger, stage)}")
        start = f"{stage.name:14}{len(units):>7}{len(units) - len(todo):>6}{memory:>14}{time:>18}  "
        lines += textwrap.wrap(
            "; ".join(states), _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
        )
    most = "at most " if may_stay else ""
    about = f"{most}about {human_seconds(total)}" if total else "nothing" if not open_units else "seconds"
    hours = f", {_hours(total / 3600 * processors)} device-hours" if total else ""
    lines += ["", f"to do: {about}{hours} (~: computed from the sizes, compiling apart; took: measured in this folder)"]
    return "\n".join([*lines, *mends, *(f"missing: {line}" for line in _failures(checks))])


def _processors(device: dict[str, Any]) -> int:
    """Devices, but that those of one process on a CPU are one."""
    return device["processes"] if device["platform"] == "cpu" else device["count"]


def _memory(limit: int, device: dict[str, Any]) -> str:
    shared = device["platform"] == "cpu" and device["count"] > device["processes"]
    return human_bytes(limit) + (" for all of a process" if shared else " each")


def _layouts(settings: Settings, layouts: dict[str, Shares], count: int) -> list[str]:
    """What of several devices each stage takes, and what it makes of them."""
    try:
        mesh.make_mesh(settings.mesh)
    except InputError:  # one of the checks says it
        return [f"devices: config.mesh={settings.mesh} is not possible here; everything is counted for one"]
    words, notes = [], []
    for name, shares in layouts.items():
        base = ", the base whole on each" if shares.base_whole else ", the base divided" if shares.video > 1 else ""
        sizes = f"data:{shares.videos},r:{shares.columns},u:{shares.rows}"
        words.append(f"{name} takes {shares.all} of {count} devices ({sizes}{base})")
    batch, videos = settings.finetune.batch_size, layouts["finetune"].videos
    if batch % videos:
        notes.append(
            f"note: data:{videos} does not divide fine-tuning's batch of {batch}, and each of data's does all of it: "
            f"set config.finetune.batch_size to a multiple of {videos}, or data:1"
        )
    return [f"devices, by config.mesh={settings.mesh}: {'; '.join(words)}; the other stages take one", *notes]


def _smaller(ledger: Ledger, stage: Stage) -> str:
    """Settings that lower a stage's memory; devices of a CPU have none of their own."""
    alike = ("mesh", "base_layout") if jax.default_backend() == "cpu" else ()
    return faults.smaller(ledger.flat, [key for key in stage.smaller if key not in alike])


def _states(todo: Sequence[Verdict]) -> list[str]:
    """Why units are to be done, and what may redo those that are done."""
    reasons = list(dict.fromkeys(reason for verdict in todo for reason in verdict.reasons))
    waits = list(dict.fromkeys(wait for verdict in todo if not verdict.reasons for wait in verdict.waits))
    states = [*reasons[:_REASONS], *([f"{len(reasons) - _REASONS} more reasons"] if reasons[_REASONS:] else [])]
    return states + ([f"done again if these change: {listed(waits)}"] if waits else [])


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def estimate(settings: Settings) -> dict[str, Needs]:
    """Needs of one unit of each stage that computes anything to speak of, by the stage's name."""
    needs = chosen_models.backbone(settings).needs(chosen_models.demand(settings))
    if chosen_models.paints(settings):
        needs = _painting(settings) | needs
    return needs | {"depth": _depth(settings)} if settings.depth == "model" else needs


def _painting(settings: Settings) -> dict[str, Needs]:
    """Of one painted view, the score beside the painter; of the first warps, where the first frame is edited."""
    how, editing = chosen_models.painting(settings), chosen_models.editing(settings)
    needs = chosen_models.painter(settings).needs(how, editing, chosen_models.painters_shares(settings))
    if settings.mode == "static" and how.candidates > 1:
        options = {key: getattr(how, key) for key in ("candidates", "eta", "noise", "window", "every", "fewest")}
        drawn = control.plan(np.linspace(1, 0, how.steps + 1), **options).candidates
        finished = (len(settings.views) - 1) / 2 + settings.first_frames.with_input
        size, scored = (settings.height, settings.width), int(drawn[drawn > 1].sum())
        beside, flops = of_score.of_choosing(chosen_models.painter_folder(settings), *size, finished, scored)
        phases = needs["first_frames"].phases
        phases = {name: peak + beside * (name == "paint") for name, peak in phases.items()}
        needs["first_frames"] = Needs(phases, needs["first_frames"].flops + flops)
    edit = needs.pop("first_warps", None)
    if settings.edit.caption and edit:
        units = 1 + len(settings.views) * (settings.mode == "static")  # the warps themselves take seconds
        needs["first_warps"] = Needs(edit.phases, edit.flops / units)
    if settings.mode == "dynamic":
        needs.pop("first_frames")
    return needs


def _depth(settings: Settings) -> Needs:
    published = DepthAnythingConfig.tiny if settings.model == "tiny" else DepthAnythingConfig.large
    depth = checkpoints.config_or(chosen_models.folder(settings, "depth"), DepthAnythingConfig, published)
    side = depth.short_side / depth.patch_size
    per_frame = side**2 * max(settings.height, settings.width) / min(settings.height, settings.width)
    backbone = depth.depth * 12 * depth.width**2
    return Needs(
        {"depth": backbone * 4 * 1.4 + 4 * per_frame * depth.patch_size**2 * depth.fusion_width * 4 * 2},
        settings.num_frames
        * (1 + settings.depth_mirrored)
        * per_frame
        * (2 * backbone + 4 * depth.depth * per_frame * depth.width)
        * 2,
    )


def rate() -> float:
    """FLOP/s to expect of one device."""
    kind = measure.devices()["kind"]
    if jax.default_backend() == "cpu":
        return _CPU_RATE * (os.cpu_count() or 1)
    return next((peak * share for name, (peak, share) in CHIPS.items() if name in kind), 1e14)


def sharing(settings: Settings) -> dict[str, Shares]:
    """Over which devices stages divide their work, by their names: the others have one.

    One of each where ``config.mesh`` is not possible, of which a check tells.
    """
    work = chosen_models.demand(settings)
    painter = {"first_frames": chosen_models.painters_shares(settings)} if settings.mode == "static" else {}
    return {"finetune": work.training, "generate": work.sampling, **painter}


def cost(settings: Settings, stage: str, needs: Needs, layouts: Mapping[str, Shares]) -> tuple[float, float]:
    """Seconds of one of a stage's units, at best, and bytes of a device while it is worked on.

    Of a CPU's devices the bytes are of all: those of one process share its memory and its time. ``layouts`` are as
    `sharing` gives them.
    """
    shares, faster = layouts.get(stage, ALONE), 1.0  # than one device; a painter's are not counted on
    if stage == "finetune":
        faster = shares.faster(settings.finetune.batch_size, settings.finetune.batch_size)
    elif stage == "generate":
        passes = 1 + is_guided(settings.sample.guidance_scale)
        faster = shares.faster(len(settings.views), max(1, shares.videos // passes), passes)
    together = chosen_models.in_one_memory(shares)
    return together * needs.flops / (rate() * faster), together * needs.peak_bytes


def _failures(checks: Iterable[Callable[[], object]]) -> list[str]:
    failures = []
    for check in checks:
        try:
            check()
        except InputError as error:
            failures.append(str(error))
    return failures
