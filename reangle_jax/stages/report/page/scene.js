// The first frame's points and all camera paths, turned by hand: a small canvas without WebGL.
(() => {
  const canvas = document.getElementById("scene");
  if (!canvas) return;
  const scene = run.scene;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const raw = new Uint16Array(bytes(scene.xyz).buffer);
  const colours = bytes(scene.rgb);
  const count = raw.length / 3;
  const points = Float32Array.from(raw, (v, i) => scene.low[i % 3] + (v / 65535) * (scene.high[i % 3] - scene.low[i % 3]));
  const start = { yaw: -0.5, pitch: 0.3, zoom: 1 };
  const centre = [0, 0, 0.6 * scene.pivot]; // what the view turns about
  let away = 0, shift = [0, 0];
  const eye = { ...start };
  const hidden = new Set();

  /** From the world (x right, y down, z forward) to the canvas. */
  function projector(width, height) {
    const [cy, sy, cp, sp] = [Math.cos(eye.yaw), Math.sin(eye.yaw), Math.cos(eye.pitch), Math.sin(eye.pitch)];
    const distance = away / eye.zoom, focal = 1.1 * Math.min(width, 1.5 * height);
    return (x, y, z) => {
      const [a, b, c] = [x - centre[0], y - centre[1], z - centre[2]];
      const u = cy * a + sy * c, w = -sy * a + cy * c;
      const v = cp * b - sp * w, d = cp * w + sp * b;
      const depth = d + distance;
      if (depth < 0.02 * scene.pivot) return null;
      return [width * (0.5 + shift[0]) + (focal * u) / depth, height * (0.5 + shift[1]) + (focal * v) / depth, depth];
    };
  }

  /** Steps back until most of the points and all of the cameras are in the picture, in its middle. */
  function fit(width, height) {
    for (away = 1.2 * scene.pivot; away < 12 * scene.pivot; away *= 1.06) {
      const project = projector(width, height);
      const own = scene.cameras.flatMap((camera) => camera.poses.map((p) => project(p[3], p[7], p[11])));
      const all = [];
      for (let k = 0; k < count; k += 23) all.push(project(points[3 * k], points[3 * k + 1], points[3 * k + 2]));
      if ([...own, ...all].some((at) => !at)) continue;
      const [[left, right], [top, bottom]] = [0, 1].map((axis) => {
        const sorted = Float64Array.from(all, (at) => at[axis]).sort();
        const between = (share) => sorted[Math.floor(share * (sorted.length - 1))];
        const cameras = own.map((at) => at[axis]);
        return [Math.min(between(0.03), ...cameras), Math.max(between(0.97), ...cameras)];
      });
      if (right - left < 0.9 * width && bottom - top < 0.88 * height) {
        shift = [0.5 - (left + right) / 2 / width, 0.5 - (top + bottom) / 2 / height];
        return;
      }
    }
  }

  /** A colour of the page as the theme has it, for a canvas that knows no variables. */
  function colour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    canvas.parentElement.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function draw(frame) {
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * scale)) { canvas.width = Math.round(width * scale); }
    if (canvas.height !== Math.round(height * scale)) { canvas.height = Math.round(height * scale); }
    const paint = canvas.getContext("2d");
    paint.setTransform(scale, 0, 0, scale, 0, 0);
    paint.clearRect(0, 0, width, height);
    if (!away) fit(width, height);
    const project = projector(width, height);
    const seen = [];
    for (let k = 0; k < count; k++) {
      const at = project(points[3 * k], points[3 * k + 1], points[3 * k + 2]);
      if (at) seen.push([at[2], at[0], at[1], k]);
    }
    seen.sort((a, b) => b[0] - a[0]);
    const size = scene.spacing * 1.2 * Math.min(width, 1.5 * height);
    for (const [depth, x, y, k] of seen) {
      const side = Math.max(1.2, (size * points[3 * k + 2]) / depth);
      paint.fillStyle = `rgb(${colours[3 * k]} ${colours[3 * k + 1]} ${colours[3 * k + 2]})`;
      paint.fillRect(x - side / 2, y - side / 2, side, side);
    }
    scene.cameras.forEach((camera, index) => {
      if (!hidden.has(index)) drawCamera(paint, project, camera, frame);
    });
  }

  /** The path, the camera where it is, and faintly where it ends. */
  function drawCamera(paint, project, camera, frame) {
    const last = camera.poses.length - 1;
    paint.globalAlpha = 0.5;
    if (last) drawPyramid(paint, project, camera, camera.poses[last], 1);
    paint.globalAlpha = 1;
    stroke(paint, camera, [camera.poses.map((p) => project(p[3], p[7], p[11]))], 2.5);
    drawPyramid(paint, project, camera, camera.poses[Math.min(frame, last)], 2);
  }

  function drawPyramid(paint, project, camera, pose, width) {
    const place = (x, y, z) => project(...[0, 1, 2].map((r) => pose[4 * r] * x + pose[4 * r + 1] * y + pose[4 * r + 2] * z + pose[4 * r + 3]));
    const far = 0.09 * scene.pivot, [w, h] = [camera.half[0] * far, camera.half[1] * far];
    const corners = [[-w, -h], [w, -h], [w, h], [-w, h]].map(([x, y]) => place(x, y, far));
    const tip = place(0, 0, 0);
    const up = [place(-w * 0.35, -h * 1.1, far), place(0, -h * 1.6, far), place(w * 0.35, -h * 1.1, far)];
    stroke(paint, camera, [[...corners, corners[0]], ...corners.map((corner) => [tip, corner]), up], width);
  }

  function stroke(paint, camera, lines, thick) {
    for (const [ink, width] of [[colour("--paper"), thick + 2.5], [colour(camera.colour), thick]]) {
      paint.strokeStyle = ink;
      paint.lineWidth = width;
      paint.lineJoin = "round";
      for (const line of lines) {
        if (line.some((at) => !at)) continue;
        paint.beginPath();
        line.forEach(([x, y], k) => (k ? paint.lineTo(x, y) : paint.moveTo(x, y)));
        paint.stroke();
      }
    }
  }

  const again = () => draw(state.frame);
  const turn = (yaw, pitch) => {
    eye.yaw += yaw;
    eye.pitch = clamp(eye.pitch + pitch, -1.4, 1.4);
    again();
  };
  const zoom = (factor) => { eye.zoom = clamp(eye.zoom * factor, 0.4, 6); again(); };
  const reset = () => { Object.assign(eye, start); again(); };
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    turn((event.clientX - held[0]) * 0.006, (event.clientY - held[1]) * 0.006);
    held = [event.clientX, event.clientY];
  });
  ["pointerup", "pointercancel"].forEach((name) => canvas.addEventListener(name, () => { held = null; }));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.002));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const act = {
      ArrowLeft: () => turn(-0.1, 0), ArrowRight: () => turn(0.1, 0), ArrowUp: () => turn(0, -0.1), ArrowDown: () => turn(0, 0.1),
      "+": () => zoom(1.2), "=": () => zoom(1.2), "-": () => zoom(1 / 1.2), 0: reset,
    }[event.key];
    if (act) { event.preventDefault(); event.stopPropagation(); act(); }
  });
  $("#nearer").addEventListener("click", () => zoom(1.2));
  $("#farther").addEventListener("click", () => zoom(1 / 1.2));
  $("#reset").addEventListener("click", reset);
  $$("input[data-camera]").forEach((box) => box.addEventListener("change", () => {
    hidden[box.checked ? "delete" : "add"](Number(box.dataset.camera));
    again();
  }));
  const near = () => { const { top, bottom } = canvas.getBoundingClientRect(); return bottom > 0 && top < innerHeight; };
  listeners.push((frame) => { if (near()) draw(frame); });
  document.addEventListener("scroll", () => { if (near()) again(); }, { passive: true });
  new ResizeObserver(again).observe(canvas);
})();
