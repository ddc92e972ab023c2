// One clock for all players: the input's video is the master, the others follow it and are regrouped where one strays.
const run = JSON.parse(document.getElementById("run").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

const addresses = new Map();
/** The address of a video: of a blob made of what the page holds, or of the file beside the page. */
function address(name) {
  if (!addresses.has(name)) {
    const held = document.getElementById(`video-${name}`);
    if (held) {
      const bytes = Uint8Array.from(atob(held.textContent.trim()), (c) => c.charCodeAt(0));
      addresses.set(name, URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
    } else {
      addresses.set(name, run.linked[name] ?? "");
    }
  }
  return addresses.get(name);
}

const videos = $$("video[data-video]");
const master = videos[0];
const frameTime = 1 / run.fps;
const ui = {
  play: $("#play"), back: $("#back"), on: $("#on"), scrub: $("#scrub"), loop: $("#loop"), speed: $("#speed"),
  place: $("#place"), compare: $("#compare"),
};
const listeners = [];
const state = { playing: false, frame: 0, gathering: null };

const once = (target, event) => new Promise((resolve) => target.addEventListener(event, resolve, { once: true }));
const ready = (video) => (video.readyState >= 2 ? Promise.resolve() : Promise.race([once(video, "loadeddata"), once(video, "error")]));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
/** The middle of a frame, so that no rounding shows its neighbour. */
const middle = (frame) => (frame + 0.5) * frameTime;
const frameAt = (time) => Math.floor(time / frameTime);

async function seek(video, time) {
  await ready(video);
  if (video.error || Math.abs(video.currentTime - time) < 1e-4) return;
  const done = once(video, "seeked");
  video.currentTime = time;
  await done;
}

/** Brings all videos to one time, then lets them go on together if they were playing; the last time asked for counts. */
function gather(time) {
  state.wanted = { time };
  state.gathering ??= (async () => {
    let wanted;
    do {
      wanted = state.wanted;
      videos.forEach((video) => video.pause());
      await Promise.all(videos.map((video) => seek(video, wanted.time)));
      if (wanted !== state.wanted) continue;
      show(frameAt(wanted.time));
      if (state.playing) {
        videos.forEach((video) => { video.playbackRate = rate(); });
        await Promise.allSettled(videos.filter((video) => !video.error).map((video) => video.play()));
      }
    } while (wanted !== state.wanted);
  })().finally(() => { state.gathering = null; });
  return state.gathering;
}

const rate = () => Number(ui.speed.value);

function show(frame) {
  state.frame = clamp(frame, 0, run.frames - 1);
  ui.scrub.value = state.frame;
  ui.scrub.setAttribute("aria-valuetext", `frame ${state.frame + 1} of ${run.frames}`);
  ui.place.textContent = `frame ${state.frame + 1} / ${run.frames}, ${(state.frame * frameTime).toFixed(2)} s`;
  const share = run.frames > 1 ? state.frame / (run.frames - 1) : 0;
  for (const line of $$(".playhead")) {
    const { from, to } = line.dataset;
    line.style.transform = `translateX(${Number(from) + share * (to - from)}px)`;
  }
  listeners.forEach((listener) => listener(state.frame));
}

function step(by) {
  pause();
  const from = state.gathering ? frameAt(state.wanted.time) : state.frame; // two quick presses are two steps
  gather(middle(clamp(from + by, 0, run.frames - 1)));
}

function pause() {
  state.playing = false;
  videos.forEach((video) => video.pause());
  label();
}

function play() {
  state.playing = true;
  label();
  gather(state.frame >= run.frames - 1 ? 0 : middle(state.frame));
}

function label() {
  ui.play.textContent = state.playing ? "Pause" : "Play";
  ui.play.setAttribute("aria-pressed", state.playing);
}

function tick() {
  requestAnimationFrame(tick);
  if (!state.playing || state.gathering) return;
  const now = master.currentTime;
  if (master.ended || now >= run.frames * frameTime - 0.1 * frameTime) {
    if (ui.loop.getAttribute("aria-pressed") === "true") gather(0);
    else { pause(); show(run.frames - 1); }
    return;
  }
  const drifts = videos.map((video) => (video.error || video.ended ? 0 : video.currentTime - now));
  if (Math.max(...drifts) - Math.min(...drifts) > 0.75 * frameTime) {
    gather(now);
    return;
  }
  videos.forEach((video, k) => { video.playbackRate = rate() * (1 - clamp(3 * drifts[k], -0.2, 0.2)); });
  show(frameAt(now));
}

/** What lies over the outputs: their warps, the untuned model's videos, or the input. */
async function compare(kind) {
  const at = state.gathering ? state.wanted.time : master.currentTime;
  for (const video of $$("video.over[data-view]")) {
    video.src = address(kind === "input" ? "input" : `${video.dataset.view}-${kind}`);
    video.setAttribute("aria-label", `${video.dataset.label}: ${kind}`);
    $(".side.left", video.parentElement).textContent = kind;
  }
  await gather(at);
}

function split(value) {
  for (const slider of $$(".split")) {
    slider.value = value;
    slider.parentElement.style.setProperty("--split", `${value}%`);
  }
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  const within = target.matches("select, textarea, canvas") || (target.matches("input") && /^(Arrow|Home|End|Page)/.test(key));
  const spends = target.matches("button, summary, a, input[type=checkbox]") && (key === " " || key === "Enter");
  if (within || spends) return;
  const act = {
    " ": () => ui.play.click(), k: () => ui.play.click(), ",": () => step(-1), ".": () => step(1), l: () => ui.loop.click(),
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    Home: () => step(-run.frames), End: () => step(run.frames),
  }[key];
  if (act) { event.preventDefault(); act(); }
}

for (const video of videos) {
  video.muted = true;
  video.src = address(video.dataset.video);
}
ui.play.addEventListener("click", () => (state.playing ? pause() : play()));
ui.back.addEventListener("click", () => step(-1));
ui.on.addEventListener("click", () => step(1));
ui.scrub.addEventListener("input", () => { pause(); gather(middle(Number(ui.scrub.value))); });
ui.loop.addEventListener("click", () => ui.loop.setAttribute("aria-pressed", ui.loop.getAttribute("aria-pressed") !== "true"));
ui.speed.addEventListener("change", () => { if (state.playing) gather(master.currentTime); });
ui.compare?.addEventListener("change", () => compare(ui.compare.value));
$$(".split").forEach((slider) => slider.addEventListener("input", () => split(slider.value)));
document.addEventListener("keydown", press);
label();
gather(middle(0));
requestAnimationFrame(tick);

const theme = $("#theme");
const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const now = root.dataset.theme === "auto" ? (dark() ? "dark" : "light") : root.dataset.theme;
  root.dataset.theme = now === "dark" ? "light" : "dark";
  theme.setAttribute("aria-pressed", root.dataset.theme === "dark");
  listeners.forEach((listener) => listener(state.frame));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => listeners.forEach((listener) => listener(state.frame)));
