"""The report of a match as one HTML file: timelines, travel, crops side by side, and a person's corrections."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.core.atomic import write_text
from reid.core.errors import ReidError
from reid.mtmc.constraints import Constraints, compile_rules
from reid.report.style import BLUE, GREEN, LIGHT, RED

if TYPE_CHECKING:
    from reid.mtmc.cameras import Cameras
    from reid.mtmc.matching import Links, Matches
    from reid.mtmc.tracklets import Tracklets

Crop: TypeAlias = "bytes | NDArray[np.uint8]"

HEAD_SHARE = 0.22
"""The upper part of a crop that `pixelate_heads` makes coarse. A standing person's head is the upper 13 to 17 %."""

BUDGET = 25_000_000
"""Characters of embedded crops in one page, at most."""

MAX_LINKS = 10_000
"""Candidate pairs in one page, at most."""

_HEIGHTS = (96, 48)
_MOST_CROPS = 6
_JPEG_QUALITY = 80
_NEVER = 1e15


def pixelate_heads(crops: Sequence[NDArray[np.uint8]], share: float = HEAD_SHARE) -> list[NDArray[np.uint8]]:
    """The crops with their upper part made of flat blocks, from which the face cannot be had back.

    The upper ⌈share · H⌉ rows, rounded up to whole blocks, are averaged over blocks of b × b pixels,
    b = max(4, ⌈H / 24⌉, ⌈W / 12⌉), so that b is a 24th of the height of a tall crop whatever its size: 4 pixels in one
    of 96 × 48, and a face of a standing person has two or three blocks. Blocks at the right border are narrower. The
    rest is as it was.

    It hides heads where they usually are: not that of somebody who bends down, nor other heads further down in the
    crop, nor clothes or gait, by which people can be known too.

    Args:
        crops: uint8 `[H, W, 3]` each, of any sizes; they are not changed.
        share: part of the height, 0..1.
    """
    if not 0 <= share <= 1:
        raise ReidError(f"The share of a crop to pixelate is {share}; it must be 0..1.")
    done = []
    for crop in crops:
        height, width = crop.shape[:2]
        block = max(4, -(-height // 24), -(-width // 12))
        rows = min(height, -(-math.ceil(share * height) // block) * block)
        coarse = crop.copy()
        for top in range(0, rows, block):
            for left in range(0, width, block):
                cell = coarse[top : min(top + block, rows), left : left + block]
                cell[...] = np.rint(cell.mean(axis=(0, 1))).astype(np.uint8)
        done.append(coarse)
    return done


def write_match_report(
    matches: Matches,
    crops: Mapping[int, Sequence[Crop]] | None,
    path: str | Path,
    *,
    scores: Mapping[str, Any] | None = None,
    title: str = "Match report",
    pixelate_heads: bool = False,
    cameras: Cameras | None = None,
    constraints: Constraints | None = None,
    warnings: Sequence[str] = (),
    left_out: Mapping[str, Sequence[str]] | None = None,
    budget: int = BUDGET,
    max_links: int = MAX_LINKS,
) -> Path:
    """Write the report of a match as one HTML file that needs nothing else and sends nothing anywhere.

    Crops are scaled to a height of 96 pixels and embedded as JPEG, one of each tracklet, then a second of each, and so
    on up to six, while a whole round fits the budget. Where not even the first round fits, they are scaled to 48; and
    where that does not fit, tracklets of the pairs to review come first. What is missing is said in the page.

    Args:
        matches: what `reid.mtmc.match` found.
        crops: row of the tracklets → its crops, the best first: files' bytes (JPEG or PNG), or uint8 `[H, W, 3]` RGB.
            A tracklet that has none is shown by its name.
        path: where to write.
        scores: names → values or names → values, as `TrackScores.as_dict()`; only where truth was given.
        title: heads the page.
        pixelate_heads: pass all crops through `pixelate_heads` before they are embedded.
        cameras: as given to the match, so that the page refuses decisions which break a rule of time.
        constraints: as given to the match; the page's file of constraints holds them too.
        warnings: sentences to show above all.
        left_out: what the match left out: a heading → its lines.
        budget: characters of embedded crops, at most.
        max_links: candidate pairs in the page, at most, the most doubtful first.

    Returns:
        The path written.

    Raises:
        ReidError: a crop that is neither bytes nor a uint8 RGB array, crops of a tracklet that is not there, or the
            file cannot be written.
    """
    tracklets = matches.tracklets
    lines = {heading: list(entries) for heading, entries in (left_out or {}).items() if entries}
    shown = _most_doubtful(matches.links, matches.identity, max_links)
    first_needed = np.stack([matches.links.first[shown], matches.links.second[shown]], axis=1).reshape(-1)
    embedded, unreadable, without = _embed(crops or {}, len(tracklets), first_needed, pixelate_heads, budget)
    if unreadable:
        lines["Crops that could not be read"] = [f"{_name(tracklets, row)}: {why}" for row, why in unreadable]
    if without:
        lines[f"Crops that did not fit in {budget / 1e6:g} MB"] = [_name(tracklets, row) for row in without]
    if len(matches.links) > len(shown):
        lines["Candidate pairs that are not in this page"] = [
            f"{len(matches.links) - len(shown):,} of {len(matches.links):,}: those least in doubt"
        ]
    data = {
        "run": _run(matches),
        "cameras": list(tracklets.camera_names),
        "colours": LIGHT.lines[:6],
        "tracklets": _tracklet_columns(matches),
        "links": _link_columns(matches.links, shown),
        "threshold": _number(matches.threshold, 4),
        "rules": _rules(matches, cameras, constraints),
    }
    files = resources.files("reid.report")
    script = files.joinpath("match_page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    colours = f":root {{ --blue: {BLUE}; --green: {GREEN}; --red: {RED}; }}\n"
    parts = {
        "title": escape(title),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "style": colours + files.joinpath("match_page.css").read_text(encoding="utf-8"),
        "script": script,
        "tiles": _tiles(matches),
        "sentence": escape(_in_words(matches, pixelate_heads)),
        "warnings": _warnings(warnings),
        "scores": _scores(scores),
        "left_out": _left_out(lines),
        "made": _made(matches),
        "data": _embeddable(data),
        "crops": _embeddable(embedded),
    }
    page = files.joinpath("match_page.html").read_text(encoding="utf-8")
    path = Path(path)
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page))
    return path


def _embeddable(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _number(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _numbers(values: NDArray[Any], digits: int) -> list[float | None]:
    return [_number(value, digits) for value in values.tolist()]


def _name(tracklets: Tracklets, row: int) -> str:
    return f"{tracklets.camera_names[tracklets.camera[row]]}, track {tracklets.track[row]}"


def _run(matches: Matches) -> str:
    """A name for this result; the same tracklets and identities have the same."""
    t = matches.tracklets
    digest = hashlib.sha256("\n".join(t.camera_names).encode())
    for column in (t.camera, t.track, t.start, t.end, matches.identity):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def _tracklet_columns(matches: Matches) -> dict[str, list[Any]]:
    t = matches.tracklets
    return {
        "camera": t.camera.tolist(),
        "track": t.track.tolist(),
        "start": _numbers(t.start, 3),
        "end": _numbers(t.end, 3),
        "frames": t.frames.tolist(),
        "frame": t.first_frame.tolist(),
        "appearance": t.has_feature.astype(int).tolist(),
        "quality": _numbers(t.quality, 3),
        "identity": matches.identity.tolist(),
        "confidence": _numbers(matches.confidence, 3),
    }


def _most_doubtful(links: Links, identity: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Rows of the links to show, sorted by doubt: near p = ½, or decided against p."""
    p = np.where(np.isfinite(links.probability), links.probability, 0.5)
    one = identity[links.first] == identity[links.second]
    doubt = np.maximum(1 - 2 * np.abs(p - 0.5), np.where(one, 1 - p, p))
    return np.argsort(-doubt, kind="stable")[:most]


def _link_columns(links: Links, rows: NDArray[np.int64]) -> dict[str, list[Any]]:
    reasons, reason = np.unique(links.forbidden_by[rows].astype(str), return_inverse=True)
    return {
        "first": links.first[rows].tolist(),
        "second": links.second[rows].tolist(),
        "distance": _numbers(links.distance[rows], 4),
        "probability": _numbers(links.probability[rows], 4),
        "joined": links.joined[rows].astype(int).tolist(),
        "reason": reason.reshape(-1).tolist(),
        "reasons": reasons.tolist(),
    }


def _rules(matches: Matches, cameras: Cameras | None, constraints: Constraints | None) -> dict[str, Any]:
    """The rules of time for the page, and what a person laid down before, as pairs of rows and as written."""
    constraints = constraints or Constraints()
    rules = compile_rules(matches.tracklets, cameras, constraints)
    t = len(matches.tracklets)
    kept = {
        "merge": [[_key(side) for side in pair] for pair in constraints.must_link],
        "split": [[_key(side) for side in pair] for pair in constraints.cannot_link],
        **({"tolerance": constraints.tolerance} if constraints.tolerance else {}),
        **({"max_speed": constraints.max_speed} if constraints.max_speed is not None else {}),
    }
    return {
        "tolerance": rules.tolerance,
        "non_overlapping": rules.non_overlapping.astype(int).tolist(),
        "min_transition_time": [
            [max(-_NEVER, min(_NEVER, float(value))) for value in row] for row in rules.min_transition_time
        ],
        "never": _NEVER,
        "must": rules.must_link.tolist(),
        "cannot": [[int(code) // t, int(code) % t] for code in rules.cannot_link],
        "kept": kept,
    }


def _key(side: tuple[str, int, int]) -> list[str | int]:
    camera, track, frame = side
    return [camera, track] if frame < 0 else [camera, track, frame]


def _embed(
    crops: Mapping[int, Sequence[Crop]],
    tracklets: int,
    first_needed: NDArray[np.int64],
    hide_heads: bool,
    budget: int,
) -> tuple[list[list[str]], list[tuple[int, str]], list[int]]:
    """Base64 JPEGs of each tracklet; crops that will not decode, with why; tracklets whose crops did not fit."""
    for row in crops:
        if not 0 <= row < tracklets:
            raise ReidError(
                f"There are crops of tracklet {row}, but only {tracklets} tracklets (0 to {tracklets - 1})."
            )
    needed = dict.fromkeys([*first_needed.tolist(), *range(tracklets)])
    order = [row for row in needed if len(crops.get(row, ()))]
    embedded: list[list[str]] = [[] for _ in range(tracklets)]
    unreadable: list[tuple[int, str]] = []

    def encode(row: int, number: int, height: int) -> str:
        crop = crops[row][number]
        try:
            return _jpeg(crop, height, hide_heads)
        except ReidError as error:
            if not isinstance(crop, bytes):
                raise ReidError(f"A crop of tracklet {row}: {error}") from error
            unreadable.append((row, str(error)))
            return ""

    def round_of(number: int, height: int, room: int) -> tuple[dict[int, str], bool]:
        """The crops of that number while they fit, and whether all did."""
        made: dict[int, str] = {}
        for row in order:
            if number < len(crops[row]):
                text = encode(row, number, height)
                room -= len(text)
                if room < 0:
                    return made, False
                made[row] = text
        return made, True

    height = _HEIGHTS[0]
    made, all_fit = round_of(0, height, budget)
    if not all_fit:
        unreadable.clear()
        height = _HEIGHTS[1]
        made, all_fit = round_of(0, height, budget)
    without = [] if all_fit else [row for row in order if row not in made]
    number = 0
    while made:
        for row, text in made.items():
            if text:
                embedded[row].append(text)
        budget -= sum(map(len, made.values()))
        number += 1
        if not all_fit or number == _MOST_CROPS:
            break
        unread = len(unreadable)
        made, all_fit = round_of(number, height, budget)
        if not all_fit:
            del unreadable[unread:]
            break
    return embedded, unreadable, sorted(without)


def _jpeg(crop: Crop, height: int, hide_heads: bool) -> str:
    """A crop scaled to the height (its width at most three times that), head hidden where asked, as base64 JPEG."""
    image: NDArray[np.uint8]
    if isinstance(crop, bytes):
        decoded = cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_COLOR) if crop else None
        if decoded is None:
            raise ReidError(f"{len(crop):,} bytes that are no JPEG or PNG")
        image = decoded.view(np.uint8)
    else:
        if not isinstance(crop, np.ndarray) or crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3:
            what = f"{crop.dtype} {list(crop.shape)}" if isinstance(crop, np.ndarray) else type(crop).__name__
            raise ReidError(f"it must be uint8 [H, W, 3] RGB or the bytes of a file, not {what}.")
        if crop.size == 0:
            raise ReidError(f"it is empty, {list(crop.shape)}.")
        image = crop[:, :, ::-1]
    width = min(3 * height, max(1, round(image.shape[1] * height / image.shape[0])))
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how).view(np.uint8)
    if hide_heads:
        image = pixelate_heads([image])[0]
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return base64.b64encode(cv2.imencode(".jpg", image, settings)[1].tobytes()).decode()


def _tiles(matches: Matches) -> str:
    t = matches.tracklets
    people = [number for number in np.unique(matches.identity) if number > 0]
    at_home = np.unique(np.stack([matches.identity, t.camera]), axis=1)[0]
    cameras_of = {int(number): int((at_home == number).sum()) for number in people}
    sizes = {
        int(number): int(count) for number, count in zip(*np.unique(matches.identity, return_counts=True), strict=True)
    }
    tiles = (
        ("cameras", len(t.camera_names)),
        ("tracklets", len(t)),
        ("identities", len(people)),
        ("in two or more cameras", sum(count > 1 for count in cameras_of.values())),
        ("singles (one tracklet)", sum(sizes[int(number)] == 1 for number in people)),
        ("candidate pairs", len(matches.links)),
    )
    return "".join(f"<div class='tile'><b>{value:,}</b> {escape(name)}</div>" for name, value in tiles)


def _in_words(matches: Matches, hidden: bool) -> str:
    words = f"Joined at a distance of {matches.threshold:.4g} or less"
    if matches.fmr is not None:
        words += (
            f"; of the pairs of different people, {100 * matches.fmr:.3g} % are expected to lie under it "
            "(the expected false-match rate)"
        )
    words += ". p(same) tells how sharply the distance decides here; it is fitted to this result, not to labels."
    if hidden:
        words += f" The upper {100 * HEAD_SHARE:.0f} % of each crop was made of coarse blocks before it was embedded."
    return words


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f"<section class='warnings'><h2>Warnings</h2><ul>{items}</ul></section>"


def _left_out(lines: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for heading, entries in lines.items():
        items = "".join(f"<li>{escape(text)}</li>" for text in entries)
        parts.append(f"<details><summary>{escape(heading)} ({len(entries):,})</summary><ul>{items}</ul></details>")
    if not parts:
        return ""
    return f"<section class='left-out'><h2>Left out</h2>{''.join(parts)}</section>"


def _made(matches: Matches) -> str:
    """The protocol, learned travel times and clock offsets as tables."""
    tables = [_two_columns(_flat(matches.protocol))]
    if matches.transition_times:
        head = ("from", "to", "median s", "spread s", "links")
        rows = [
            (*pair, f"{median:.1f}", f"{spread:.1f}", f"{links:,}")
            for pair, (median, spread, links) in sorted(matches.transition_times.items())
        ]
        tables.append(_table("Travel times learned from confident links", head, rows))
    if matches.clock_offsets:
        rows_of_offsets = [(name, f"{seconds:+.2f}") for name, seconds in sorted(matches.clock_offsets.items())]
        tables.append(_table("Clocks: seconds ahead of the others, estimated", ("camera", "s"), rows_of_offsets))
    return "".join(tables)


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return ""
    alone = {name: value for name, value in scores.items() if not isinstance(value, (Mapping, list, tuple))}
    parts = [_two_columns(_flat(alone))] if alone else []
    for name, value in scores.items():
        if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
            head = list(dict.fromkeys(key for row in value.values() for key in row))
            rows = [(str(key), *(_text(row.get(column)) for column in head)) for key, row in value.items()]
            parts.append(_table(name, ("", *map(str, head)), rows))
        elif isinstance(value, Mapping):
            parts.append(f"<h3>{escape(str(name))}</h3>{_two_columns(_flat(value))}")
        elif isinstance(value, (list, tuple)) and value:
            parts.append(f"<p>{escape(str(name))}: {escape('; '.join(map(str, value)))}</p>")
    overall = scores.get("overall")
    tiles = ""
    if isinstance(overall, Mapping):
        tiles = "".join(
            f"<div class='tile'><b>{100 * overall[name]:.1f} %</b> {name}</div>"
            for name in ("IDF1", "HOTA", "AssA", "MOTA")
            if isinstance(overall.get(name), (int, float))
        )
    return (
        "<section class='scores'><h2>Scores against the truth that was given</h2>"
        f"<div class='tiles'>{tiles}</div><details><summary>All scores (shares of 1)</summary>{''.join(parts)}"
        "</details></section>"
    )


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{name} / ")
        else:
            rows.append((f"{before}{name}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _two_columns(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return f"<dl class='facts'>{cells}</dl>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<div class='scroll'><table><caption>{escape(str(caption))}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
