"""One page to look at a run: players, cameras, curves, scores, settings; it opens from the disk, without a network."""

import base64
import dataclasses
import hashlib
import json
import logging
from importlib import resources
from pathlib import Path
from typing import Any

from reangle_jax.config import Settings, defaults, flatten
from reangle_jax.data import files
from reangle_jax.run import Stage, Unit, Work
from reangle_jax.stages.report import about, media, numbers, pictures, reading
from reangle_jax.stages.report.markup import Markup, join, tag

SCRIPTS = ("player.js", "scene.js")
SECTIONS = {
    "views": "Views", "first-frames": "First frames", "cameras": "Cameras", "fine-tuning": "Fine-tuning",
    "scores": "Scores", "cost": "Time and memory", "settings": "Settings", "going-on": "Going on",
}  # fmt: skip
POINTS = 26_000  # of the scene that the page draws

_log = logging.getLogger(__name__)


def units(settings: Settings) -> tuple[Unit, ...]:
    """One: the page, which shows every setting."""
    keys = tuple(field.name for field in dataclasses.fields(Settings))
    return (Unit(settings=keys, inputs=reading.inputs(settings), outputs=("report.html",)),)


def report(settings: Settings, folder: Path, work: Work) -> None:
    """Writes report.html."""
    for unit in work:
        path = folder / unit.outputs[0]
        files.atomic_write_bytes(path, page(reading.read(settings, folder)).encode())
        _log.info("look at %s", path)


def page(run: reading.Run, most_bytes: int = media.MOST_BYTES) -> str:
    """The whole page; videos of more bytes than these are linked from it."""
    held, linked = media.videos(run, most_bytes)
    has_untuned = "untuned" in run.variants and "-untuned" in held
    shown = [
        pictures.players(run, has_untuned),
        pictures.first_frames(run),
        pictures.cameras(run),
        numbers.learning(run),
        numbers.scores(run),
        numbers.cost(run),
        about.made_of(run, flatten(run.settings), defaults()),
        about.go_on(run),
    ]
    there = [section for section in shown if section]
    facts = {"fps": run.clip.fps, "frames": len(run.clip.z), "linked": linked, "scene": reading.scene(run, POINTS)}
    script = "\n".join(_ours(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    beside = " file: 'self'" if linked else ""
    own = f"media-src blob:{beside}; img-src data:; style-src 'unsafe-inline'"
    return _ours("page.html").format(
        policy=f"default-src 'none'; {own}; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        title=join(_title(run.settings)),
        style=_ours("style.css"),
        body=join(_head(run, there, bool(linked)), tag("main", there, id="main"), _foot(run)),
        data=join(_data(facts), held),
        script=script,
    )


def _ours(name: str) -> str:
    return (resources.files(__name__) / "page" / name).read_text(encoding="utf-8")


def _data(facts: dict[str, Any]) -> Markup:
    # In a script element the parser knows no entities: what could end it is spelt otherwise.
    text = json.dumps(facts, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", Markup(text), type="application/json", id="run")


def _title(settings: Settings) -> str:
    return settings.caption or Path(settings.video).name


def _head(run: reading.Run, sections: list[Markup], is_linked: bool) -> Markup:
    s = run.settings
    words = f"{len(s.views)} views, {s.mode} mode, {s.model}, seed {s.seed}"
    links = [tag("li", tag("a", text, href=f"#{name}")) for name, text in SECTIONS.items() if _has(sections, name)]
    note = "The videos lie beside this page in the run's folder: keep them together." if is_linked else None
    return join(
        tag("a", "Skip to the views", href="#main", class_="skip"),
        tag(
            "header",
            tag("div", tag("h1", _title(s)), tag("p", words), tag("p", note) if note else None),
            tag("button", "Light or dark", id="theme", type="button", aria_pressed="false"),
        ),
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag("noscript", tag("p", "The players and the scene need JavaScript; the videos are in the run's folder too.")),
    )


def _has(sections: list[Markup], name: str) -> bool:
    return any(section.startswith(f'<section id="{name}"') for section in sections)


def _foot(run: reading.Run) -> Markup:
    version = run.clip.record.get("versions", {}).get("reangle_jax", "")
    return tag("footer", f"Made by reangle-jax {version}. {run.folder.name}")


STAGE = Stage("report", version=1, units=units, run=report, optional=True)
