// ---------------------------------------------------------------- timelines

const everything = {
  from: T.start.reduce((least, s) => Math.min(least, s), Infinity),
  to: T.end.reduce((most, e) => Math.max(most, e), -Infinity),
};
if (!count) Object.assign(everything, {from: 0, to: 1});
if (everything.to - everything.from < 1) everything.to = everything.from + 1;

const timelines = (() => {
  const filter = {text: "", camera: "", least: "1", sort: "number", route: null};
  const period = {...everything};
  let listed = [], list = null, dragged = null;
  const found = new Map();

  const search = h("input", {
    type: "search", id: "search", placeholder: "identity, camera or track",
    oninput: () => { filter.text = search.value; update(); },
  });
  const counted = h("span", {id: "counted"});
  const route = h("button", {id: "route", onclick: () => { filter.route = null; update(); }});
  const whole = h("button", {id: "whole", onclick: () => zoom(everything)}, "Show all");
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
        choice("Show", "which", [["1", "all"], ["2", "in 2 or more cameras"], ["3", "in 3 or more cameras"],
          ["single", "with one tracklet"], ["changed", "changed by you"]], (value) => { filter.least = value; update(); }),
        choice("Order", "order", [["number", "by number"], ["doubt", "least confident first"],
          ["start", "by first appearance"], ["size", "most tracklets first"]],
          (value) => { filter.sort = value; update(); }),
        route, counted, whole),
      lanes, rows),
    detail);

  const laneHeight = data.cameras.length <= 12 ? 20 : data.cameras.length <= 30 ? 14 : 12;
  const axisHeight = 18;
  panel.style.setProperty("--lane", `${laneHeight}px`);
  panel.style.setProperty("--axis", `${axisHeight}px`);

  function matchesSearch(person, terms) {
    let entry = found.get(person.number);
    if (entry?.members !== person.members) {
      const names = person.members.map((t) => `${cameraOf(t)} ${cameraOf(t)}/${T.track[t]} track ${T.track[t]}`);
      entry = {members: person.members, text: `identity ${person.number} #${person.number} ${names.join(" ")}`.toLowerCase()};
      found.set(person.number, entry);
    }
    return terms.every((term) => (/^\d+$/.test(term) ? String(person.number) === term : entry.text.includes(term)));
  }

  function update() {
    const terms = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
    listed = [...current.people.values()].filter((person) =>
      (filter.camera === "" || person.cameras.includes(Number(filter.camera)))
      && (filter.least === "single" ? person.members.length === 1
        : filter.least === "changed" ? person.changed : person.cameras.length >= Number(filter.least))
      && (!filter.route || transitions(person).some((t) => t.from === filter.route[0] && t.to === filter.route[1]))
      && person.start <= period.to && person.end >= period.from
      && matchesSearch(person, terms));
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
    counted.textContent = `${listed.length.toLocaleString("en")} of ${plural(current.people.size, "identity", "identities")}`;
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
      h("small", null, `${plural(person.cameras.length, "camera")}${person.conflict ? " ⚠" : person.changed ? " ✎" : ""}`)),
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
    const person = current.people.get(opened);
    for (let t = 0; t < count; t++) {
      if (current.identity[t] !== opened) bar(t, !shown.has(current.identity[t]) ? 0.06 : person ? 0.18 : 0.45, 3);
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
    canvas.title = t === null ? "" : `identity ${current.identity[t]}: ${fullName(t)}, ${span(t)}`;
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
        if (t !== null) open(current.identity[t]);
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
        T.appearance[t] ? "" : ", no embedding"));
  }

  function mostSimilar(person) {
    const best = new Map();
    const inside = new Set(person.members);
    L.first.forEach((i, l) => {
      const j = L.second[l];
      if (inside.has(i) === inside.has(j)) return;
      const other = current.identity[inside.has(i) ? j : i];
      const had = best.get(other);
      if (had === undefined || marginOf(l) > marginOf(had)) best.set(other, l);
    });
    return [...best].sort((a, b) => marginOf(b[1]) - marginOf(a[1])).slice(0, 6);
  }

  /** Return each sighting after the first with the sighting before it, or else with the earlier one that it fits best. */
  function legs(person) {
    return person.members.slice(1).map((to, at) => {
      const known = person.members.slice(0, at + 1).map((from) => ({from, to, evidence: evidenceOf(from, to)}))
        .filter(({evidence}) => Object.values(evidence).some((value) => value !== null));
      const last = known.find(({from}) => from === person.members[at]);
      return last ?? known.sort((a, b) => evidenceSum(b.evidence) - evidenceSum(a.evidence))[0] ?? {to};
    });
  }

  function legTable(person) {
    const rows = legs(person);
    const kinds = [...Object.keys(L.evidence), "path"].filter((kind) => rows.some(({evidence}) => (evidence?.[kind] ?? null) !== null));
    if (!kinds.length) return null;
    const cell = (value) => h("td", {className: value < 0 ? "against" : ""}, signed(value));
    const name = (t) => h("td", {title: fullName(t)}, tag(T.camera[t]), " ", h("small", null, T.track[t]));
    return h("details", {id: "legs", open: true},
      h("summary", null, "Why these sightings are one person"),
      h("p", {className: "hint"}, "Log-odds of one person for each sighting and an earlier one: above 0 for, below 0 against, – none. ",
        "Groups of sightings are joined by their mean, so a single pair may be below 0."),
      h("div", {className: "scroll"}, h("table", null,
        h("thead", null, h("tr", null, ["earlier", "later", ...kinds, "sum"].map((text) => h("th", {scope: "col"}, text)))),
        h("tbody", null, rows.map(({from, to, evidence}) => h("tr", {"data-leg": `${from ?? ""} ${to}`},
          from === undefined ? h("td", null, "–") : name(from), name(to),
          evidence ? [...kinds.map((kind) => cell(evidence[kind])), cell(evidenceSum(evidence))]
            : h("td", {colSpan: kinds.length + 1}, "joined with its group")))))));
  }

  function merge(a, b) {
    if (a === b || !current.people.has(b)) {
      say(a === b ? "Choose another identity to merge with." : `There is no identity ${b}.`, true);
      return;
    }
    const members = [...current.people.get(a).members, ...current.people.get(b).members].sort(byStart);
    if (decide({do: "merge", tracklets: members})) open(Math.min(a, b));
  }

  function split() {
    const person = current.people.get(opened);
    const off = person.members.filter((t) => marked.has(t)), rest = person.members.filter((t) => !marked.has(t));
    if (!off.length || !rest.length) {
      say("Select some, but not all, of the tracklets.", true);
      return;
    }
    if (decide({do: "split", tracklets: off, rest})) open(current.identity[rest[0]]);
  }

  function showDetail() {
    const person = current.people.get(opened);
    if (!person) {
      fill(detail, h("p", {className: "hint"}, "Click an identity or a bar to see its crops. ",
        "Drag over the timelines to zoom in. ",
        h("br"), h("kbd", null, "↑"), " ", h("kbd", null, "↓"), " next or previous identity, ",
        h("kbd", null, "1"), " ", h("kbd", null, "2"), " ", h("kbd", null, "3"), " change the view, ",
        h("kbd", null, "u"), " undo."));
      return;
    }
    const other = h("input", {type: "number", id: "merge-number", min: 1, placeholder: "no.", "aria-label": "number of the other identity"});
    fill(detail,
      h("h2", null, `Identity ${person.number}`,
        h("button", {className: "close", "aria-label": "close", onclick: () => { opened = null; update(); }}, "✕")),
      h("p", {className: "hint"}, `${plural(person.members.length, "tracklet")} in ${plural(person.cameras.length, "camera")}, `,
        `${clock(person.start)} – ${clock(person.end)}, confidence ${number(person.confidence, 2)}`),
      person.conflict ? h("p", {className: "warnings"},
        `${person.conflict.pair.map(fullName).join(" and ")} cannot be one person: ${person.conflict.why}. The next run will divide this identity. `,
        "Select tracklets and split them off to decide how.") : null,
      h("div", {className: "doing tools"},
        h("button", {id: "split", onclick: split, disabled: !marked.size}, `Split off selected (${marked.size})`),
        h("form", {onsubmit: (event) => { event.preventDefault(); merge(person.number, Number(other.value)); }},
          "Merge with ", other, " ", h("button", {id: "merge"}, "Merge"))),
      h("div", {className: "cards"}, person.members.map(card)),
      legTable(person),
      h("h3", null, "Most similar identities"),
      mostSimilar(person).map(([n, l]) => {
        const inThem = current.identity[L.first[l]] === n ? L.first[l] : L.second[l];
        return h("div", {className: "like"},
          h("span", {className: "crops"}, pictures(inThem, 2, 64)),
          h("span", null, h("button", {className: "link", onclick: () => open(n)}, `Identity ${n}`), h("br"), tag(T.camera[inThem]),
            h("br"), h("small", null, `margin ${marginText(l)}, p(same) ${number(L.probability[l], 2)}`,
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
