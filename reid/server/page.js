"use strict";
const by = (id) => document.getElementById(id);
const decisions = new Map(); // tracklet -> "confirmed" or "rejected"
let photos = [], box = null, scope = null, start = null;

/** Create an element with properties and children; strings become text, never markup. */
function el(tag, settings, ...children) {
  const element = Object.assign(document.createElement(tag), settings);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// ---------------------------------------------------------------- token and requests

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}

async function request(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? {authorization: `Bearer ${token}`} : {};
  const response = await fetch(path, {...options, headers}).catch(() => { throw new Error("The server does not answer. Start it again with reid serve."); });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? (body.detail ? JSON.stringify(body.detail) : `error ${response.status}`));
  return body;
}

function say(text, kind = "") {
  by("message").textContent = text;
  by("message").className = kind;
}

// ---------------------------------------------------------------- photo and box

function choose(files) {
  photos = [...files];
  box = null;
  forget();
  by("search").disabled = !photos.length || !scope;
  by("preview").hidden = photos.length !== 1;
  if (by("shown").src) URL.revokeObjectURL(by("shown").src);
  if (photos.length === 1) by("shown").src = URL.createObjectURL(photos[0]);
  showBox();
}

/** Remove the answer and the decisions: they are about another person. */
function forget() {
  decisions.clear();
  by("hits").replaceChildren();
  by("actions").hidden = by("trajectory").hidden = true;
  say("");
}

/** Draw the box; `typed`: its numbers are being typed, so they are not changed. */
function showBox(typed = false) {
  by("box").hidden = by("no-box").hidden = !box;
  const image = by("shown"), scale = image.clientWidth / (image.naturalWidth || 1);
  ["x", "y", "w", "h"].forEach((name, place) => {
    if (!typed) by(`box-${name}`).value = box ? box[place] : "";
    if (box) by("box").style.setProperty(["left", "top", "width", "height"][place], `${box[place] * scale}px`);
  });
}

function pixel(event) {
  const image = by("shown"), place = image.getBoundingClientRect(), scale = image.naturalWidth / place.width;
  const clip = (value, most) => Math.round(Math.max(0, Math.min(value * scale, most)));
  return [clip(event.clientX - place.left, image.naturalWidth), clip(event.clientY - place.top, image.naturalHeight)];
}

by("frame").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  by("frame").setPointerCapture(event.pointerId);
  start = pixel(event);
  forget();
});
by("frame").addEventListener("pointermove", (event) => {
  if (!start) return;
  const [x, y] = pixel(event), w = Math.abs(x - start[0]), h = Math.abs(y - start[1]);
  if (w > 2 && h > 2) box = [Math.min(x, start[0]), Math.min(y, start[1]), w, h];
  showBox();
});
addEventListener("pointerup", () => { start = null; });
addEventListener("resize", () => showBox(true));
for (const name of ["x", "y", "w", "h"]) {
  by(`box-${name}`).addEventListener("input", () => {
    const numbers = ["x", "y", "w", "h"].map((part) => by(`box-${part}`).valueAsNumber);
    box = numbers.every(Number.isInteger) ? numbers : null;
    forget();
    showBox(true);
  });
}
by("no-box").addEventListener("click", () => { box = null; forget(); showBox(); });
by("photo").addEventListener("change", () => choose(by("photo").files));
by("shown").addEventListener("error", () => say("This browser cannot show the photo. Use JPEG or PNG.", "wrong"));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files);
  });
}

// ---------------------------------------------------------------- search and answer

function decided(form) {
  if (by("purpose").value) form.set("purpose", by("purpose").value);
  for (const [tracklet, decision] of decisions) form.append(decision, tracklet);
  return form;
}

async function search() {
  const form = decided(new FormData());
  for (const file of photos) form.append("photo", file, "photo");
  if (box) form.set("box", box.join(","));
  for (const input of by("cameras").querySelectorAll("input:checked")) form.append("camera", input.value);
  for (const name of ["after", "before", "top"]) if (by(name).value) form.set(name, by(name).value);
  form.set("mask_others", by("mask").checked);
  by("search").disabled = by("again").disabled = true;
  say("Searching …");
  try {
    const answer = await request("api/search", {method: "POST", body: form});
    const kind = answer.found === null ? "" : answer.found ? "found" : "nobody";
    const untimed = answer.without_time ? ` ${answer.without_time} rows of unknown time were not searched.` : "";
    say(answer.text + untimed, kind);
    by("hits").replaceChildren(...answer.hits.map(card));
    showTrajectory(answer);
    by("actions").hidden = !answer.hits.length;
    const {top} = by("answer").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) by("answer").scrollIntoView();
  } catch (error) {
    say(error.message, "wrong");
  }
  by("search").disabled = by("again").disabled = false;
}

/** "2026-11-23 08:07:15 – 08:07:25": the offset is in the tool tip, a repeated date is left out. */
function period(hit) {
  const [first, last] = [hit.first_seen, hit.last_seen].map((text) => text.replace(/[+-]\d\d:\d\d$/, ""));
  const end = last.startsWith(first.slice(0, 11)) ? last.slice(11) : last;
  return el("p", {title: `${hit.first_seen} – ${hit.last_seen}`}, first === last ? first : `${first} – ${end}`);
}

/** Seconds as text: 45 s, 12 min, 3.1 h. */
function seconds(number) {
  return number < 90 ? `${number.toFixed(0)} s` : number < 5400 ? `${(number / 60).toFixed(0)} min` : `${(number / 3600).toFixed(1)} h`;
}

/** Accepted and confirmed hits in time order, each with a bar on a common time axis, and why others were dropped. */
function showTrajectory({trajectory, hits}) {
  by("trajectory").hidden = !trajectory;
  if (!trajectory) return;
  const [title, list, others] = by("trajectory").children, shown = trajectory.steps.map((step) => hits[step.hit]);
  const begin = Math.min(...shown.map((hit) => hit.start)), span = Math.max(...shown.map((hit) => hit.end), begin + 1) - begin;
  const link = (index, ...content) => el("button", {type: "button", className: "link", onclick: () => by("hits").children[index].focus()}, ...content);
  title.textContent = trajectory.text;
  list.replaceChildren(...trajectory.steps.map((step, place) => {
    const hit = shown[place], bar = el("i", {});
    bar.style.setProperty("left", `${100 * (hit.start - begin) / span}%`);
    bar.style.setProperty("width", `${100 * (hit.end - hit.start) / span}%`);
    const gap = step.gap_s === null ? "" : (step.gap_s < 0 ? "at the same time" : `after ${seconds(step.gap_s)}`) + (step.late ? " (late)" : step.early ? " (early)" : "");
    return el("li", {className: step.confirmed ? "confirmed" : ""}, link(step.hit, hit.camera ?? "unknown camera"),
      period(hit), el("span", {}, gap), el("div", {className: "axis"}, bar));
  }));
  others.replaceChildren(...trajectory.dropped.map((one) => el("li", {}, "Dropped: ", link(one.hit, hits[one.hit].camera ?? "unknown camera"),
    `, ${hits[one.hit].first_seen}: ${one.reason}${one.step === null ? "" : ` (with step ${one.step + 1})`}`)));
}

function card(hit) {
  const facts = [["distance", hit.distance.toFixed(3)]];
  if (hit.strangers !== null) facts.push(["strangers", hit.strangers.toPrecision(2)], ["p(same)", hit.probability.toFixed(3)]);
  const where = hit.camera ?? "unknown camera";
  const picture = hit.picture
    ? el("img", {src: `data:image/jpeg;base64,${hit.picture}`, alt: `crop of ${where}, track ${hit.track ?? "unknown"}`})
    : "no picture stored";
  const button = (decision, text, kind) => el("button", {type: "button", className: kind, onclick: () => decide(decision)}, text);
  const buttons = {confirmed: button("confirmed", "✓ Confirm", "yes"), rejected: button("rejected", "✗ Reject", "no")};
  const box_ = el("article", {tabIndex: 0},
    el("div", {className: "picture"}, picture),
    el("h2", {}, where, hit.accepted ? el("small", {}, hit.confirmed ? "confirmed" : "accepted") : null),
    period(hit),
    el("p", {}, `track ${hit.track ?? "unknown"}, person ${hit.person}, ${hit.source}`),
    el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("div", {className: "decide"}, buttons.confirmed, buttons.rejected));
  function decide(decision) {
    if (decisions.get(hit.tracklet) === decision) decisions.delete(hit.tracklet);
    else decisions.set(hit.tracklet, decision);
    paint();
  }
  function paint() {
    const decision = decisions.get(hit.tracklet) ?? "";
    box_.className = `hit ${hit.accepted ? "accepted" : ""} ${decision}`;
    box_.setAttribute("aria-label", `${where}, distance ${hit.distance.toFixed(3)}${decision ? `, ${decision}` : ""}`);
    for (const [name, one] of Object.entries(buttons)) one.setAttribute("aria-pressed", String(name === decision));
  }
  box_.addEventListener("keydown", (event) => {
    const act = {c: () => decide("confirmed"), r: () => decide("rejected"),
      ArrowRight: () => box_.nextElementSibling?.focus(), ArrowLeft: () => box_.previousElementSibling?.focus()}[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  paint();
  return box_;
}

async function download() {
  try {
    const form = decided(new FormData());
    const {files, left_out: leftOut} = decisions.size ? await request("api/constraints", {method: "POST", body: form})
      : {files: {}, left_out: ["Confirm or reject hits first."]};
    for (const [source, content] of Object.entries(files)) {
      const url = URL.createObjectURL(new Blob([`${JSON.stringify(content, null, 1)}\n`], {type: "application/json"}));
      el("a", {href: url, download: `constraints-${source}.json`}).click();
      setTimeout(() => URL.revokeObjectURL(url), 60000);
    }
    const done = Object.keys(files).length ? "Downloaded. Pass the file to: reid match --constraints FILE. " : "";
    say(done + (leftOut.length ? `Not contained: ${leftOut.join("; ")}.` : ""));
  } catch (error) {
    say(error.message, "wrong");
  }
}

by("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
by("again").addEventListener("click", search);
by("download").addEventListener("click", download);

request("api/gallery").then((about) => {
  scope = about;
  by("scope").textContent = `${about.galleries.join(", ")}: ${about.tracklets.toLocaleString("en")} tracklets, times in ${about.zone}`;
  for (const name of about.cameras) by("cameras").append(el("label", {}, el("input", {type: "checkbox", value: name}), ` ${name}`));
  by("cameras").hidden = !about.cameras.length;
  by("purpose").required = about.require_purpose;
  by("search").disabled = !photos.length;
  say(about.calibrated ? "Choose a photo." : "Choose a photo. There is no calibration, so hits are only ranked.");
}, (error) => say(error.message, "wrong"));
