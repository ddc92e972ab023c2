"""The page that shows a run: what it says, where its videos are, and that no text of the user's becomes markup."""

import html.parser
import json
import logging
import math
import re

import pytest

from reangle_jax.cameras.views import folder_name
from reangle_jax.data import files
from reangle_jax.geometry import cameras as cam
from reangle_jax.run import Ledger, run_stage
from reangle_jax.scoring.image import psnr
from reangle_jax.stages import report, scene
from reangle_jax.stages.report import charts, licences, media, pictures, reading
from tests.report_runs import FRAMES, HEIGHT, HOSTILE, LOSSES, WIDTH, K, enter, made_settings, plan_in_place, write_run


class Page(html.parser.HTMLParser):
    """Elements as name and attributes, in order, and all text; raises where an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, name, **wanted):
        return [a for tag, a in self.elements if tag == name and all(a.get(k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module", autouse=True)
def planned():
    """The plan has tests of its own."""
    with plan_in_place():
        yield


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    settings = made_settings()
    return reading.read(settings, enter(write_run(tmp_path_factory.mktemp("run"), settings), settings))


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    settings = made_settings("static", views=("left:8", "in:0.12"))
    return reading.read(settings, enter(write_run(tmp_path_factory.mktemp("run"), settings), settings))


def test_damaged_curves_cost_the_curves_alone(tmp_path, caplog):
    settings = made_settings()
    folder = enter(write_run(tmp_path, settings), settings)
    (folder / reading.LEARNING).write_text('{"loss": [1.0')
    run = reading.read(settings, folder)
    assert run.learning == {"loss": LOSSES}
    for damage in ('["a word"]', "[1.0, NaN]"):
        (folder / reading.LOSSES).write_text(damage)
        run = reading.read(settings, folder)
        assert run.learning == {}
        assert 'id="fine-tuning"' not in report.page(run)
    assert [record.getMessage().rpartition("/")[2].split()[0] for record in caplog.records] == [
        "learning.json", *("learning.json", "losses.json") * 2,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def text(moving):
    return report.page(moving)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_says_what_is_known_of_a_run(page, moving):
    for words in (
        "2 views, dynamic mode, tiny, seed 0", "frame 1 / 13", "13 frames, 64×48, 12 fps", "25.2 dB to the warp",
        "88 % seen by the input", "120 steps", f"mean loss of {sum(LOSSES[-50:]) / 50:.4f}", "~ 42 s",
        "6 min 0 s in all on 2 × cpu", "~ 2.5 GiB", "1.5 GiB", "Apache-2.0", "jax0.10.2", "turned 8.0°",
        f"python -m reangle_jax.export {moving.folder.name}",
    ):  # fmt: skip
        assert words in page.text, words
    assert [a["id"] for a in page.all("section")] == [
        "views", "cameras", "fine-tuning", "scores", "cost", "settings", "going-on",
    ]  # fmt: skip
    assert {a["href"].removeprefix("#") for a in page.all("a") if a["href"].startswith("#")} == {
        *(a["id"] for a in page.all("section")), "main",
    }  # fmt: skip


def test_a_frame_is_compared_with_its_warp_where_the_input_saw_it(moving):
    # Brighter by 5, 6, 7 ... of 255.
    for view in moving.views:
        assert view.psnr["tuned"] == pytest.approx([20 * math.log10(255 / (5 + t)) for t in range(FRAMES)])
        warp = files.load_npz(moving.folder / "views" / view.name / "warp.npz")
        made = files.load_npz(moving.folder / "views" / view.name / "untuned.npz")["frames"]
        assert view.psnr["untuned"][3] == pytest.approx(psnr(made[3], warp["frames"][3], warp["visible"][3]))
        assert view.visible == pytest.approx([1 - 8 / WIDTH] * FRAMES)


def test_it_needs_no_network_and_runs_no_other_script(text, page):
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; media-src blob:; ")
    assert re.search(r"script-src 'sha256-[\w+/=]+';", policy)
    addresses = [a[key] for _, a in page.elements for key in ("src", "href", "data") if key in a]
    assert all(re.match(r"#|data:|scene\.html$", address) for address in addresses)
    assert not re.search(r"(?<!xmlns=\")https?://", text)
    assert sum("type" not in a for a in page.all("script")) == 1


def test_videos_are_held_or_linked(moving, text, page):
    names = {"input", *(f"{view.name}-{kind}" for view in moving.views for kind in ("output", "warp", "untuned"))}
    assert {a["id"] for a in page.all("script", type="text/plain")} == {f"video-{name}" for name in names}
    assert {a["data-video"] for a in page.all("video")} == {name for name in names if "untuned" not in name}
    assert len(text) < 20e6
    for most, held in ((1_000, set()), (30_000, {f"video-{view.name}-untuned" for view in moving.views})):
        linked = report.page(moving, most)
        other = Page(linked)
        assert {a["id"] for a in other.all("script", type="text/plain")} == held
        found = json.loads(re.search(r'<script type="application/json" id="run">(.*?)</script>', linked)[1])["linked"]
        assert found.keys() == {name for name in names if "untuned" not in name}
        assert all((moving.folder / path).is_file() for path in found.values())
        assert "keep them together" in other.text
        assert bool(other.all("option", value="untuned")) == bool(held)


def test_text_of_the_users_stays_text(tmp_path):
    """A caption, a view, a file and a command that would be markup if they were put in as they are."""
    path = tmp_path / HOSTILE.replace("src=x", "src=y")
    cameras = path.with_name(path.name + ".json")
    cameras.parent.mkdir(parents=True)
    cam.save_cameras(cameras, cam.identity_cameras(K, FRAMES), WIDTH, HEIGHT)
    settings = made_settings(views=(str(cameras), "up:5"), caption=HOSTILE)
    text = report.page(reading.read(settings, enter(write_run(tmp_path / "run", settings), settings)))
    page = Page(text)
    assert not page.all("img")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert sum("type" not in a for a in page.all("script")) == 1
    assert page.text.count(HOSTILE) >= 3  # the title, the setting, the command
    assert page.text.count("script><img src=y onerror=window.hit=1>") >= 3  # of the view: players, cameras, scores
    assert all(re.fullmatch(r"[\w-]+", a["id"]) for _, a in page.elements if "id" in a)
    assert folder_name(str(cameras)) in text


def test_static_mode_shows_its_first_frames(standing):
    page = Page(report.page(standing))
    assert "first-frames" in [a["id"] for a in page.all("section")]
    said = ("12 % unseen, 19 % painted", "0.250", "0.125", "0.375", "with left:8", "How the candidates were chosen")
    for words in said:
        assert words in page.text, words
    assert len(page.all("img")) == 4
    assert all(a["src"].startswith("data:image/webp;base64,") and a["alt"] for a in page.all("img"))
    assert len(page.all("circle")) == 2 * 3 * 2  # views, steps, candidates


def test_every_control_and_picture_has_a_name(page):
    for name, a in page.elements:
        if name in ("input", "video", "canvas", "svg", "section", "nav") and a.get("type") != "checkbox":
            assert a.get("aria-label"), (name, a)
    assert "lang" in page.all("html")[0]


class TestStage:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        def words(run):
            return f"{run.settings.caption} {run.metrics['mean']['tuned']['psnr']}"

        monkeypatch.setattr(report, "page", words)
        settings = made_settings()
        return enter(write_run(tmp_path, settings), settings)

    def go(self, root, settings, stage=report.STAGE):
        with Ledger.opened(root, settings, "again") as ledger:
            return run_stage(stage, ledger)

    def test_it_is_made_once_and_again_when_what_it_shows_changes(self, run, caplog):
        assert self.go(run, made_settings())
        assert (run / "report.html").read_text() == "a red box 25.25"
        assert json.loads((run / "run.json").read_text())["command"] == "again"
        assert not self.go(run, made_settings())
        with caplog.at_level(logging.INFO, "reangle_jax"):
            assert self.go(run, made_settings(caption="a box"))
        assert "redo report: config.caption changed from a red box to a box" in caplog.text
        assert f"look at {run / 'report.html'}" in caplog.text
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["mean"]["tuned"]["psnr"] = 7
        files.atomic_write_json(run / "metrics.json", metrics)
        assert self.go(run, made_settings(caption="a box"))
        assert (run / "report.html").read_text() == "a box 7"

    def test_its_failure_costs_the_run_nothing(self, run, monkeypatch, caplog):
        def broken(run):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(report, "page", broken)
        before = json.loads((run / "run.json").read_text())["stages"]
        assert self.go(run, made_settings())
        assert "report could not be made; all that comes before it is done" in caplog.text
        assert "ZeroDivisionError: a bug" in caplog.text
        assert not (run / "report.html").exists()
        assert json.loads((run / "run.json").read_text())["stages"] == before
        monkeypatch.setattr(report, "page", lambda run: "mended")
        assert self.go(run, made_settings())
        assert (run / "report.html").read_text() == "mended"

    def test_the_scene_is_made_where_viser_is(self, run, monkeypatch, capfd):
        pytest.importorskip("viser")
        assert self.go(run, made_settings(), scene.STAGE)
        text = (run / "scene.html").read_text()
        assert "__VISER_EMBED_DATA__" in text
        assert len(text) < 20e6
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?https?:", text)
        assert not self.go(run, made_settings(), scene.STAGE)
        assert capfd.readouterr().out == ""
        monkeypatch.setattr(scene, "can_be_made", lambda: False)
        assert scene.units(made_settings()) == ()

    def test_the_page_leads_to_the_scene_or_says_how_to_get_it(self, run, moving):
        settings = made_settings()
        assert "pip install 'reangle-jax[report]'" in Page(str(pictures.cameras(moving))).text
        (run / "scene.html").write_text("x")
        found = Page(str(pictures.cameras(reading.read(settings, run))))
        assert found.all("a", href="scene.html")


def test_a_line_goes_where_its_points_are():
    found = charts.chart("x", [charts.Line("a", [(1, 0.0), (2, None), (3, 1.0), (5, 0.5)], "tuned")], "step", "y")
    (path,) = Page(str(found)).all("path")
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    middle = (left + right) / 2
    assert path["d"] == f"M{left:.1f} {bottom:.1f}M{middle:.1f} {top:.1f}L{right:.1f} {(bottom + top) / 2:.1f}"
    assert "nothing to show" in charts.chart("x", [charts.Line("", [(1, None)])], "", "")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (1, 17, [5, 10, 15]), (0.755, 0.773, [0.755, 0.76, 0.765, 0.77]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high, 4) == pytest.approx(expected)


def test_a_mean_is_of_the_last_values():
    assert charts.smoothed([1, 2, 3, 5], 2) == [1, 1.5, 2.5, 4]


@pytest.mark.parametrize(("count", "columns"), [(2, 2), (3, 3), (5, 3), (7, 4), (9, 3), (13, 3)])
def test_cards_leave_few_places_empty(count, columns):
    assert pictures.columns_of(count) == columns


def test_licences_are_those_that_the_converters_name():
    from converters.registry import models

    known = models()
    assert licences.PUBLISHED.keys() <= known.keys()
    for name, licence in licences.PUBLISHED.items():
        assert known[name].licence == licence
    of_parts = {part.name: part.licence for model in known.values() for part in model.parts}
    assert of_parts["text_encoder_2"] == licences.T5
    found = licences.used(made_settings("static", views=("left:8",)))
    assert {one.licence for one in found} == {"Apache-2.0"}
    assert [one.purpose for one in found] == ["depth", "video", "first frames", "agreement"]


def test_a_picture_keeps_its_holes(standing):
    import base64

    import cv2
    import numpy as np

    path = standing.folder / "views/left_8/first_warp.png"
    content = base64.b64decode(media.picture(path).partition(",")[2])
    layers = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert layers.shape == (HEIGHT, WIDTH, 4)
    np.testing.assert_array_equal(layers[..., 3] > 0, cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., 3] > 0)
