"""What is looked at: the players, the painted first frames, the cameras in the scene."""

import math

import numpy as np

from reangle_jax.data.pictures import read_holes
from reangle_jax.stages.report import media
from reangle_jax.stages.report.charts import Line, chart
from reangle_jax.stages.report.markup import Markup, join, number, section, table, tag
from reangle_jax.stages.report.reading import Run, View

KEYS = (
    ("Space", "play or pause"),
    ("← →", "a frame back or on"),
    ("Home End", "first or last frame"),
    ("L", "loop"),
)


def players(run: Run, has_untuned: bool) -> Markup:
    """The input and, for each view, what may be compared with its output."""
    rows, columns = run.clip.z.shape[1:]
    count = 1 + len(run.views)
    style = f"--ratio:{columns}/{rows};--columns:{columns_of(count)}"
    cards = [_input(run), *(_player(run, index, view) for index, view in enumerate(run.views))]
    return section(
        "views",
        "Views",
        _transport(run, has_untuned),
        _keys(),
        tag("div", cards, class_="cards", style=style),
    )


def columns_of(count: int) -> int:
    """How many cards stand side by side on a wide screen: as leaves the fewest places empty, rather more than fewer."""
    return min((4, 3), key=lambda columns: -count % columns) if count > 2 else max(2, count)


def _transport(run: Run, has_untuned: bool) -> Markup:
    options = [tag("option", "its warp", value="warp")]
    options += [tag("option", "the untuned model", value="untuned")] if has_untuned else []
    options += [tag("option", "the input", value="input")]
    speeds = [tag("option", f"{speed}×", value=speed, selected=speed == 1) for speed in (0.25, 0.5, 1)]
    return tag(
        "div",
        tag("button", "Play", id="play", class_="play", type="button", aria_pressed="false"),
        tag("button", "‹", id="back", type="button", aria_label="one frame back"),
        tag("button", "›", id="on", type="button", aria_label="one frame on"),
        tag("output", f"frame 1 / {len(run.clip.z)}", id="place", aria_live="off"),
        tag(
            "input", id="scrub", class_="scrub", type="range", min=0, max=len(run.clip.z) - 1, value=0, step=1,
            aria_label="frame",
        ),
        tag("button", "Loop", id="loop", type="button", aria_pressed="true"),
        tag("label", "speed", tag("select", speeds, id="speed", aria_label="speed")),
        tag("label", "compare output with", tag("select", options, id="compare")),
        class_="transport",
        role="group",
        aria_label="Players",
    )  # fmt: skip


def _keys() -> Markup:
    words = [join(tag("kbd", key), f" {what}; ") for key, what in KEYS]
    return tag("p", tag("span", words, class_="wider"), "drag over a picture to compare.", class_="keys")


def _input(run: Run) -> Markup:
    height, width = run.clip.z.shape[1:]
    words = f"{len(run.clip.z)} frames, {width}×{height}, {run.clip.fps:g} fps"
    caption = tag("figcaption", tag("h3", "input"), tag("span", words))
    video = tag("video", data_video="input", muted=True, playsinline=True, preload="auto", aria_label="input")
    return tag("figure", caption, tag("div", video, class_="picture"), class_="card", id="view-input")


def _player(run: Run, index: int, view: View) -> Markup:
    share = sum(view.visible) / len(view.visible)
    score = view.scores.get("tuned", {}).get("psnr")
    words = f"{number(score, 1, ' dB')} to the warp, {100 * share:.0f} % seen by the input"
    swatch = tag("i", class_="swatch", style=f"background:var(--v{index % 7})", aria_hidden="true")
    common = {"muted": True, "playsinline": True, "preload": "auto"}
    under = tag("video", data_video=f"{view.name}-output", aria_label=f"{view.label}: output", **common)
    over = tag(
        "video", class_="over", data_video=f"{view.name}-warp", data_view=view.name, data_label=view.label,
        aria_label=f"{view.label}: warp", **common,
    )  # fmt: skip
    slider = _slider(f"{view.label}: share of the warp shown over the output", "warp", "output")
    return tag(
        "figure",
        tag("figcaption", tag("h3", swatch, view.label), tag("span", words)),
        tag("div", under, over, slider, class_="picture"),
        class_="card",
        id=f"view-{view.name}",
    )


def _slider(words: str, left: str, right: str) -> Markup:
    return join(
        tag("span", class_="edge", aria_hidden="true"),
        tag("span", left, class_="side left", aria_hidden="true"),
        tag("span", right, class_="side right", aria_hidden="true"),
        tag("input", class_="split", type="range", min=0, max=100, value=50, step=1, aria_label=words),
    )


def first_frames(run: Run) -> Markup | None:
    """Of static mode: each first frame's warp with its holes, what was painted, and how it was chosen."""
    views = [view for view in run.views if (run.folder / view.file("first_warp.png")).is_file()]
    if run.settings.mode != "static" or not views:
        return None
    rows, columns = run.clip.z.shape[1:]
    cards = [_first(run, index, view) for index, view in enumerate(run.views) if view in views]
    curves = [_candidates(view) for view in views if view.first and view.first["steps"]]
    words = (
        "Left the input's first frame as that camera sees it, hatched where there is nothing; right the painted one."
    )
    scores = [
        tag("h3", "How the candidates were chosen"),
        tag(
            "p",
            "Each point is a candidate at a step that chose among several: its likeness to the finished pictures, 1 − "
            "MEt3R, mean of all of them. The line goes through those that were kept.",
            class_="quiet",
        ),
        tag("div", curves, class_="charts"),
    ]
    return section(
        "first-frames",
        "First frames",
        tag("p", words, class_="quiet"),
        tag("div", cards, class_="cards", style=f"--ratio:{columns}/{rows};--columns:{columns_of(len(cards))}"),
        scores if curves else None,
        _agreement(views),
    )


def _first(run: Run, index: int, view: View) -> Markup:
    warp = run.folder / view.file("first_warp.png")
    painted = run.folder / view.file("first_frame.png")
    seen = float(np.mean(read_holes(warp)[1]))
    share = view.first["painted"] if view.first else None
    words = f"{100 * (1 - seen):.0f} % unseen" + (f", {100 * share:.0f} % painted" if share is not None else ", given")
    swatch = tag("i", class_="swatch", style=f"background:var(--v{index % 7})", aria_hidden="true")
    holes = tag("img", src=media.picture(warp), alt=f"{view.label}: warp of the first frame")
    over = tag("div", holes, class_="over holes")
    return tag(
        "figure",
        tag("figcaption", tag("h3", swatch, view.label), tag("span", words)),
        tag(
            "div",
            tag("img", src=media.picture(painted), alt=f"{view.label}: painted first frame"),
            over,
            _slider(f"{view.label}: share of the warp shown over the painted frame", "warp", "painted"),
            class_="picture",
        ),
        class_="card",
    )


def _candidates(view: View) -> Markup:
    assert view.first
    dots, kept = [], []
    for step in view.first["steps"]:
        means = [sum(row) / len(row) for row in step["scores"] if row]
        dots += [(step["step"], mean) for mean in means]
        kept += [(step["step"], means[step["kept"]])] if means else []
    lines = [Line("candidates", dots, "dots"), Line("kept", kept, "tuned")]
    return chart(view.label, lines, "step", "likeness")


def _agreement(views: list[View]) -> Markup | None:
    """MEt3R of every painted frame with those that were finished before it."""
    known = {view.spelling: view.first.get("met3r", {}) for view in views if view.first}
    if not any(known.values()):
        return None
    labels = {view.spelling: view.label for view in views}
    others = [name for name in ("input", *labels) if any(name in found for found in known.values())]
    values = [value for found in known.values() for value in found.values() if value is not None]
    low, high = min(values, default=0), max(values, default=1)
    rows = []
    for view, found in known.items():
        cells = [_heat(found.get(name), low, high) for name in others]
        rows.append([labels[view], *cells])
    heads = ["", *(f"with {labels.get(name, name)}" for name in others)]
    return join(
        tag("h3", "MEt3R between first frames"),
        tag("p", "0 agrees. Each row is a view, each column a picture that was finished before it.", class_="quiet"),
        table(heads, rows, "MEt3R between first frames"),
    )


def _heat(value: float | None, low: float, high: float) -> Markup:
    if value is None or not math.isfinite(value):
        return tag("td", "")
    share = (value - low) / (high - low) if high > low else 0.0
    return tag("td", f"{value:.3f}", class_="heat", style=f"--share:{share:.2f}")


def cameras(run: Run) -> Markup:
    """The scene's first frame and all cameras in it."""
    boxes = [_named(run, 0, "input", "--ink")]
    boxes += [_named(run, 1 + k, view.label, f"--v{k % 7}") for k, view in enumerate(run.views)]
    words = "The input's first frame as points, by its depth; a pyramid stands where each camera is at the frame shown."
    tools = [("nearer", "Nearer"), ("farther", "Farther"), ("reset", "Reset")]
    canvas = tag(
        "canvas", id="scene", tabindex=0, role="img",
        aria_label="Points of the scene and camera paths. Arrow keys turn, plus and minus zoom, 0 resets.",
    )  # fmt: skip
    if (run.folder / "scene.html").is_file():
        link = tag("a", "scene.html", href="scene.html")
        more = tag("p", link, " plays the whole clip as points that one walks through.")
    else:
        more = tag(
            "p",
            "The whole clip as points that one walks through, scene.html, is made where viser is installed: ",
            tag("code", "pip install 'reangle-jax[report]'"),
            ", then the same command again.",
        )
    return section(
        "cameras",
        "Cameras",
        tag("p", words, class_="quiet"),
        tag(
            "div",
            tag(
                "div",
                canvas,
                tag("div", [tag("button", text, id=name, type="button") for name, text in tools], class_="tools"),
            ),
            tag("div", tag("ul", boxes), tag("p", "Drag, or use the arrow keys, to turn.", class_="keys"), more),
            class_="scene",
        ),
    )


def _named(run: Run, index: int, name: str, colour: str) -> Markup:
    track = run.clip.source if index == 0 else run.clip.tracks[index - 1]
    turn, way = travelled(track.poses, run.clip.source.poses[0])
    pivot = float(np.median(run.clip.z[0]))
    words = f"turned {turn:.1f}°, moved {100 * way / pivot:.0f} % of the scene's depth"
    box = tag("input", type="checkbox", checked=True, data_camera=index)
    swatch = tag("i", class_="swatch", style=f"background:var({colour})", aria_hidden="true")
    return tag("li", tag("label", box, " ", swatch, name), tag("br"), tag("span", words, class_="quiet"))


def travelled(poses: np.ndarray, first: np.ndarray) -> tuple[float, float]:
    """The largest turn, degrees, and way of cameras [T, 4, 4] from the source's first."""
    relative = np.linalg.inv(first) @ poses
    cosine = (np.trace(relative[:, :3, :3], axis1=1, axis2=2) - 1) / 2
    turn = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).max())
    return turn, float(np.linalg.norm(relative[:, :3, 3], axis=1).max())
