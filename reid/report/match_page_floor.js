// ---------------------------------------------------------------- floor plan

/** The floor plan, or null if no ground positions are known. data.paths: by tracklet, lists of seconds, x, y. */
const floorPlan = !data.paths ? null : (() => {
  const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;
  const known = data.paths.flatMap((path, t) => (path.length ? [t] : []));
  const all = known.flatMap((t) => data.paths[t]);
  const extent = (axis) => all.reduce(([low, high], p) => [Math.min(low, p[axis]), Math.max(high, p[axis])], [Infinity, -Infinity]);
  const [left, right] = extent(1), [bottom, top] = extent(2);
  const margin = 0.04 * Math.max(right - left, top - bottom, 1);
  const box = {x: left - margin, y: -top - margin, w: right - left + 2 * margin, h: top - bottom + 2 * margin};
  let unit = box.w / 900; // one pixel, in metres
  let time = everything.from, trail = 10, colouring = "identity", only = "", timer = null;

  /** Create an SVG element; names are attributes. */
  function s(tag, settings, ...children) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(settings)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const colourOf = (t) => (colouring === "camera" ? data.colours[T.camera[t] % data.colours.length]
    : `hsl(${(current.identity[t] * 137.508) % 360} 70% ${current.identity[t] % 2 ? 42 : 58}%)`);
  const line = (points) => points.map((p, at) => `${at ? "L" : "M"}${p[1].toFixed(2)} ${(-p[2]).toFixed(2)}`).join("");
  const shown = (t) => only === "" || current.identity[t] === Number(only);

  /** Return the position of a tracklet at a time between two of its points. */
  function positionAt(path, at) {
    const next = path.findIndex((p) => p[0] >= at);
    if (next <= 0) return path[next < 0 ? path.length - 1 : 0];
    const a = path[next - 1], b = path[next], f = (at - a[0]) / Math.max(b[0] - a[0], 1e-9);
    return [at, a[1] + f * (b[1] - a[1]), a[2] + f * (b[2] - a[2])];
  }

  const paths = s("g", {id: "floor-paths", fill: "none", "stroke-width": 1.5, "stroke-linejoin": "round"});
  const trails = s("g", {id: "floor-trails"});
  const grid = s("g", {stroke: "var(--line)"});
  const step = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500].find((m) => Math.max(box.w, box.h) / m <= 16) ?? 1000;
  const between = (low, high) => {
    const marks = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) marks.push(at);
    return marks;
  };
  for (const x of between(box.x, box.x + box.w)) grid.append(s("line", {x1: x, x2: x, y1: box.y, y2: box.y + box.h}));
  for (const y of between(box.y, box.y + box.h)) grid.append(s("line", {y1: y, y2: y, x1: box.x, x2: box.x + box.w}));
  const picture = s("svg", {
    id: "floor", viewBox: `${box.x} ${box.y} ${box.w} ${box.h}`, role: "img", "aria-label": "paths of all tracklets on the ground",
  }, grid, paths, trails);

  const clockText = h("output", {id: "floor-time"});
  const slider = h("input", {
    type: "range", id: "floor-slider", min: everything.from, max: everything.to, step: 0.1, "aria-label": "time",
    oninput: () => { time = Number(slider.value); paintTrails(); },
  });
  const play = h("button", {id: "floor-play", onclick: toggle}, "Play");
  const search = h("input", {
    type: "number", id: "floor-identity", min: 1, placeholder: "all", "aria-label": "identity",
    oninput: () => { only = search.value; update(); },
  });
  const legend = h("div", {className: "legend"});
  const panel = h("div", {className: "floor"},
    h("div", {className: "filters"}, play, clockText, slider,
      choice("Colour", "floor-colour", [["identity", "by identity"], ["camera", "by camera"]],
        (value) => { colouring = value; update(); }),
      choice("Trail", "floor-trail", [["10", "10 s"], ["3", "3 s"], ["60", "1 min"], ["1e9", "all until then"]],
        (value) => { trail = Number(value); paintTrails(); }),
      h("label", null, "Identity ", search)),
    picture, legend,
    h("p", {className: "hint"}, `Grid: ${step} m. Faint: all paths. Dots: where people are at the time of the slider, `,
      "once for each camera that sees them. Click a dot or a path to open the identity. ",
      `${plural(known.length, "tracklet")} of ${count.toLocaleString("en")} have ground positions.`));

  function openIdentity(t) {
    stop();
    go("timelines");
    timelines.open(current.identity[t]);
  }

  function clickable(element, t) {
    element.append(s("title", {}, `identity ${current.identity[t]}: ${fullName(t)}, ${span(t)}`));
    element.addEventListener("click", () => openIdentity(t));
    element.style.cursor = "pointer";
    return element;
  }

  function paintTrails() {
    slider.value = time;
    clockText.textContent = clock(time);
    trails.replaceChildren();
    for (const t of known) {
      if (!shown(t) || T.start[t] > time || T.end[t] < time - trail) continue;
      const path = data.paths[t], last = path[path.length - 1], now = positionAt(path, Math.min(time, last[0]));
      const points = path.filter((p) => p[0] >= time - trail && p[0] < now[0]).concat([now]);
      trails.append(clickable(s("path", {
        d: line(points), fill: "none", stroke: colourOf(t), "stroke-width": 3, "stroke-linecap": "round", "stroke-linejoin": "round",
      }), t));
      if (T.end[t] < time) continue;
      trails.append(clickable(s("circle", {
        cx: now[1], cy: -now[2], r: 6 * unit, fill: colourOf(t), stroke: "var(--paper)", "stroke-width": 1.5, "data-tracklet": t,
      }), t));
      trails.append(s("text", {
        x: now[1] + 8 * unit, y: -now[2] + 4 * unit, "font-size": 13 * unit, fill: "var(--ink)", "font-weight": 600,
      }, String(current.identity[t])));
    }
  }

  function update() {
    paths.replaceChildren(...known.filter(shown).map((t) =>
      clickable(s("path", {d: line(data.paths[t]), stroke: colourOf(t), opacity: only === "" ? 0.28 : 0.8}), t)));
    fill(legend, colouring === "camera" ? data.cameras.map((_, c) => tag(c)) : null);
    paintTrails();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  /** Play ten times as fast as real time, or longer recordings within two minutes. */
  function toggle() {
    if (timer !== null) {
      stop();
      return;
    }
    const length = everything.to - everything.from, step_ = Math.max(1, length / 1200);
    if (time >= everything.to) time = everything.from;
    play.textContent = "Stop";
    timer = setInterval(() => {
      time = Math.min(everything.to, time + step_);
      paintTrails();
      if (time >= everything.to || view !== "floor") stop();
    }, 100);
  }

  const jump = (by) => { time = Math.max(everything.from, Math.min(everything.to, time + by)); paintTrails(); };
  return {
    title: "Floor plan",
    draw() {
      view_.replaceChildren(panel);
      unit = Math.max(box.w / picture.clientWidth, box.h / picture.clientHeight);
      update();
    },
    keys: {ArrowRight: () => jump(1), ArrowLeft: () => jump(-1), " ": toggle},
  };
})();
