"""The report in a browser, from the disk: players in step, controls by keyboard, every word where it belongs."""

import itertools
import time

import cv2
import numpy as np
import pytest

from reangle_jax.run import Ledger, run_stage
from reangle_jax.stages import report, scene
from tests.report_runs import FPS, FRAMES, HOSTILE, WIDTH, enter, made_settings, plan_in_place, write_run

SETTLED = "const done = arguments[0]; (async () => { while (state.gathering) await state.gathering; done(true); })();"
LOADED = """
const done = arguments[0];
const look = () => (videos.every((v) => v.readyState >= 2) && !state.gathering ? done(true) : setTimeout(look, 30));
look();
"""
QUICKLY = """
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
arguments[0].forEach(press);
"""
# While the clock runs, until three frames in four were seen in two rounds (a busy machine skips some), or for so many
# seconds: of every picture how far the players are apart, and the frame.
WATCH = """
const [seconds, done] = arguments;
const found = [], end = performance.now() + 1000 * seconds;
let rounds = 0, before = 0;
(function look() {
  const times = videos.map((v) => v.currentTime);
  if (state.playing && !state.gathering) found.push([Math.max(...times) - Math.min(...times), state.frame, ...times]);
  rounds += state.frame < before;
  before = state.frame;
  const over = rounds > 1 && new Set(found.map((one) => one[1])).size >= 0.75 * run.frames;
  over || performance.now() > end ? done(found) : requestAnimationFrame(look);
})();
"""
# Boxes that stick out of the page, text that is cut off, and cards that lie over each other.
MISPLACED = """
const wide = document.documentElement.clientWidth, wrong = [];
const name = (e) => `${e.tagName} ${e.id || e.className} ${e.textContent.slice(0, 30)}`;
const boxes = "h1, h2, h3, p, figure, figcaption, button, select, .transport > *, canvas, svg, pre, summary";
for (const e of document.querySelectorAll(boxes)) {
  const box = e.getBoundingClientRect();
  if (!box.width) continue;
  if (box.left < -0.5 || box.right > wide + 0.5) wrong.push(`out of the page: ${name(e)}`);
  const words = /^(H1|H2|H3|P|FIGCAPTION|BUTTON|PRE)$/.test(e.tagName);
  if (words && e.clientWidth && e.scrollWidth > e.clientWidth + 1) wrong.push(`cut off: ${name(e)}`);
}
const cards = [...document.querySelectorAll(".card, .chart")].map((e) => [e, e.getBoundingClientRect()]);
for (const [a, p] of cards) for (const [b, q] of cards) {
  const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
  const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
  if (a !== b && across > 1 && down > 1) wrong.push(`${name(a)} lies over ${name(b)}`);
}
if (document.documentElement.scrollWidth > wide) wrong.push("the page scrolls sideways");
return wrong;
"""


def make(folder, settings):
    root = enter(write_run(folder, settings), settings)
    with plan_in_place():
        (root / "report.html").write_text(report.page(report.reading.read(settings, root)))
    return root / "report.html"


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    return make(tmp_path_factory.mktemp("moving"), made_settings(caption=HOSTILE))


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    return make(tmp_path_factory.mktemp("standing"), made_settings("static", views=("left:8", "in:0.12")))


@pytest.fixture
def page(browser, moving):
    browser.open(moving)
    browser.wait(LOADED)
    return browser


@pytest.mark.parametrize("kind", ["moving", "standing"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_it_opens_from_the_disk_with_everything_in_its_place(browser, request, kind, width, scheme):
    path = request.getfixturevalue(kind)
    browser.open(path, width, scheme=scheme)
    browser.wait(LOADED)
    assert browser.complaints() == []
    assert {url for url in browser.requests() if not url.startswith(("blob:", "data:"))} == {path.as_uri()}
    assert browser.run(MISPLACED) == []
    assert browser.run("return videos.map((v) => v.videoWidth)") == [WIDTH] * 5
    assert browser.run("return [...document.images].every((image) => image.naturalWidth > 0)")
    paper = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    ink = browser.run("return getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    assert (sum(paper) > sum(ink)) == (scheme == "light")
    smallest = browser.run(
        "return Math.min(...[...document.querySelectorAll('svg text')].map((e) => e.getBoundingClientRect().height))"
    )
    assert smallest > 9  # pixels: the charts' words are legible


def test_every_player_plays_and_stays_within_a_frame_of_the_others(page):
    page.run("$('#play').click()")
    found = page.wait(WATCH, 20)
    assert len(found) > 20
    assert max(apart for apart, *_ in found) <= 1 / FPS
    frames = [frame for _, frame, *_ in found]
    assert len(set(frames)) >= 0.75 * FRAMES
    assert any(b < a for a, b in itertools.pairwise(frames))  # it looped
    for times in zip(*(times for _, _, *times in found), strict=True):
        assert max(times) - min(times) > 0.7 * FRAMES / FPS
    assert page.run("return $('#play').textContent") == "Pause"
    assert page.complaints() == []


def test_controls_work_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    def shown():
        page.wait(SETTLED)
        frames = set(page.run("return videos.map((v) => Math.floor(v.currentTime * run.fps + 1e-6))"))
        assert len(frames) == 1, frames
        (frame,) = frames
        assert page.run("return $('#place').textContent").startswith(f"frame {frame + 1} / {FRAMES}, ")
        return frame

    assert shown() == 0
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown() == 2
    page.press(Keys.ARROW_LEFT)
    assert shown() == 1
    page.press(Keys.END)
    assert shown() == FRAMES - 1
    line = page.run("const b = $('.playhead').getBoundingClientRect(); return (b.left + b.right) / 2")
    drawing = "const b = $('.playhead').ownerSVGElement.getBoundingClientRect();"
    edge = page.run(f"{drawing} return b.left + b.width * 348 / 360")
    assert line == pytest.approx(edge, abs=1.5)
    page.press(Keys.HOME)
    assert shown() == 0
    # Faster than a video seeks: none is lost, and the last one counts.
    page.run(QUICKLY, ["ArrowRight"] * 3)
    assert shown() == 3
    page.run(QUICKLY, [" ", "Home"])
    assert shown() == 0
    page.press("l")
    assert page.run("return $('#loop').getAttribute('aria-pressed')") == "false"
    page.press(Keys.SPACE)
    assert page.run("return state.playing")
    page.wait("const done = arguments[0]; const look = () => (state.playing ? setTimeout(look, 50) : done(1)); look();")
    assert page.run("return state.frame") == FRAMES - 1  # without the loop it ends at the end
    # The scrubber, and the edge between warp and output: all pictures' move together.
    page.run("$('#scrub').focus()")
    page.press(Keys.HOME, Keys.ARROW_RIGHT)
    assert shown() == 1
    page.run("$('.split').focus()")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.run("return $$('.split').map((s) => s.value)") == ["52"] * 2
    assert page.run("return $('.picture:has(.split)').style.getPropertyValue('--split')") == "52%"
    assert shown() == 1
    page.run("$('#loop').focus()")
    page.press(Keys.SPACE)
    assert page.run("return $('#loop').getAttribute('aria-pressed')") == "true"
    assert not page.run("return state.playing")


def test_the_edge_shows_warp_on_its_left_and_output_on_its_right(page):
    at = """
    const box = $$(".picture:has(.split)")[0].getBoundingClientRect();
    return ["over", "under"].map((kind) => {
      const video = $$(".picture:has(.split) video")[kind === "over" ? 1 : 0];
      const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
      const paint = canvas.getContext("2d");
      paint.drawImage(video, 0, 0, 64, 48);
      return [video.dataset.video, getComputedStyle(video).clipPath, [...paint.getImageData(30, 5, 1, 1).data]];
    });
    """
    (warp, clipped, dark), (output, whole, bright) = page.run(at)
    assert (warp, output) == ("left_8-warp", "left_8-output")
    assert "50%" in clipped
    assert whole == "none"
    assert 1 <= sum(bright[:3]) / 3 - sum(dark[:3]) / 3 <= 9  # the output is brighter by 5
    page.run("$('#compare').value = 'untuned'; $('#compare').dispatchEvent(new Event('change'))")
    page.wait(LOADED)
    (_, _, brighter), _ = page.run(at)
    assert sum(brighter[:3]) / 3 - sum(bright[:3]) / 3 > 15  # the untuned by 30
    assert page.run("return $('.side.left').textContent") == "untuned"


def test_the_theme_is_chosen_by_a_button(page):
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    page.run("$('#theme').focus()")
    page.press(" ")
    assert page.run("return getComputedStyle(document.body).backgroundColor") != before
    page.press(" ")
    assert page.run("return getComputedStyle(document.body).backgroundColor") == before


def test_hostile_text_is_text(page):
    assert page.run("return window.hit") is None
    assert page.run("return [document.title, $('h1').textContent]") == [HOSTILE] * 2
    assert HOSTILE in page.run("return $('#going-on').textContent")


def test_the_cameras_are_drawn_and_turn(page):
    ink = """
    const c = $("#scene"), all = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    return all.filter((value, i) => i % 4 === 3 && value).length / (c.width * c.height);
    """
    page.run("$('#scene').scrollIntoView()")
    page.wait("requestAnimationFrame(() => requestAnimationFrame(() => arguments[0](1)))")
    assert page.run(ink) > 0.05
    before = page.run("return $('#scene').toDataURL()")
    page.run("$('#scene').focus({ preventScroll: true })")
    page.press("+")
    assert page.run("return $('#scene').toDataURL()") != before
    page.press("0")
    assert page.run("return $('#scene').toDataURL()") == before
    page.run("$('input[data-camera]').click()")
    assert page.run("return $('#scene').toDataURL()") != before


def test_the_scene_opens_from_the_disk(browser, tmp_path):
    pytest.importorskip("viser")
    settings = made_settings()
    root = enter(write_run(tmp_path, settings), settings)
    with Ledger.opened(root, settings) as ledger:
        run_stage(scene.STAGE, ledger)
    browser.open(root / "scene.html", 640, 480)
    end = time.monotonic() + 25
    while time.monotonic() < end:
        shown = cv2.imdecode(np.frombuffer(browser.driver.get_screenshot_as_png(), np.uint8), cv2.IMREAD_COLOR)
        blue, green, red = shown.astype(int).transpose(2, 0, 1)
        if ((red > green + 80) & (red > blue + 80)).sum() > 200:  # the square that walks
            break
        time.sleep(0.2)
    else:
        pytest.fail("nothing red to be seen")
    asked = {url for url in browser.requests() if not url.startswith(("blob:", "data:"))}
    assert asked == {(root / "scene.html").as_uri()}
