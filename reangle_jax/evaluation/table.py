"""Rows to a table: means of each method, and paired differences from one of them."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reangle_jax.evaluation.bootstrap import interval
from reangle_jax.evaluation.manifest import Manifest, Output
from reangle_jax.evaluation.parts import SETS, Features, Figure
from reangle_jax.scoring import fvd
from reangle_jax.scoring.frechet import frechet_distance
from reangle_jax.scoring.inputs import Note

Rows = Mapping[Output, Mapping[str, float | None]]


def summarise(
    manifest: Manifest,
    rows: Rows,
    features: Mapping[Output, Mapping[str, Features]],
    figures: Mapping[str, Figure],
    against: str | None,
    note: Note,
) -> dict[str, Any]:
    """The report of all methods.

    A method's ``mean`` is over its own ``items`` (clip and view), where the figure could be computed. Its
    ``difference`` from the method ``against`` is the mean over the ``pairs``, the items that both have, and the
    interval the 95 % bootstrap's over their ``clips``; null where there is one only. A figure of `parts.SETS` is a
    ``distance`` between so many ``outputs`` and ``inputs``, and has no difference.
    """
    methods: dict[str, Any] = {}
    for method in manifest.methods:
        lacking = ["/".join(item) for item in manifest.lacking(method)]
        if lacking:
            note(
                f"{method} lacks {', '.join(lacking)}: its means are over {len(manifest.items) - len(lacking)} of "
                f"{len(manifest.items)} items, and differences over those that both methods have"
            )
        entries = {
            name: _distance(features, name, method, note) if name in SETS else _entry(rows, name, method, against, note)
            for name in figures
        }
        methods[method] = {"lacking": lacking, "figures": {name: entry for name, entry in entries.items() if entry}}
    said = {name: {"better": "higher" if f.higher else "lower", "what": f.what} for name, f in figures.items()}
    return {"manifest": str(manifest.path), "against": against, "figures": said, "methods": methods}


def _entry(rows: Rows, name: str, method: str, against: str | None, note: Note) -> dict[str, Any] | None:
    own = _values(rows, name, method)
    if not own:
        return None
    entry: dict[str, Any] = {"mean": statistics.fmean(own.values()), "items": len(own)}
    base = _values(rows, name, against) if against else {}
    both = [item for item in own if item in base]
    if method == against or not both:
        return entry
    differences, clips = [own[item] - base[item] for item in both], [clip for clip, _ in both]
    mean, *ends = interval(differences, clips)
    if len(set(clips)) == 1:
        note(f"{method} and {against} have one clip in common: differences have no interval")
        ends = None
    return entry | {"difference": mean, "interval": ends, "pairs": len(both), "clips": len(set(clips))}


def _distance(
    features: Mapping[Output, Mapping[str, Features]], name: str, method: str, note: Note
) -> dict[str, Any] | None:
    found = {o: each[name] for o, each in features.items() if o.method == method and name in each}
    # An input's clips belong to each of its views; they count once.
    sources = {(o.input, o.start, o.step, o.listed, len(each["inputs"])): each["inputs"] for o, each in found.items()}
    own, source = (
        np.concatenate([x for x in arrays if len(x)] or [np.zeros((0, 1), np.float32)])
        for arrays in ([each["outputs"] for each in found.values()], sources.values())
    )
    if min(len(own), len(source)) < 2:
        note(f"{method} has {len(own)} clips of outputs and {len(source)} of inputs: {name} needs two or more of each")
        return None
    if min(len(own), len(source)) < fvd.PUBLISHED:
        note(
            f"{name} of {method} is of {len(own)} clips of outputs and {len(source)} of inputs: it falls as clips are "
            f"added, so compare it with figures of equal numbers alone (published ones have {fvd.PUBLISHED} or more)"
        )
    return {"distance": frechet_distance(own, source), "outputs": len(own), "inputs": len(source)}


def _values(rows: Rows, name: str, method: str) -> dict[tuple[str, str], float]:
    """By item."""
    found = {output.item: row.get(name) for output, row in rows.items() if output.method == method}
    return {item: value for item, value in found.items() if value is not None}


def markdown(report: dict[str, Any]) -> str:
    """The report as tables: means with their number of items, then differences with their intervals."""
    names, methods = list(report["figures"]), report["methods"]
    arrows = {name: "↑" if report["figures"][name]["better"] == "higher" else "↓" for name in names}
    head = ["method", *(f"{name} {arrows[name]}" for name in names)]
    lines = _table(head, [[m, *(_mean(found["figures"].get(n)) for n in names)] for m, found in methods.items()])
    others = [method for method in methods if method != report["against"]]
    if report["against"] and others:
        rows = [[m, *(_difference(methods[m]["figures"].get(n)) for n in names)] for m in others]
        lines += ["", f"Differences from {report['against']}, mean of pairs [95 % interval over clips]:", ""]
        lines += _table(head, rows)
    lines += [
        "",
        "In brackets: of how many items (a view of a clip); behind a distance, how many clips of outputs.",
        "",
    ]
    lines += [f"- {name}: {report['figures'][name]['what']}" for name in names]
    lines += [f"- Note: {line}" for line in report.get("notes", [])]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _mean(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return (
        f"{entry['mean']:.4f} ({entry['items']})"
        if "mean" in entry
        else f"{entry['distance']:.1f} ({entry['outputs']})"
    )


def _difference(entry: dict[str, Any] | None) -> str:
    if entry is None or "difference" not in entry:
        return "–"
    ends = "" if entry["interval"] is None else " [{:+.4f}, {:+.4f}]".format(*entry["interval"])
    return f"{entry['difference']:+.4f}{ends} ({entry['pairs']})"


def comma_separated(rows: Rows, figures: Mapping[str, Figure]) -> str:
    """Every output's figures, a line each; those of sets have none."""
    figures = {name: figure for name, figure in figures.items() if name not in SETS}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "view", "method", *figures])
    for output, row in rows.items():
        writer.writerow([output.clip, output.view, output.method, *(row.get(name) for name in figures)])
    return text.getvalue()
