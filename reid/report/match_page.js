"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const crops = JSON.parse(document.getElementById("crops").textContent);
const T = data.tracklets, L = data.links, rules = data.rules;
const count = T.camera.length;
const byStart = (a, b) => T.start[a] - T.start[b] || a - b;

/** An element with properties or attributes, and children: strings become text, never markup. */
function h(tag, settings, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(settings ?? {})) {
    if (name in element && name !== "style" && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  return fill(element, ...children);
}

/** The element with nothing but these children; null is none. */
function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null));
  return element;
}

// ---------------------------------------------------------------- words

const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const number = (value, digits) => (value === null ? "unknown" : value.toFixed(digits));

function clock(seconds) {
  const whole = Math.floor(Math.abs(seconds)), two = (n) => String(n).padStart(2, "0");
  return `${seconds < 0 ? "−" : ""}${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

function lasting(seconds) {
  if (seconds < 90) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const partsOf = new Map();
for (let t = 0; t < count; t++) {
  const track = `${T.camera[t]} ${T.track[t]}`;
  partsOf.set(track, (partsOf.get(track) ?? []).concat(t));
}
const partsBeside = (t) => partsOf.get(`${T.camera[t]} ${T.track[t]}`);
const cameraOf = (t) => data.cameras[T.camera[t]];

function trackName(t) {
  const parts = partsBeside(t);
  return `track ${T.track[t]}${parts.length > 1 ? `, part ${parts.indexOf(t) + 1} of ${parts.length}` : ""}`;
}
const fullName = (t) => `${cameraOf(t)}, ${trackName(t)}`;
const span = (t) => `${clock(T.start[t])} – ${clock(T.end[t])}`;

function gapInWords(i, j) {
  const gap = Math.max(T.start[i], T.start[j]) - Math.min(T.end[i], T.end[j]);
  return gap >= 0 ? `${lasting(gap)} between them` : `both in view for ${lasting(-gap)}`;
}

// ---------------------------------------------------------------- what a person decided
// A step is {do, tracklets, rest}: accept and merge say that all its tracklets are one person, reject that its two
// are not, split that its tracklets are one person and none of the rest.

const stoppedBy = new Map();
L.first.forEach((i, l) => {
  const reason = L.reasons[L.reason[l]];
  if (reason && reason !== "cannot-link") stoppedBy.set(`${i} ${L.second[l]}`, reason);
});

const storeName = `reid-review-${data.run}`;
let stored = true;
let steps = recall();
let now = replay(steps);

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(storeName));
    return Array.isArray(kept) ? kept : [];
  } catch {
    stored = false;
    return [];
  }
}

function remember() {
  try {
    localStorage.setItem(storeName, JSON.stringify(steps));
  } catch {
    stored = false;
  }
}

function pairsOf(step) {
  const [a, b] = step.tracklets;
  if (step.do === "reject") return {merge: [], split: [[a, b]]};
  const chain = step.tracklets.slice(1).map((t, at) => [step.tracklets[at], t]);
  return {merge: chain, split: (step.rest ?? []).flatMap((r) => step.tracklets.map((t) => [t, r]))};
}

/** The number of the group of each tracklet when the pairs are joined. */
function groups(pairs) {
  const parent = Array.from({length: count}, (_, t) => t);
  const root = (t) => {
    while (parent[t] !== t) t = parent[t] = parent[parent[t]];
    return t;
  };
  for (const [a, b] of pairs) parent[root(a)] = root(b);
  return parent.map((_, t) => root(t));
}

function replay(all) {
  const identity = T.identity.slice();
  const merge = rules.must.slice(), split = rules.cannot.slice();
  const touched = new Set();
  let last = identity.reduce((most, n) => Math.max(most, n), 0);
  for (const step of all) {
    const pairs = pairsOf(step);
    merge.push(...pairs.merge);
    split.push(...pairs.split);
    if (step.do === "split") {
      last += 1;
      for (const t of step.tracklets) identity[t] = last;
    } else if (step.do !== "reject") {
      const joined = new Set(step.tracklets.map((t) => identity[t]));
      const kept = Math.min(...joined);
      identity.forEach((n, t) => {
        if (joined.has(n)) identity[t] = kept;
      });
    }
    for (const t of [...step.tracklets, ...(step.rest ?? [])]) touched.add(t);
  }
  const people = new Map();
  identity.forEach((n, t) => {
    if (!people.has(n)) people.set(n, []);
    people.get(n).push(t);
  });
  const group = groups(merge);
  const apart = new Set();
  for (const [a, b] of split) apart.add(`${group[a]} ${group[b]}`).add(`${group[b]} ${group[a]}`);
  const state = {identity, merge, split, group, apart, touched, people: new Map()};
  for (const [n, members] of people) {
    members.sort(byStart);
    const changed = members.some((t) => touched.has(t));
    const sure = members.map((t) => T.confidence[t]).filter((c) => c !== null);
    state.people.set(n, {
      number: n,
      members,
      cameras: [...new Set(members.map((t) => T.camera[t]))].sort((a, b) => a - b),
      start: T.start[members[0]],
      end: Math.max(...members.map((t) => T.end[t])),
      confidence: sure.length ? sure.reduce((a, b) => a + b) / sure.length : null,
      changed,
      broken: changed ? brokenBy(members, (a, b) => apart.has(`${group[a]} ${group[b]}`)) : null,
    });
  }
  return state;
}

/** What a person said of a pair, directly or by what follows: "same", "different" or "". */
function said(i, j) {
  if (now.group[i] === now.group[j]) return "same";
  return now.apart.has(`${now.group[i]} ${now.group[j]}`) ? "different" : "";
}

/** The rule of time that forbids a pair, in words, or "". The same rules as the match's (docs/matching.md). */
function forbidden(a, b) {
  const [i, j] = byStart(a, b) <= 0 ? [a, b] : [b, a];
  const from = T.camera[i], to = T.camera[j], gap = T.start[j] - T.end[i];
  const together = Math.min(T.end[i], T.end[j]) - T.start[j] >= rules.tolerance;
  if (from === to && together) return "in one camera at once";
  if (from !== to) {
    if (together && rules.non_overlapping[from][to]) return "at once in cameras that do not overlap";
    const least = rules.min_transition_time[from][to];
    if (least >= rules.never) return "on a way that nobody goes";
    if (gap < least - rules.tolerance) return `${lasting(Math.max(gap, 0))} apart, and the way takes ${lasting(least)}`;
  }
  const reason = stoppedBy.get(`${Math.min(a, b)} ${Math.max(a, b)}`);
  return reason ? `stopped by a rule of the run: ${reason}` : "";
}

/** The first pair of members that cannot be one person, {pair, why}, or null. */
function brokenBy(members, different) {
  for (let a = 0; a < members.length; a++) {
    for (let b = a + 1; b < members.length; b++) {
      const pair = [members[a], members[b]];
      if (different(...pair)) return {pair, why: "different people, as was decided"};
      const why = forbidden(...pair);
      if (why) return {pair, why};
    }
  }
  return null;
}

/** Why the next run could not obey a step beside all others, in words, or "". */
function refusal(step) {
  const pairs = pairsOf(step);
  const group = groups(now.merge.concat(pairs.merge));
  const split = now.split.concat(pairs.split);
  const hit = new Set(step.tracklets.map((t) => group[t]));
  for (const [a, b] of split) {
    if (group[a] === group[b] && hit.has(group[a])) {
      return `This contradicts what was decided before: ${fullName(a)} and ${fullName(b)} would be one person and two.`;
    }
  }
  if (!pairs.merge.length) return "";
  for (const one of hit) {
    const members = group.flatMap((g, t) => (g === one ? [t] : []));
    const broken = brokenBy(members, () => false);
    if (broken) {
      const [a, b] = broken.pair.map(fullName);
      return `${a} and ${b} cannot be one person: they are ${broken.why}.`;
    }
  }
  return "";
}

function describe(step) {
  if (step.do === "accept" || step.do === "reject") {
    const [a, b] = step.tracklets.map(fullName);
    return `${a} and ${b} are ${step.do === "accept" ? "one person" : "different people"}`;
  }
  if (step.do === "merge") return `merge of ${plural(step.tracklets.length, "tracklet")}`;
  return `split of ${plural(step.tracklets.length, "tracklet")} from ${step.rest.length}`;
}

/** Take a decision, unless it cannot be obeyed. */
function decide(step) {
  const why = refusal(step);
  if (why) {
    say(why, true);
    return false;
  }
  steps.push(step);
  settle(`Noted: ${describe(step)}.`);
  return true;
}

function undo() {
  const step = steps.pop();
  if (!step) {
    say("There is nothing to undo.");
    return;
  }
  const [i, j] = step.tracklets;
  settle(`Undone: ${describe(step)}.`);
  if (view === "review") review.show(i, j);
}

function settle(words) {
  remember();
  now = replay(steps);
  if (opened !== null && !now.people.has(opened)) opened = null;
  say(words);
  refresh();
}

/** The constraints file: all decisions of this page, with those that the run was given. */
function constraintsFile() {
  const key = (t) => {
    const parts = partsBeside(t);
    return parts.length > 1 ? [cameraOf(t), T.track[t], T.frame[t]] : [cameraOf(t), T.track[t]];
  };
  const file = {format: 1, ...structuredClone(rules.kept)};
  for (const step of steps) {
    const pairs = pairsOf(step);
    for (const kind of ["merge", "split"]) file[kind].push(...pairs[kind].map((pair) => pair.map(key)));
  }
  for (const kind of ["merge", "split"]) {
    file[kind] = [...new Map(file[kind].map((pair) => [JSON.stringify(pair), pair])).values()];
  }
  return `${JSON.stringify(file, null, 1)}\n`;
}

function download() {
  const url = URL.createObjectURL(new Blob([constraintsFile()], {type: "application/json"}));
  h("a", {href: url, download: "constraints.json"}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  say("constraints.json is in your downloads. Give it to the next run with --constraints.");
}

// ---------------------------------------------------------------- parts of the page

const view_ = document.getElementById("view");
const message = document.getElementById("message");
let view = "timelines";
let opened = null;

function say(words, wrong = false) {
  message.textContent = words;
  message.className = wrong ? "wrong" : "";
}

function swatch(camera) {
  const pattern = Math.floor(camera / data.colours.length) % 3;
  return {className: `camera pattern${pattern}`, style: `--camera: ${data.colours[camera % data.colours.length]}`};
}

/** A name tag of a camera. */
function tag(camera) {
  return h("span", {className: "tag"}, h("i", swatch(camera)), data.cameras[camera]);
}

function pictures(t, most, height) {
  const have = crops[t].slice(0, most);
  if (!have.length) {
    return [h("span", {className: "placeholder", style: `height: ${height}px`}, cameraOf(t), h("br"), trackName(t))];
  }
  return have.map((jpeg) => h("img", {
    src: `data:image/jpeg;base64,${jpeg}`, style: `height: ${height}px`, alt: `crop of ${fullName(t)}`,
  }));
}

/** A scrolled list that holds elements only for the rows in sight. */
function longList(box, rowHeight, draw) {
  const sheet = h("div", {className: "sheet"});
  box.replaceChildren(sheet);
  let rows = 0, waiting = false;
  const show = () => {
    waiting = false;
    const from = Math.max(0, Math.floor(box.scrollTop / rowHeight) - 4);
    const to = Math.min(rows, Math.ceil((box.scrollTop + box.clientHeight) / rowHeight) + 4);
    const drawn = [];
    for (let at = from; at < to; at++) {
      const row = draw(at);
      row.style.top = `${at * rowHeight}px`;
      row.style.height = `${rowHeight}px`;
      drawn.push(row);
    }
    sheet.replaceChildren(...drawn);
  };
  box.addEventListener("scroll", () => {
    if (!waiting) requestAnimationFrame(show);
    waiting = true;
  });
  new ResizeObserver(show).observe(box);
  return {
    show(n) {
      rows = n;
      sheet.style.height = `${n * rowHeight}px`;
      show();
    },
    reveal(at) {
      if (at * rowHeight < box.scrollTop) box.scrollTop = at * rowHeight;
      else if ((at + 1) * rowHeight > box.scrollTop + box.clientHeight) {
        box.scrollTop = (at + 1) * rowHeight - box.clientHeight;
      }
      show();
    },
  };
}

function choice(label, id, options, onchange) {
  const select = h("select", {id, onchange: () => onchange(select.value)},
    options.map(([value, words]) => h("option", {value}, words)));
  return h("label", null, `${label} `, select);
}

// ---------------------------------------------------------------- timelines

const everything = {
  from: T.start.reduce((least, s) => Math.min(least, s), Infinity),
  to: T.end.reduce((most, e) => Math.max(most, e), -Infinity),
};
if (!count) Object.assign(everything, {from: 0, to: 1});
if (everything.to - everything.from < 1) everything.to = everything.from + 1;

const timelines = (() => {
  const filter = {words: "", camera: "", least: "1", sort: "number", route: null};
  const period = {...everything};
  let listed = [], list = null, dragged = null;
  const found = new Map();

  const search = h("input", {
    type: "search", id: "search", placeholder: "identity, camera or track",
    oninput: () => { filter.words = search.value; update(); },
  });
  const counted = h("span", {id: "counted"});
  const route = h("button", {id: "route", onclick: () => { filter.route = null; update(); }});
  const whole = h("button", {id: "whole", onclick: () => zoom(everything)}, "Whole time");
  const canvas = h("canvas", {id: "lanes", onmousemove: hover, onmousedown: press});
  const labels = h("div", {className: "labels"}, data.cameras.map((name, c) =>
    h("div", {className: "lane", title: name}, h("i", swatch(c)), name)));
  const lanes = h("div", {className: "lanes"}, labels, canvas);
  const rows = h("div", {id: "rows", className: "list", tabIndex: 0, "aria-label": "identities"});
  const detail = h("aside", {id: "detail"});
  const marked = new Set();

  const panel = h("div", {className: "timelines"},
    h("div", {className: "left"},
      h("div", {className: "filters"},
        h("label", null, "Find ", search),
        choice("Seen in", "seen-in", [["", "any camera"], ...data.cameras.map((name, c) => [String(c), name])],
          (value) => { filter.camera = value; update(); }),
        choice("Which", "which", [["1", "all"], ["2", "in 2 or more cameras"], ["3", "in 3 or more cameras"],
          ["single", "singles"], ["changed", "changed here"]], (value) => { filter.least = value; update(); }),
        choice("Order", "order", [["number", "by number"], ["doubt", "least confident first"],
          ["start", "by first sight"], ["size", "most tracklets first"]],
          (value) => { filter.sort = value; update(); }),
        route, counted, whole),
      lanes, rows),
    detail);

  const laneHeight = data.cameras.length <= 12 ? 20 : data.cameras.length <= 30 ? 14 : 12;
  const axisHeight = 18;
  panel.style.setProperty("--lane", `${laneHeight}px`);
  panel.style.setProperty("--axis", `${axisHeight}px`);

  function matchesWords(person, words) {
    let hay = found.get(person.number);
    if (hay?.members !== person.members) {
      const names = person.members.map((t) => `${cameraOf(t)} ${cameraOf(t)}/${T.track[t]} track ${T.track[t]}`);
      hay = {members: person.members, text: `identity ${person.number} #${person.number} ${names.join(" ")}`.toLowerCase()};
      found.set(person.number, hay);
    }
    return words.every((word) => (/^\d+$/.test(word) ? String(person.number) === word : hay.text.includes(word)));
  }

  function update() {
    const words = filter.words.toLowerCase().split(/\s+/).filter(Boolean);
    listed = [...now.people.values()].filter((person) =>
      (filter.camera === "" || person.cameras.includes(Number(filter.camera)))
      && (filter.least === "single" ? person.members.length === 1
        : filter.least === "changed" ? person.changed : person.cameras.length >= Number(filter.least))
      && (!filter.route || walks(person).some((w) => w.from === filter.route[0] && w.to === filter.route[1]))
      && person.start <= period.to && person.end >= period.from
      && matchesWords(person, words));
    const doubt = (person) => person.confidence ?? -1;
    listed.sort({
      number: (a, b) => a.number - b.number,
      doubt: (a, b) => doubt(a) - doubt(b) || a.number - b.number,
      start: (a, b) => a.start - b.start || a.number - b.number,
      size: (a, b) => b.members.length - a.members.length || a.number - b.number,
    }[filter.sort]);
    route.hidden = !filter.route;
    if (filter.route) route.textContent = `${filter.route.map((c) => data.cameras[c]).join(" → ")} ✕`;
    whole.hidden = period.from === everything.from && period.to === everything.to;
    counted.textContent = `${listed.length.toLocaleString("en")} of ${plural(now.people.size, "identity", "identities")}`;
    list.show(listed.length);
    paint();
    showDetail();
  }

  const place = (seconds) => (seconds - period.from) / (period.to - period.from);

  function row(at) {
    const person = listed[at];
    const bars = person.members.filter((t) => T.end[t] >= period.from && T.start[t] <= period.to).map((t) => {
      const left = Math.max(0, place(T.start[t])), right = Math.min(1, place(T.end[t]));
      const bar = h("span", swatch(T.camera[t]), h("em", null, cameraOf(t)));
      bar.classList.add("bar");
      bar.style.left = `${100 * left}%`;
      bar.style.width = `max(4px, ${100 * (right - left)}%)`;
      bar.title = `${fullName(t)}, ${span(t)}`;
      return bar;
    });
    const best = person.members.find((t) => crops[t].length);
    return h("div", {
      className: `row${person.number === opened ? " open" : ""}`, "data-identity": person.number,
      onclick: () => open(person.number),
    },
    h("span", {className: "face"}, best === undefined ? null : pictures(best, 1, 38)),
    h("span", {className: "who"}, h("b", null, person.number),
      h("small", null, `${plural(person.cameras.length, "camera")}${person.broken ? " ⚠" : person.changed ? " ✎" : ""}`)),
    h("span", {className: "bars"}, bars));
  }

  // -------- lanes

  function ticks(width) {
    const steps_ = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
    const wanted = (period.to - period.from) / Math.max(2, width / 90);
    const step = steps_.find((s) => s >= wanted) ?? Math.ceil(wanted / 86400) * 86400;
    const marks = [];
    for (let s = Math.ceil(period.from / step) * step; s <= period.to; s += step) marks.push(s);
    return marks;
  }

  function paint() {
    const width = canvas.clientWidth, height = axisHeight + laneHeight * data.cameras.length;
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.body);
    const ink = style.getPropertyValue("--ink"), faint = style.getPropertyValue("--line");
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    pen.lineWidth = 1;
    for (const s of ticks(width)) {
      const x = Math.round(place(s) * width) + 0.5;
      pen.strokeStyle = faint;
      pen.beginPath();
      pen.moveTo(x, axisHeight);
      pen.lineTo(x, height);
      pen.stroke();
      pen.fillStyle = style.getPropertyValue("--soft");
      pen.textAlign = x < 24 ? "left" : x > width - 24 ? "right" : "center";
      pen.fillText(clock(s), x, 12);
    }
    data.cameras.forEach((_, c) => {
      pen.fillStyle = faint;
      pen.fillRect(0, axisHeight + (c + 1) * laneHeight - 1, width, 1);
    });
    const shown = new Set(listed.map((person) => person.number));
    const bar = (t, alpha, inset) => {
      const x = place(T.start[t]) * width, w = Math.max(2, (place(T.end[t]) - place(T.start[t])) * width);
      const top = axisHeight + T.camera[t] * laneHeight;
      pen.globalAlpha = alpha;
      pen.fillStyle = data.colours[T.camera[t] % data.colours.length];
      pen.fillRect(x, top + inset, w, laneHeight - 1 - 2 * inset);
      return [x, w, top];
    };
    const person = now.people.get(opened);
    for (let t = 0; t < count; t++) {
      if (now.identity[t] !== opened) bar(t, !shown.has(now.identity[t]) ? 0.06 : person ? 0.18 : 0.45, 3);
    }
    if (person) {
      pen.globalAlpha = 1;
      pen.strokeStyle = ink;
      pen.lineWidth = 1.5;
      pen.beginPath();
      for (const t of person.members) {
        const y = axisHeight + (T.camera[t] + 0.5) * laneHeight;
        pen.lineTo(place(T.start[t]) * width, y);
        pen.lineTo(place(T.end[t]) * width, y);
      }
      pen.stroke();
      for (const t of person.members) {
        const [x, w, top] = bar(t, 1, 2);
        pen.strokeRect(x, top + 2, w, laneHeight - 5);
      }
    }
    pen.globalAlpha = 1;
    if (dragged?.to !== undefined) {
      pen.globalAlpha = 0.2;
      pen.fillStyle = ink;
      pen.fillRect(Math.min(dragged.from, dragged.to), axisHeight, Math.abs(dragged.to - dragged.from), height);
      pen.globalAlpha = 1;
    }
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const camera = Math.floor((event.clientY - box.top - axisHeight) / laneHeight);
    const second = (pixel) => period.from + ((event.clientX - box.left + pixel) / box.width) * (period.to - period.from);
    let best = null;
    for (let t = 0; t < count; t++) {
      if (T.camera[t] !== camera || T.start[t] > second(3) || T.end[t] < second(-3)) continue;
      if (best === null || T.end[t] - T.start[t] < T.end[best] - T.start[best]) best = t;
    }
    return best;
  }

  function hover(event) {
    if (dragged) return;
    const t = under(event);
    canvas.title = t === null ? "" : `identity ${now.identity[t]}: ${fullName(t)}, ${span(t)}`;
    canvas.style.cursor = t === null ? "crosshair" : "pointer";
  }

  function press(event) {
    if (event.button !== 0) return;
    const box = canvas.getBoundingClientRect();
    const at = (e) => Math.min(box.width, Math.max(0, e.clientX - box.left));
    dragged = {from: at(event)};
    const move = (e) => {
      if (Math.abs(at(e) - dragged.from) > 5) dragged.to = at(e);
      paint();
    };
    const release = () => {
      removeEventListener("mousemove", move);
      removeEventListener("mouseup", release);
      const {from, to} = dragged;
      dragged = null;
      if (to !== undefined) {
        const second = (x) => period.from + (x / box.width) * (period.to - period.from);
        zoom({from: second(Math.min(from, to)), to: second(Math.max(from, to))});
      } else {
        const t = under(event);
        if (t !== null) open(now.identity[t]);
      }
    };
    addEventListener("mousemove", move);
    addEventListener("mouseup", release);
  }

  function zoom(to) {
    Object.assign(period, {from: to.from, to: to.to});
    update();
  }

  // -------- one identity

  function open(n) {
    opened = n;
    marked.clear();
    update();
    const at = listed.findIndex((person) => person.number === n);
    if (at >= 0) list.reveal(at);
    detail.scrollTop = 0;
  }

  function card(t) {
    const box = h("input", {
      type: "checkbox", "data-tracklet": t, checked: marked.has(t),
      onchange: () => {
        if (box.checked) marked.add(t);
        else marked.delete(t);
        showDetail();
      },
    });
    return h("label", {className: `card${marked.has(t) ? " marked" : ""}`, title: fullName(t)},
      h("span", {className: "card-head"}, box, tag(T.camera[t]), h("small", null, trackName(t))),
      h("span", {className: "crops"}, pictures(t, 6, 96)),
      h("small", null, `${span(t)}, ${plural(T.frames[t], "box", "boxes")}`,
        T.appearance[t] ? "" : ", no appearance known"));
  }

  function nearest(person) {
    const best = new Map();
    const inside = new Set(person.members);
    L.first.forEach((i, l) => {
      const j = L.second[l];
      if (inside.has(i) === inside.has(j)) return;
      const other = now.identity[inside.has(i) ? j : i];
      const had = best.get(other);
      if (had === undefined || (L.probability[l] ?? 0) > (L.probability[had] ?? 0)) best.set(other, l);
    });
    return [...best].sort((a, b) => (L.probability[b[1]] ?? 0) - (L.probability[a[1]] ?? 0)).slice(0, 6);
  }

  function merge(a, b) {
    if (a === b || !now.people.has(b)) {
      say(a === b ? "That is this identity itself." : `There is no identity ${b}.`, true);
      return;
    }
    const members = [...now.people.get(a).members, ...now.people.get(b).members].sort(byStart);
    if (decide({do: "merge", tracklets: members})) open(Math.min(a, b));
  }

  function split() {
    const person = now.people.get(opened);
    const off = person.members.filter((t) => marked.has(t)), rest = person.members.filter((t) => !marked.has(t));
    if (!off.length || !rest.length) {
      say("Mark some of the tracklets, not all: those are split off.", true);
      return;
    }
    if (decide({do: "split", tracklets: off, rest})) open(now.identity[rest[0]]);
  }

  function showDetail() {
    const person = now.people.get(opened);
    if (!person) {
      fill(detail, h("p", {className: "hint"}, "Click an identity or a bar to see its crops side by side. ",
        "Drag over the lanes to look at a part of the time. ",
        h("br"), h("kbd", null, "↑"), " ", h("kbd", null, "↓"), " go through the identities, ",
        h("kbd", null, "1"), " ", h("kbd", null, "2"), " ", h("kbd", null, "3"), " change the view, ",
        h("kbd", null, "u"), " undoes."));
      return;
    }
    const other = h("input", {type: "number", id: "merge-number", min: 1, placeholder: "no.", "aria-label": "number of the other identity"});
    fill(detail,
      h("h2", null, `Identity ${person.number}`,
        h("button", {className: "close", "aria-label": "close", onclick: () => { opened = null; update(); }}, "✕")),
      h("p", {className: "hint"}, `${plural(person.members.length, "tracklet")} in ${plural(person.cameras.length, "camera")}, `,
        `${clock(person.start)} – ${clock(person.end)}, confidence ${number(person.confidence, 2)}`),
      person.broken ? h("p", {className: "warnings"},
        `${person.broken.pair.map(fullName).join(" and ")} are ${person.broken.why}: the next run will divide this identity. `,
        "To say how, mark tracklets and split them off.") : null,
      h("div", {className: "doing tools"},
        h("button", {id: "split", onclick: split, disabled: !marked.size}, `Split off the marked (${marked.size})`),
        h("form", {onsubmit: (event) => { event.preventDefault(); merge(person.number, Number(other.value)); }},
          "Merge with ", other, " ", h("button", {id: "merge"}, "Merge"))),
      h("div", {className: "cards"}, person.members.map(card)),
      h("h3", null, "Most like it"),
      nearest(person).map(([n, l]) => {
        const inThem = now.identity[L.first[l]] === n ? L.first[l] : L.second[l];
        return h("div", {className: "like"},
          h("span", {className: "crops"}, pictures(inThem, 2, 64)),
          h("span", null, h("button", {className: "link", onclick: () => open(n)}, `Identity ${n}`), h("br"), tag(T.camera[inThem]),
            h("br"), h("small", null, `p(same) ${number(L.probability[l], 2)}, distance ${number(L.distance[l], 3)}`,
              L.reasons[L.reason[l]] ? `, ${L.reasons[L.reason[l]]}` : "")),
          h("span", {className: "doing"},
            h("button", {onclick: () => { go("review"); review.show(L.first[l], L.second[l]); }}, "Compare"),
            h("button", {onclick: () => merge(person.number, n)}, "Merge")));
      }));
  }

  function step(by) {
    const at = listed.findIndex((person) => person.number === opened);
    const next = Math.min(listed.length - 1, Math.max(0, at + by));
    if (listed.length) open(listed[next].number);
  }

  addEventListener("resize", () => view === "timelines" && paint());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view === "timelines" && paint());
  return {
    title: "Timelines",
    draw() {
      view_.replaceChildren(panel);
      list ??= longList(rows, 44, row);
      update();
    },
    keys: {ArrowDown: () => step(1), ArrowUp: () => step(-1)},
    open,
    follow(from, to) {
      filter.route = [from, to];
      go("timelines");
    },
  };
})();

// ---------------------------------------------------------------- review

const review = (() => {
  const doubt = (l) => 1 - 2 * Math.abs((L.probability[l] ?? 0.5) - 0.5);
  const wrong = (l) => {
    const p = L.probability[l] ?? 0.5;
    return now.identity[L.first[l]] === now.identity[L.second[l]] ? 1 - p : p;
  };
  const together = (l) => now.identity[L.first[l]] === now.identity[L.second[l]];
  const stopped = (l) => L.reasons[L.reason[l]] !== "";
  const kinds = {
    open: ["open questions", (l) => !said(L.first[l], L.second[l]) && !stopped(l)],
    joined: ["joined, not decided here", (l) => together(l) && !said(L.first[l], L.second[l])],
    apart: ["kept apart, not decided here", (l) => !together(l) && !stopped(l) && !said(L.first[l], L.second[l])],
    stopped: ["stopped by a rule", stopped],
    decided: ["decided by a person", (l) => said(L.first[l], L.second[l]) !== ""],
    all: ["all pairs", () => true],
  };
  let kind = "open", order = "doubt", queue = [], at = 0, list = null;

  const rows = h("div", {id: "queue", className: "list", tabIndex: 0, "aria-label": "pairs to review"});
  const counted = h("span", {id: "queue-counted"});
  const pair = h("div", {id: "pair"});
  const kindChoice = choice("Show", "kind", Object.entries(kinds).map(([name, [words]]) => [name, words]),
    (value) => { kind = value; at = 0; update(); });
  const panel = h("div", {className: "review"},
    h("div", {className: "left"},
      h("div", {className: "filters"}, kindChoice,
        choice("Order", "queue-order", [["doubt", "least certain first"], ["wrong", "most likely wrong first"]],
          (value) => { order = value; at = 0; update(); }),
        counted),
      rows),
    pair);

  function update() {
    const rank = order === "doubt" ? doubt : wrong;
    const all = L.first.map((_, l) => l).filter(kinds[kind][1]);
    const ranks = new Map(all.map((l) => [l, rank(l)]));
    queue = all.sort((a, b) => ranks.get(b) - ranks.get(a) || a - b);
    at = Math.max(0, Math.min(at, queue.length - 1));
    counted.textContent = plural(queue.length, "pair");
    list.show(queue.length);
    if (queue.length) list.reveal(at);
    showPair();
  }

  const sign = (l) => ({same: "✓", different: "✗", "": ""}[said(L.first[l], L.second[l])]);

  function row(place) {
    const l = queue[place];
    const side = (t) => h("span", {className: "side"}, h("span", {className: "face"}, pictures(t, 1, 38)),
      h("span", null, tag(T.camera[t]), h("small", null, trackName(t))));
    return h("div", {
      className: `row${place === at ? " open" : ""}`, "data-pair": `${L.first[l]} ${L.second[l]}`,
      onclick: () => { at = place; list.show(queue.length); showPair(); },
    }, side(L.first[l]), side(L.second[l]),
    h("span", {className: "p"}, h("b", null, `${sign(l)} ${L.probability[l] === null ? "p ?" : L.probability[l].toFixed(2)}`),
      h("small", null, together(l) ? "joined" : stopped(l) ? "stopped" : "apart")));
  }

  function side(t) {
    const n = now.identity[t];
    const others = now.people.get(n).members.filter((m) => m !== t);
    return h("div", {className: "side"},
      h("div", {className: "side-head"}, tag(T.camera[t]), " ", trackName(t)),
      h("div", {className: "crops"}, pictures(t, 4, 192)),
      h("p", {className: "hint"}, span(t), `, ${plural(T.frames[t], "box", "boxes")}, `,
        h("button", {className: "link", onclick: () => { go("timelines"); timelines.open(n); }}, `identity ${n}`),
        T.appearance[t] ? "" : ", no appearance known"),
      others.length ? h("div", {className: "others"}, h("small", null, `Identity ${n} holds also:`),
        h("div", {className: "crops"}, others.slice(0, 8).map((m) =>
          h("figure", {title: `${fullName(m)}, ${span(m)}`}, pictures(m, 1, 72), h("figcaption", null, cameraOf(m)))),
        others.length > 8 ? h("small", null, `and ${others.length - 8} more`) : null)) : null);
  }

  function showPair() {
    if (!queue.length) {
      fill(pair, h("p", {className: "hint"}, "No pairs here: nothing is left to look at under this choice."));
      return;
    }
    const l = queue[at], i = L.first[l], j = L.second[l];
    const fact = (name, words, id = "") => h("div", null, h("dt", null, name), h("dd", {id}, words));
    const decision = {same: "one person", different: "different people", "": "none yet"}[said(i, j)];
    fill(pair,
      h("div", {className: "sides"}, side(i), side(j)),
      h("dl", {className: "facts"},
        fact("p(same)", number(L.probability[l], 3), "fact-p"),
        fact("distance", `${number(L.distance[l], 4)} (joined at ${number(data.threshold, 4)} or less)`),
        fact("cameras", T.camera[i] === T.camera[j] ? `${cameraOf(i)}, twice` : `${cameraOf(i)}, ${cameraOf(j)}`),
        fact("time", gapInWords(i, j)),
        fact("this run", `${L.joined[l] ? "joined" : "kept apart"}${L.reasons[L.reason[l]] ? `, stopped: ${L.reasons[L.reason[l]]}` : ""}`, "fact-run"),
        fact("a person's decision", decision, "fact-said")),
      h("div", {className: "doing"},
        h("button", {onclick: () => move(-1)}, "← Back"),
        h("button", {id: "accept", className: "same", onclick: accept}, "✓ Same person ", h("kbd", null, "a")),
        h("button", {id: "reject", className: "different", onclick: reject}, "✗ Different people ", h("kbd", null, "r")),
        h("button", {onclick: () => move(1)}, "Skip →")));
  }

  function move(by) {
    at = Math.max(0, Math.min(queue.length - 1, at + by));
    list.show(queue.length);
    list.reveal(at);
    showPair();
  }

  function judge(what) {
    if (!queue.length) return;
    const l = queue[at], stays = kind === "all" || kind === "decided" || kind === "stopped";
    const words = {accept: "same", reject: "different"}[what];
    if (said(L.first[l], L.second[l]) === words) {
      say("That is decided already.");
      return;
    }
    if (decide({do: what, tracklets: [L.first[l], L.second[l]]}) && stays) move(1);
  }
  const accept = () => judge("accept"), reject = () => judge("reject");

  return {
    title: "Review",
    draw() {
      view_.replaceChildren(panel);
      list ??= longList(rows, 48, row);
      update();
    },
    /** Go to a pair, if it is a candidate pair in the page. */
    show(i, j) {
      const l = L.first.findIndex((first, k) => first === i && L.second[k] === j);
      if (l < 0) return;
      if (!kinds[kind][1](l)) {
        kind = "all";
        kindChoice.querySelector("select").value = kind;
      }
      update();
      at = Math.max(0, queue.indexOf(l));
      move(0);
    },
    keys: {ArrowRight: () => move(1), ArrowLeft: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
      a: accept, r: reject},
  };
})();

// ---------------------------------------------------------------- travel

/** The ways of an identity from each of its tracklets to the next in time: {from, to, seconds}. */
function walks(person) {
  return person.members.slice(1).map((t, at) => {
    const before = person.members[at];
    return {from: T.camera[before], to: T.camera[t], seconds: T.start[t] - T.end[before]};
  });
}

const travel = (() => {
  const panel = h("div", {className: "travel"});

  function median(values) {
    const sorted = values.slice().sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }

  function update() {
    const cells = new Map();
    for (const person of now.people.values()) {
      for (const walk of walks(person)) {
        const key = `${walk.from} ${walk.to}`;
        if (!cells.has(key)) cells.set(key, []);
        cells.get(key).push(walk.seconds);
      }
    }
    const most = Math.max(1, ...[...cells.values()].map((times) => times.length));
    fill(panel,
      h("p", {className: "hint"}, "How often identities went from the camera of a row straight to that of a column, ",
        "and the median time from the last box there to the first box here (negative: in view of both). ",
        "On the diagonal: seen again by the same camera. Click a cell to see who."),
      h("div", {className: "scroll"}, h("table", {id: "travel"},
        h("thead", null, h("tr", null, h("th", null, "from ╲ to"), data.cameras.map((_, c) => h("th", {scope: "col"}, tag(c))))),
        h("tbody", null, data.cameras.map((_, from) => h("tr", null, h("th", {scope: "row"}, tag(from)),
          data.cameras.map((_, to) => {
            const times = cells.get(`${from} ${to}`);
            if (!times) return h("td", null, "");
            const middle = median(times);
            return h("td", null, h("button", {
              className: "cell", style: `--share: ${Math.round(100 * Math.sqrt(times.length / most))}%`,
              "data-way": `${from} ${to}`, onclick: () => timelines.follow(from, to),
            }, h("b", null, times.length), h("small", null, `${middle < 0 ? "−" : ""}${lasting(Math.abs(middle))}`)));
          })))))));
  }

  return {
    title: "Travel",
    draw() {
      view_.replaceChildren(panel);
      update();
    },
    keys: {},
  };
})();

// ---------------------------------------------------------------- the bar and the keyboard

const views = {timelines, review, travel};
const tabs = document.getElementById("tabs");
const actions = document.getElementById("actions");
const undoButton = h("button", {id: "undo", onclick: undo}, "Undo");
const downloadButton = h("button", {id: "download", className: "main", onclick: download});
actions.append(undoButton, downloadButton);
for (const [name, {title}] of Object.entries(views)) {
  tabs.append(h("button", {role: "tab", id: `tab-${name}`, onclick: () => go(name)}, title));
}

function go(name) {
  view = name;
  refresh();
}

function refresh() {
  for (const name of Object.keys(views)) {
    document.getElementById(`tab-${name}`).setAttribute("aria-selected", String(name === view));
  }
  undoButton.disabled = !steps.length;
  undoButton.title = steps.length ? `Undo: ${describe(steps[steps.length - 1])}` : "";
  downloadButton.textContent = `Download constraints (${plural(steps.length, "decision")})`;
  views[view].draw();
}

addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea")) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.altKey || event.metaKey || (event.ctrlKey && name !== "z")) return;
  const order = Object.keys(views);
  const act = name === "u" || (event.ctrlKey && name === "z") ? undo
    : order[Number(name) - 1] ? () => go(order[Number(name) - 1]) : views[view].keys[name];
  if (!act) return;
  event.preventDefault();
  act();
});

addEventListener("beforeunload", (event) => {
  if (!stored && steps.length) event.preventDefault();
});

refresh();
if (steps.length) say(`${plural(steps.length, "decision")} of before ${steps.length === 1 ? "was" : "were"} kept by this browser.`);
})();
