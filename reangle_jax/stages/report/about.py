"""What the run was made of: settings, versions, licences, and the command that goes on with it."""

from typing import Any

from reangle_jax.stages.report import licences
from reangle_jax.stages.report.markup import Markup, join, section, table, tag
from reangle_jax.stages.report.reading import Run


def made_of(run: Run, flat: dict[str, Any], usual: dict[str, Any]) -> Markup:
    """Settings beside the usual ones, versions and licences."""
    versions = run.clip.record.get("versions", {}) | _devices(run)
    return section(
        "settings",
        "Settings",
        tag("p", "Bold: other than the default.", class_="quiet"),
        _settings(flat, usual),
        tag("h2", "Versions and licences"),
        tag("h3", "Weights"),
        table(
            ["for", "weights", "licence"],
            [[one.purpose, _text(one.name), _text(one.licence)] for one in licences.used(run.settings)],
            "Licences of the weights",
        ),
        tag("h3", "Versions"),
        table(
            ["", ""],
            [[name, _text(version)] for name, version in versions.items()],
            "Versions and devices",
        ),
    )


def _devices(run: Run) -> dict[str, str]:
    found = run.clip.record.get("devices", {})
    return {"device": f"{found['count']} × {found['kind']} ({found['platform']})"} if found else {}


def _settings(flat: dict[str, Any], usual: dict[str, Any]) -> Markup:
    groups: dict[str, list[list[Any]]] = {}
    changed: dict[str, int] = {}
    for key, value in flat.items():
        group = key.partition(".")[0] if "." in key else "of the run"
        other = value != usual[key]
        changed[group] = changed.get(group, 0) + other
        name = tag("span", key, class_="mono changed" if other else "mono")
        groups.setdefault(group, []).append([name, _text(_spelt(value))])
    return join(
        [
            tag(
                "details",
                tag("summary", f"{group} ", tag("span", f"{changed[group]} of {len(rows)} changed", class_="quiet")),
                table(["setting", "value"], rows, f"Settings {group}"),
                open=group == "of the run",
            )
            for group, rows in groups.items()
        ]
    )


def _spelt(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: str) -> Markup:
    return tag("td", value, class_="text")


def go_on(run: Run) -> Markup:
    """How to go on with the run."""
    command = run.clip.record.get("command")
    folder = run.folder.name
    words = "Run again, it goes on where it was; with another setting it redoes what depends on it."
    lines = tag("pre", command) if command else tag("p", "The command that made it goes on with it.")
    return section(
        "going-on",
        "Going on",
        tag("p", words, class_="quiet"),
        lines,
        tag("p", "A data set for 3D and 4D reconstruction, from the folder above the run's:", class_="quiet"),
        tag("pre", f"python -m reangle_jax.export {folder} --format dnerf --out data"),
    )
