"""``--plan``: what each stage will need on this device, and what is done already. Estimates are arithmetic alone."""

import os
import textwrap
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from reangle_jax import checkpoints, chosen_models, measure, mesh
from reangle_jax.config import Settings
from reangle_jax.diffusion import control
from reangle_jax.errors import InputError
from reangle_jax.measure import human_bytes, human_seconds
from reangle_jax.models.depth_anything import DepthAnythingConfig
from reangle_jax.needs import Needs
from reangle_jax.run import Ledger, Stage
from reangle_jax.run.ledger import Verdict, listed
from reangle_jax.scoring import needs as of_score

# A device's peak in bfloat16, FLOP/s, and the share of it that is sustained in our kind of work (docs: scale).
_CHIPS = {
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
    settings = ledger.settings
    needs, speed, shared = estimate(settings), rate(), sharing(settings)
    device = measure.devices()
    limit = measure.device_limit_bytes()
    lines = [
        f"{ledger.root}: {settings.num_frames} frames of {settings.height}x{settings.width}, {settings.model}, on "
        f"{device['count']} x {device['kind']}" + (f" with {human_bytes(limit)} each" if limit else ""),
        "fine-tuning's backward pass: config.execution.remat={} ({})".format(*chosen_models.remat(settings)),
        "",
        f"{'stage':14}{'units':>7}{'done':>6}{'peak memory':>14}{'time':>18}  state",
    ]
    remade: dict[str, str] = {}  # by work that comes first: what follows from it may change
    total, open_units, may_stay = 0.0, 0, False
    for stage in stages:
        verdicts = ledger.survey(stage, remade)
        units = [verdict.unit for verdict in verdicts]
        todo = [verdict for verdict in verdicts if verdict.pending]
        measured = [record for unit in units if (record := ledger.measured(stage, unit))]
        each = needs.get(stage.name)
        if measured and (not todo or each is None):
            seconds = sum(record["seconds"] for record in measured) / len(measured) * len(units)
            peak = max(map(measure.peak_bytes, measured))
            time, memory = f"took {human_seconds(seconds)}", human_bytes(peak)
        elif each is not None:
            seconds = each.flops * len(units) / (speed * shared.get(stage.name, 1))
            time, memory = f"~ {human_seconds(seconds)}", f"~ {human_bytes(each.peak_bytes)}"
        else:
            seconds, time, memory = 0.0, "seconds", "small"
        total += seconds * len(todo) / max(1, len(units))
        open_units += len(todo)
        may_stay |= any(not verdict.reasons for verdict in todo)
        states = _states(todo) or ["done" if units else "nothing to do"]
        if each is not None and limit and each.peak_bytes > limit:
            states[-1] += "  (DOES NOT FIT this device)"
        start = f"{stage.name:14}{len(units):>7}{len(units) - len(todo):>6}{memory:>14}{time:>18}  "
        lines += textwrap.wrap(
            "; ".join(states), _WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
        )
    most = "at most " if may_stay else ""
    about = f"{most}about {human_seconds(total)}" if total else "nothing" if not open_units else "seconds"
    hours = f", {_hours(total / 3600 * device['count'])} device-hours" if total else ""
    lines += ["", f"to do: {about}{hours} (~: computed from the sizes, compiling apart; took: measured in this folder)"]
    return "\n".join(lines + [f"missing: {line}" for line in _failures(checks)])


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
        settings.num_frames * per_frame * (2 * backbone + 4 * depth.depth * per_frame * depth.width) * 2,
    )


def rate() -> float:
    """FLOP/s to expect of one device."""
    kind = measure.devices()["kind"]
    if jax.default_backend() == "cpu":
        return _CPU_RATE * (os.cpu_count() or 1)
    return next((peak * share for name, (peak, share) in _CHIPS.items() if name in kind), 1e14)


def chip_peak() -> float | None:
    """FLOP/s of one device in bfloat16 by its data sheet; None for one that is not listed."""
    kind = measure.devices()["kind"]
    return next((peak for name, (peak, _) in _CHIPS.items() if name in kind), None)


def sharing(settings: Settings) -> dict[str, int]:
    """How many devices share a stage's work, by its name; one where it is not said."""
    stages = ("finetune", "generate")
    try:
        return {
            name: mesh.make_mesh(settings.mesh, batch_size=chosen_models.at_once(settings, name)).size
            for name in stages
        }
    except InputError:  # one of the checks says it
        return {}


def _failures(checks: Iterable[Callable[[], object]]) -> list[str]:
    failures = []
    for check in checks:
        try:
            check()
        except InputError as error:
            failures.append(str(error))
    return failures
