// ---------------------------------------------------------------- review

const review = (() => {
  const together = (l) => current.identity[L.first[l]] === current.identity[L.second[l]];
  const isForbidden = (l) => L.reasons[L.reason[l]] !== "";
  const decision = (l) => decisionOn(L.first[l], L.second[l]);
  const contradiction = (l) => (together(l) ? 1 : -1) * (L.distance[l] - data.threshold);
  const orders = {margin: (l) => -Math.abs(marginOf(l)) + 1e-6 * contradiction(l), contradiction};
  const kinds = {
    open: ["open pairs", (l) => !decision(l) && !isForbidden(l)],
    joined: ["joined, undecided", (l) => together(l) && !decision(l)],
    separate: ["separate, undecided", (l) => !together(l) && !isForbidden(l) && !decision(l)],
    forbidden: ["forbidden by a rule", isForbidden],
    decided: ["decided by you", (l) => decision(l) !== ""],
    all: ["all pairs", () => true],
  };
  let kind = "open", order = "margin", queue = [], at = 0, list = null;

  const rows = h("div", {id: "queue", className: "list", tabIndex: 0, "aria-label": "pairs to review"});
  const counted = h("span", {id: "queue-counted"});
  const pair = h("div", {id: "pair"});
  const kindChoice = choice("Show", "kind", Object.entries(kinds).map(([name, [text]]) => [name, text]),
    (value) => { kind = value; at = 0; update(); });
  const panel = h("div", {className: "review"},
    h("div", {className: "left"},
      h("div", {className: "filters"}, kindChoice,
        choice("Order", "queue-order", [["margin", "smallest margin first"],
          ["contradiction", "own distance contradicts most"]],
          (value) => { order = value; at = 0; update(); }),
        counted),
      rows),
    pair);

  function update() {
    const rank = orders[order];
    const all = L.first.map((_, l) => l).filter(kinds[kind][1]);
    const ranks = new Map(all.map((l) => [l, rank(l)]));
    queue = all.sort((a, b) => ranks.get(b) - ranks.get(a) || a - b);
    at = Math.max(0, Math.min(at, queue.length - 1));
    counted.textContent = plural(queue.length, "pair");
    list.show(queue.length);
    if (queue.length) list.reveal(at);
    showPair();
  }

  const sign = (l) => ({same: "✓ ", different: "✗ ", "": ""}[decision(l)]);

  function row(place) {
    const l = queue[place];
    const side = (t) => h("span", {className: "side"}, h("span", {className: "face"}, pictures(t, 1, 38)),
      h("span", null, tag(T.camera[t]), h("small", null, trackName(t))));
    return h("div", {
      className: `row${place === at ? " open" : ""}`, "data-pair": `${L.first[l]} ${L.second[l]}`,
      onclick: () => { at = place; list.show(queue.length); showPair(); },
    }, side(L.first[l]), side(L.second[l]),
    h("span", {className: "margin"}, h("b", null, `${sign(l)}${L.margin[l] === null ? "–" : marginText(l)}`),
      h("small", null, together(l) ? "joined" : isForbidden(l) ? "forbidden" : "separate")));
  }

  function side(t) {
    const n = current.identity[t];
    const others = current.people.get(n).members.filter((m) => m !== t);
    return h("div", {className: "side"},
      h("div", {className: "side-head"}, tag(T.camera[t]), " ", trackName(t)),
      h("div", {className: "crops"}, pictures(t, 4, 192)),
      h("p", {className: "hint"}, span(t), `, ${plural(T.frames[t], "box", "boxes")}, `,
        h("button", {className: "link", onclick: () => { go("timelines"); timelines.open(n); }}, `identity ${n}`),
        T.appearance[t] ? "" : ", no embedding"),
      others.length ? h("div", {className: "others"}, h("small", null, `Identity ${n} also has:`),
        h("div", {className: "crops"}, others.slice(0, 8).map((m) =>
          h("figure", {title: `${fullName(m)}, ${span(m)}`}, pictures(m, 1, 72), h("figcaption", null, cameraOf(m)))),
        others.length > 8 ? h("small", null, `and ${others.length - 8} more`) : null)) : null);
  }

  function showPair() {
    if (!queue.length) {
      fill(pair, h("p", {className: "hint"}, "There are no such pairs."));
      return;
    }
    const l = queue[at], i = L.first[l], j = L.second[l];
    const fact = (name, text, id = "") => h("div", null, h("dt", null, name), h("dd", {id}, text));
    const yours = {same: "one person", different: "different people", "": "none"}[decision(l)];
    const outcome = L.joined[l] ? "joined" : isForbidden(l) ? `forbidden: ${L.reasons[L.reason[l]]}`
      : L.margin[l] === 0 ? "kept separate: a rule forbids other members of the two identities" : "kept separate";
    fill(pair,
      h("div", {className: "sides"}, side(i), side(j)),
      h("dl", {className: "facts"},
        fact("this run", outcome, "fact-run"),
        fact("margin (above 0: joined)", marginText(l), "fact-margin"),
        fact("p(same)", number(L.probability[l], 3), "fact-p"),
        fact("own distance", `${number(L.distance[l], 3)} (threshold ${number(data.threshold, 3)})`),
        fact("cameras", T.camera[i] === T.camera[j] ? `${cameraOf(i)}, twice` : `${cameraOf(i)}, ${cameraOf(j)}`),
        fact("time", describeGap(i, j)),
        ...Object.entries(evidenceOf(i, j)).map(([name, value]) => fact(`${name} (log-odds)`, logOdds(value), `fact-${name}`)),
        fact("your decision", yours, "fact-decision")),
      h("div", {className: "doing"},
        h("button", {onclick: () => move(-1)}, "← Previous"),
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
    const l = queue[at], stays = kind === "all" || kind === "decided" || kind === "forbidden";
    if (decision(l) === {accept: "same", reject: "different"}[what]) {
      say("This pair is already decided.");
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

// ---------------------------------------------------------------- camera transitions

/** Return the transitions of an identity from each tracklet to the next in time: {from, to, seconds}. */
function transitions(person) {
  return person.members.slice(1).map((t, at) => {
    const before = person.members[at];
    return {from: T.camera[before], to: T.camera[t], seconds: T.start[t] - T.end[before]};
  });
}

const cameraTransitions = (() => {
  const panel = h("div", {className: "transitions"});

  function median(values) {
    const sorted = values.slice().sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }

  function update() {
    const cells = new Map();
    for (const person of current.people.values()) {
      for (const one of transitions(person)) {
        const key = `${one.from} ${one.to}`;
        if (!cells.has(key)) cells.set(key, []);
        cells.get(key).push(one.seconds);
      }
    }
    const most = Math.max(1, ...[...cells.values()].map((times) => times.length));
    fill(panel,
      h("p", {className: "hint"}, "Number of identities that went directly from the camera of the row to the camera of the column, ",
        "and the median time between (negative: both cameras saw them simultaneously). ",
        "Diagonal: seen again by the same camera. Click a cell to list the identities."),
      h("div", {className: "scroll"}, h("table", {id: "transitions"},
        h("thead", null, h("tr", null, h("th", null, "from ╲ to"), data.cameras.map((_, c) => h("th", {scope: "col"}, tag(c))))),
        h("tbody", null, data.cameras.map((_, from) => h("tr", null, h("th", {scope: "row"}, tag(from)),
          data.cameras.map((_, to) => {
            const times = cells.get(`${from} ${to}`);
            if (!times) return h("td", null, "");
            const middle = median(times);
            return h("td", null, h("button", {
              className: "cell", style: `--fraction: ${Math.round(100 * Math.sqrt(times.length / most))}%`,
              "data-transition": `${from} ${to}`, onclick: () => timelines.follow(from, to),
            }, h("b", null, times.length), h("small", null, `${middle < 0 ? "−" : ""}${duration(Math.abs(middle))}`)));
          })))))));
  }

  return {
    title: "Camera transitions",
    draw() {
      view_.replaceChildren(panel);
      update();
    },
    keys: {},
  };
})();

// ---------------------------------------------------------------- tabs and keyboard

const views = {timelines, review, transitions: cameraTransitions, ...(floorPlan ? {floor: floorPlan} : {})};
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
if (steps.length) say(`Restored ${plural(steps.length, "decision")} from this browser.`);
