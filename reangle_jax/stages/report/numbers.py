"""What is measured: fine-tuning's curves, the likeness to the warps, time and memory beside the plan's."""

from typing import Any

from reangle_jax import measure, plan
from reangle_jax.measure import human_bytes, human_seconds
from reangle_jax.stages.report.charts import Line, chart, smoothed
from reangle_jax.stages.report.markup import Markup, join, number, section, table, tag
from reangle_jax.stages.report.reading import Run

WINDOW = 50  # steps of the mean that is drawn over the losses
CURVES = {
    "gradient_norm": ("Norm of the gradient", "before it is clipped"),
    "learning_rate": ("Learning rate", ""),
}


def learning(run: Run) -> Markup | None:
    """The loss and the rate over the steps of fine-tuning."""
    losses = run.learning.get("loss", [])
    if not losses:
        return None
    means = smoothed(losses, WINDOW)
    top = 1.3 * max(sorted(losses)[int(0.97 * (len(losses) - 1))], max(means))
    lines = [Line("each step", _steps(losses), "faint"), Line(f"mean of {WINDOW}", _steps(means), "tuned")]
    charts = [chart("Loss", lines, "step", "masked v-loss", y_range=(0, top))]
    for key, (title, words) in CURVES.items():
        values = run.learning.get(key, [])
        if values:
            high = sorted(values)[int(0.99 * (len(values) - 1))] * 1.1 or 1.0
            charts.append(chart(title, [Line("", _steps(values), "plain")], "step", words, y_range=(0, high)))
    words = f"{len(losses)} steps; the last {min(WINDOW, len(losses))} have a mean loss of {means[-1]:.4f}."
    return section(
        "fine-tuning",
        "Fine-tuning",
        tag("p", words, class_="quiet"),
        tag("div", charts, class_="charts"),
    )


def _steps(values: list[float]) -> list[tuple[float, float | None]]:
    return [(index + 1.0, value) for index, value in enumerate(values)]


def scores(run: Run) -> Markup:
    """The likeness to the warps: a table, and each view frame by frame."""
    known = [value for view in run.views for line in view.psnr.values() for value in line if value is not None]
    span = (min(known) - 0.5, max(known) + 0.5) if known else None
    charts = []
    for view in run.views:
        lines = [Line(name, [(k + 1.0, v) for k, v in enumerate(view.psnr[name])], name) for name in run.variants]
        charts.append(chart(view.label, lines, "frame", "PSNR to the warp, dB", y_range=span, frames=True))
    seen = [
        Line(view.label, [(k + 1.0, 100 * share) for k, share in enumerate(view.visible)], f"view{index % 7}")
        for index, view in enumerate(run.views)
    ]
    charts.append(chart("Seen by the input", seen, "frame", "% of the pixels", y_range=(0, 100), frames=True))
    return section(
        "scores",
        "Scores",
        tag("p", f"Compared with {run.metrics.get('compared_with', 'the warps')}.", class_="quiet"),
        _table(run),
        _agreement(run),
        tag("div", charts, class_="charts"),
    )


def _table(run: Run) -> Markup:
    columns = [("PSNR", "psnr", 1, " dB"), ("SSIM", "ssim", 3, ""), ("PSNR of what moves", "moving_psnr", 1, " dB")]
    columns += [("above a frozen scene", "moving_gain", 1, " dB")]
    heads = ["view", "seen"]
    for title, *_ in columns:
        below = run.variants if len(run.variants) > 1 else ("",)
        heads += [join(title, tag("br"), tag("span", name, class_="quiet")) if name else title for name in below]
    rows = [
        [view.label, number(_percent(view.scores.get("visible")), 0, " %"), *_numbers(view.scores, run, columns)]
        for view in run.views
    ]
    rows.append([tag("strong", "mean"), "", *_numbers(run.metrics.get("mean", {}), run, columns)])
    return table(heads, rows, "Scores of each view")


def _numbers(found: dict[str, Any], run: Run, columns: list[tuple]) -> list[str]:
    return [
        number(found.get(name, {}).get(key), digits, unit) for _, key, digits, unit in columns for name in run.variants
    ]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _agreement(run: Run) -> Markup | None:
    found = run.metrics.get("met3r")
    if not found:
        return None
    rows = [
        [name.replace("_", " "), number(each.get("between_views"), 3), number(each.get("with_input"), 3)]
        for name, each in found.items()
    ]
    heads = ["MEt3R of", "between the views", "with the input"]
    words = tag("p", f"MEt3R: {run.metrics.get('met3r_is', '')}.", class_="quiet")
    return join(words, table(heads, rows, "MEt3R"))


def cost(run: Run) -> Markup:
    """Time and memory of each stage, as planned and as measured."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for name, entry in run.clip.record.get("stages", {}).items():
        stages.setdefault(name.partition("/")[0], []).append(entry)
    needs, layouts = plan.estimate(run.settings), plan.sharing(run.settings)
    longest = max((sum(e["seconds"] for e in entries) for entries in stages.values()), default=0) or 1
    rows = []
    for name, entries in stages.items():
        seconds, need = sum(entry["seconds"] for entry in entries), needs.get(name)
        planned, held = plan.cost(run.settings, name, need, layouts) if need else (0.0, 0.0)
        bar = tag("i", class_="bar", style=f"width:{9 * seconds / longest:.2f}em", aria_hidden="true")
        rows.append(
            [
                name,
                str(len(entries)),
                f"~ {human_seconds(planned * len(entries))}" if need else "seconds",
                tag("td", human_seconds(seconds), bar, class_="text barred"),
                f"~ {human_bytes(held)}" if need else "small",
                human_bytes(max(map(measure.peak_bytes, entries))),
                human_bytes(max(entry["peak_host_bytes"] for entry in entries)),
            ]
        )
    total = sum(entry["seconds"] for entries in stages.values() for entry in entries)
    device = run.clip.record.get("devices", {})
    words = f"{human_seconds(total)} in all on {device.get('count', '?')} × {device.get('kind', 'an unknown device')}. "
    words += "Planned figures are computed from the sizes alone (~) and leave compiling out."
    heads = ["stage", "units", "planned time", "measured time", "planned memory", "measured memory", "of the host"]
    return section(
        "cost",
        "Time and memory",
        tag("p", words, class_="quiet"),
        table(heads, rows, "Time and memory of each stage"),
    )
