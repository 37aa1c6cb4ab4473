// Data, text, decisions and shared elements. The three files are joined inside one function.
const data = JSON.parse(document.getElementById("data").textContent);
const crops = JSON.parse(document.getElementById("crops").textContent);
const T = data.tracklets, L = data.links, rules = data.rules;
const count = T.camera.length;
const byStart = (a, b) => T.start[a] - T.start[b] || a - b;

/** Create an element with properties or attributes and children; strings become text, never markup. */
function h(tag, settings, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(settings ?? {})) {
    if (name in element && name !== "style" && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  return fill(element, ...children);
}

/** Replace the children of an element; null is skipped. */
function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null));
  return element;
}

// ---------------------------------------------------------------- text

const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const number = (value, digits) => (value === null ? "unknown" : value.toFixed(digits));

function clock(seconds) {
  const whole = Math.floor(Math.abs(seconds)), two = (n) => String(n).padStart(2, "0");
  return `${seconds < 0 ? "−" : ""}${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const partsOf = new Map();
for (let t = 0; t < count; t++) {
  const track = `${T.camera[t]} ${T.track[t]}`;
  partsOf.set(track, (partsOf.get(track) ?? []).concat(t));
}
const partsOfTrack = (t) => partsOf.get(`${T.camera[t]} ${T.track[t]}`);
const cameraOf = (t) => data.cameras[T.camera[t]];

function trackName(t) {
  const parts = partsOfTrack(t);
  return `track ${T.track[t]}${parts.length > 1 ? `, part ${parts.indexOf(t) + 1} of ${parts.length}` : ""}`;
}
const fullName = (t) => `${cameraOf(t)}, ${trackName(t)}`;
const span = (t) => `${clock(T.start[t])} – ${clock(T.end[t])}`;

function describeGap(i, j) {
  const gap = Math.max(T.start[i], T.start[j]) - Math.min(T.end[i], T.end[j]);
  return gap >= 0 ? `${duration(gap)} between them` : `both visible for ${duration(-gap)}`;
}

/** Return the margin for sorting: pairs that a rule forbids come last. */
const marginOf = (l) => L.margin[l] ?? -Infinity;

/** Return the margin with its sign; pairs that a rule forbids have none. */
function marginText(l) {
  const margin = L.margin[l];
  return margin === null ? "none" : `${margin < 0 ? "−" : margin > 0 ? "+" : ""}${Math.abs(margin).toFixed(3)}`;
}

const linkRows = new Map(L.first.map((i, l) => [`${i} ${L.second[l]}`, l]));
const linkOf = (i, j) => linkRows.get(`${Math.min(i, j)} ${Math.max(i, j)}`);
/** Return the log-odds that the paths of two groups continue each other, if these two tracklets were joined by it. */
const pathOf = (i, j) => data.joins.find(([a, b]) => (a.includes(i) && b.includes(j)) || (a.includes(j) && b.includes(i)))?.[2] ?? null;
/** Return the log-odds of a pair by name, null where there is none. */
function evidenceOf(i, j) {
  const l = linkOf(i, j), found = Object.entries(L.evidence).map(([name, values]) => [name, l === undefined ? null : values[l]]);
  return Object.fromEntries(data.joins.length ? [...found, ["path", pathOf(i, j)]] : found);
}
const evidenceSum = (evidence) => Object.values(evidence).reduce((sum, value) => sum + (value ?? 0), 0);
const signed = (value) => (value === null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`);

/** Return one piece of evidence: above 0 it favours one person, below 0 two. */
function logOdds(value) {
  if (value === null) return "none";
  return `${signed(value)}, ${Math.abs(value) < 0.5 ? "undecided"
    : value > 0 ? "for one person" : "for different people"}`;
}

// ---------------------------------------------------------------- decisions of the user
// A step is {do, tracklets, rest}. accept, merge: all tracklets are one person. reject: the two tracklets are
// different people. split: the tracklets are one person, and none of the rest is that person.

const forbiddenBy = new Map();
L.first.forEach((i, l) => {
  const reason = L.reasons[L.reason[l]];
  if (reason && reason !== "cannot-link") forbiddenBy.set(`${i} ${L.second[l]}`, reason);
});

const storeName = `reid-review-${data.run}`;
let stored = true;
let steps = loadSteps();
let current = replay(steps);

function loadSteps() {
  try {
    const kept = JSON.parse(localStorage.getItem(storeName));
    return Array.isArray(kept) ? kept : [];
  } catch {
    stored = false;
    return [];
  }
}

function saveSteps() {
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

/** Return the group number of each tracklet after joining the pairs. */
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
  const different = new Set();
  for (const [a, b] of split) different.add(`${group[a]} ${group[b]}`).add(`${group[b]} ${group[a]}`);
  const state = {identity, merge, split, group, different, touched, people: new Map()};
  for (const [n, members] of people) {
    members.sort(byStart);
    const changed = members.some((t) => touched.has(t));
    const known = members.map((t) => T.confidence[t]).filter((c) => c !== null);
    state.people.set(n, {
      number: n,
      members,
      cameras: [...new Set(members.map((t) => T.camera[t]))].sort((a, b) => a - b),
      start: T.start[members[0]],
      end: Math.max(...members.map((t) => T.end[t])),
      confidence: known.length ? known.reduce((a, b) => a + b) / known.length : null,
      changed,
      conflict: changed ? findConflict(members, (a, b) => different.has(`${group[a]} ${group[b]}`)) : null,
    });
  }
  return state;
}

/** Return the user's decision on a pair, direct or implied: "same", "different" or "". */
function decisionOn(i, j) {
  if (current.group[i] === current.group[j]) return "same";
  return current.different.has(`${current.group[i]} ${current.group[j]}`) ? "different" : "";
}

/** Return why a timing rule forbids a pair, or "". The rules are those of the match (docs/matching.md). */
function forbidden(a, b) {
  const [i, j] = byStart(a, b) <= 0 ? [a, b] : [b, a];
  const from = T.camera[i], to = T.camera[j], gap = T.start[j] - T.end[i];
  const together = Math.min(T.end[i], T.end[j]) - T.start[j] >= rules.tolerance;
  if (from === to && together) return "one camera sees both simultaneously";
  if (from !== to) {
    if (together && rules.non_overlapping[from][to]) return "two cameras that do not overlap see them simultaneously";
    const least = rules.min_transition_time[from][to];
    if (least >= rules.never) return "there is no route between the two cameras";
    if (gap < least - rules.tolerance) {
      return `${duration(Math.max(gap, 0))} are between them, and the route takes at least ${duration(least)}`;
    }
  }
  const reason = forbiddenBy.get(`${Math.min(a, b)} ${Math.max(a, b)}`);
  return reason ? `the rule "${reason}" of this run forbids it` : "";
}

/** Return the first pair of members that cannot be one person, {pair, why}, or null. */
function findConflict(members, different) {
  for (let a = 0; a < members.length; a++) {
    for (let b = a + 1; b < members.length; b++) {
      const pair = [members[a], members[b]];
      if (different(...pair)) return {pair, why: "they were decided to be different people"};
      const why = forbidden(...pair);
      if (why) return {pair, why};
    }
  }
  return null;
}

/** Return why the next run could not apply a step together with all others, or "". */
function refusal(step) {
  const pairs = pairsOf(step);
  const group = groups(current.merge.concat(pairs.merge));
  const split = current.split.concat(pairs.split);
  const hit = new Set(step.tracklets.map((t) => group[t]));
  for (const [a, b] of split) {
    if (group[a] === group[b] && hit.has(group[a])) {
      return `This contradicts an earlier decision: ${fullName(a)} and ${fullName(b)} cannot be both the same and different.`;
    }
  }
  if (!pairs.merge.length) return "";
  for (const one of hit) {
    const members = group.flatMap((g, t) => (g === one ? [t] : []));
    const conflict = findConflict(members, () => false);
    if (conflict) {
      const [a, b] = conflict.pair.map(fullName);
      return `${a} and ${b} cannot be one person: ${conflict.why}.`;
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

/** Record a decision, unless it cannot be applied. */
function decide(step) {
  const why = refusal(step);
  if (why) {
    say(why, true);
    return false;
  }
  steps.push(step);
  settle(`Recorded: ${describe(step)}.`);
  return true;
}

function undo() {
  const step = steps.pop();
  if (!step) {
    say("There is no decision to undo.");
    return;
  }
  const [i, j] = step.tracklets;
  settle(`Undone: ${describe(step)}.`);
  if (view === "review") review.show(i, j);
}

function settle(text) {
  saveSteps();
  current = replay(steps);
  if (opened !== null && !current.people.has(opened)) opened = null;
  say(text);
  refresh();
}

/** Return the constraints file: all decisions of this page and the constraints that the run was given. */
function constraintsFile() {
  const key = (t) => {
    const parts = partsOfTrack(t);
    return parts.length > 1 ? [cameraOf(t), T.track[t], T.frame[t]] : [cameraOf(t), T.track[t]];
  };
  const file = {format: 1, ...structuredClone(rules.given)};
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
  say("Downloaded constraints.json. Pass it to the next run with --constraints constraints.json.");
}

// ---------------------------------------------------------------- shared elements

const view_ = document.getElementById("view");
const message = document.getElementById("message");
let view = "timelines";
let opened = null;

function say(text, wrong = false) {
  message.textContent = text;
  message.className = wrong ? "wrong" : "";
}

function swatch(camera) {
  const pattern = Math.floor(camera / data.colours.length) % 3;
  return {className: `camera pattern${pattern}`, style: `--camera: ${data.colours[camera % data.colours.length]}`};
}

/** Create a label of a camera. */
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

/** Create a scrolling list that only contains elements for the visible rows. */
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
    options.map(([value, text]) => h("option", {value}, text)));
  return h("label", null, `${label} `, select);
}
