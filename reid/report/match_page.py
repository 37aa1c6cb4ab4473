"""The match report: one HTML page that shows the result of a match and lets a person correct it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import none_for_nan
from reid.core.atomic import write_text
from reid.core.errors import DataError
from reid.data.images import HEAD_FRACTION, pixelate_heads
from reid.mtmc.constraints import Constraints, compile_rules
from reid.mtmc.results import count_multi_camera_identities
from reid.report.page import Table, render_template
from reid.report.ranklists import check_image
from reid.report.style import BLUE, GREEN, LIGHT, RED

if TYPE_CHECKING:
    from reid.mtmc.cameras import Cameras
    from reid.mtmc.matching import Links, Matches
    from reid.mtmc.tracklets import Tracklets

Crop: TypeAlias = "bytes | NDArray[np.uint8]"

SCRIPTS = ("match_page_common.js", "match_page_timelines.js", "match_page_floor.js", "match_page_review.js")

_HEIGHTS = (96, 48)
_MAX_CROPS = 6
_JPEG_QUALITY = 80
_NEVER = 1e15


@dataclass(frozen=True, eq=False)
class ReportOptions:
    """What a match report shows in addition to the matches.

    Attributes:
        title: heading of the page.
        scores: names and values, nested, as from `TrackScores.as_dict()`; None without truth.
        pixelate_heads: pass all crops through `pixelate_heads` before they are embedded.
        cameras: as passed to `match`; decisions that violate its timing rules are refused by the page.
        constraints: as passed to `match`; the downloaded constraints contain them, too.
        warnings: sentences to show at the top.
        left_out: what the match left out: lines by heading.
        paths: by row of the tracklets, `[K, 3]` seconds, x and y on the ground in metres, sorted by time; without any
            the page has no floor plan.
        evidence: by name (`Matches.evidence`), `[L]` log-odds of each link; NaN where there is none.
        max_bytes: largest size of the embedded crops (Base64).
        max_links: largest number of candidate pairs in the page; the least certain pairs are kept.
    """

    title: str = "Match report"
    scores: Mapping[str, Any] | None = None
    pixelate_heads: bool = False
    cameras: Cameras | None = None
    constraints: Constraints | None = None
    warnings: Sequence[str] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    paths: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    evidence: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    max_bytes: int = 25_000_000
    max_links: int = 10_000


def write_match_report(
    matches: Matches, crops: Mapping[int, Sequence[Crop]] | None, path: str | Path, options: ReportOptions | None = None
) -> Path:
    """Write the report of a match as one HTML file that needs no other file and sends nothing.

    Crops are scaled to a height of 96 pixels and embedded as JPEG: one of each tracklet, then a second of each, and so
    on up to six, while a whole round fits into `max_bytes`. If the first round does not fit, crops are scaled to 48
    pixels. If that does not fit either, tracklets of the least certain pairs come first, and the page lists the others.

    Args:
        matches: result of `reid.mtmc.match`.
        crops: crops by row of the tracklets, best first: bytes of JPEG or PNG files, or uint8 `[H, W, 3]` RGB. A
            tracklet without crops is shown by its name.
        path: output file.
        options: everything else.

    Returns:
        The path.

    Raises:
        ReidError: a crop has another type, crops belong to no tracklet, or the file cannot be written.
    """
    options = options or ReportOptions()
    tracklets = matches.tracklets
    notes = {heading: list(lines) for heading, lines in options.left_out.items() if lines}
    shown = _least_certain(matches.links, matches.threshold)[: options.max_links]
    first_needed = np.stack([matches.links.first[shown], matches.links.second[shown]], axis=1).reshape(-1)
    embedded, unreadable, without = _embed(crops or {}, len(tracklets), first_needed, options)
    if unreadable:
        notes["Crops that could not be read"] = [f"{_name(tracklets, row)}: {why}" for row, why in unreadable]
    if without:
        notes[f"Crops that did not fit into {options.max_bytes / 1e6:g} MB"] = [_name(tracklets, r) for r in without]
    if len(matches.links) > len(shown):
        hidden = f"{len(matches.links) - len(shown):,} of {len(matches.links):,}: the most certain pairs"
        notes["Candidate pairs that are not in this page"] = [hidden]
    data = {
        "run": _run_id(matches),
        "cameras": list(tracklets.camera_names),
        "colours": LIGHT.lines[:6],
        "tracklets": _tracklet_columns(matches),
        "links": {
            **_link_columns(matches.links, shown),
            "evidence": {name: none_for_nan(values[shown], 2) for name, values in options.evidence.items()},
        },
        "joins": [[join.first.tolist(), join.second.tolist(), round(join.log_ratio, 2)] for join in matches.gap_joins],
        "paths": _path_columns(options.paths, len(tracklets)),
        "threshold": none_for_nan(matches.threshold, 4),
        "rules": _rules(matches, options),
    }
    files = resources.files("reid.report")
    parts = [files.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = "\n".join(['"use strict";', "(() => {", *parts, "})();\n"])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = render_template(
        "match_page.html",
        title=options.title,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        colours={"blue": BLUE, "green": GREEN, "red": RED},
        tiles=_tiles(matches),
        threshold=matches.threshold,
        fmr=matches.fmr,
        hidden=HEAD_FRACTION if options.pixelate_heads else 0,
        warnings=options.warnings,
        scores=options.scores or {},
        notes=notes,
        protocol=matches.protocol,
        tables=_learned_tables(matches),
        data=data,
        crops=embedded,
        script=script,
    )
    write_text(path, page)
    return Path(path)


def _name(tracklets: Tracklets, row: int) -> str:
    return f"{tracklets.camera_names[tracklets.camera[row]]}, track {tracklets.track[row]}"


def _run_id(matches: Matches) -> str:
    """Return an id of this result; the same tracklets and identities have the same id."""
    t = matches.tracklets
    digest = hashlib.sha256("\n".join(t.camera_names).encode())
    for column in (t.camera, t.track, t.start, t.end, matches.identity):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def _tracklet_columns(matches: Matches) -> dict[str, list[Any]]:
    t = matches.tracklets
    return {
        "camera": t.camera.tolist(),
        "track": list(map(_exact, t.track.tolist())),
        "start": none_for_nan(t.start, 3),
        "end": none_for_nan(t.end, 3),
        "frames": t.frames.tolist(),
        "frame": t.first_frame.tolist(),
        "appearance": t.has_feature.astype(int).tolist(),
        "quality": none_for_nan(t.quality, 3),
        "identity": matches.identity.tolist(),
        "confidence": none_for_nan(matches.confidence, 3),
    }


def _least_certain(links: Links, threshold: float) -> NDArray[np.int64]:
    """Return the rows of all links, least certain first.

    A link is uncertain if its margin is close to 0, or if its own distance contradicts the decision.
    """
    contradiction = np.where(links.joined, links.distance - threshold, threshold - links.distance)
    uncertainty = np.where(links.forbidden_by == "", np.maximum(-np.abs(links.margin), contradiction), -np.inf)
    return np.argsort(-uncertainty, kind="stable")


def _link_columns(links: Links, rows: NDArray[np.int64]) -> dict[str, list[Any]]:
    reasons, reason = np.unique(links.forbidden_by[rows].astype(str), return_inverse=True)
    return {
        "first": links.first[rows].tolist(),
        "second": links.second[rows].tolist(),
        "distance": none_for_nan(links.distance[rows], 4),
        "margin": none_for_nan(links.margin[rows], 4),
        "probability": none_for_nan(links.probability[rows], 4),
        "joined": links.joined[rows].astype(int).tolist(),
        "reason": reason.reshape(-1).tolist(),
        "reasons": reasons.tolist(),
    }


def _path_columns(paths: Mapping[int, NDArray[np.float64]], n: int) -> list[list[list[float]]] | None:
    """Return the path of each tracklet as [seconds, x, y], rounded to 0.01; None if there are none."""
    for row in paths:
        if not 0 <= row < n:
            raise DataError(f"There is a path of tracklet {row}, but only {n} tracklets. Pass valid rows.")
    return [np.round(paths[row], 2).tolist() if row in paths else [] for row in range(n)] if paths else None


def _rules(matches: Matches, options: ReportOptions) -> dict[str, Any]:
    """Return the timing rules, and the given constraints as pairs of rows and as written in their file."""
    constraints = options.constraints or Constraints()
    rules = compile_rules(matches.tracklets, options.cameras, constraints)
    n = len(matches.tracklets)
    given = {
        "merge": [[_key(side) for side in pair] for pair in constraints.must_link],
        "split": [[_key(side) for side in pair] for pair in constraints.cannot_link],
        **({"tolerance": constraints.tolerance} if constraints.tolerance else {}),
        **({"max_speed": constraints.max_speed} if constraints.max_speed is not None else {}),
    }
    return {
        "tolerance": rules.tolerance,
        "non_overlapping": rules.non_overlapping.astype(int).tolist(),
        "min_transition_time": np.clip(rules.min_transition_time, -_NEVER, _NEVER).tolist(),
        "never": _NEVER,
        "must": rules.must_link.tolist(),
        "cannot": [[int(code) // n, int(code) % n] for code in rules.cannot_link],
        "given": given,
    }


def _key(side: tuple[str, int, int]) -> list[str | int]:
    camera, track, frame = side
    return [camera, _exact(track)] if frame < 0 else [camera, _exact(track), frame]


def _exact(track: int) -> int | str:
    """Return a local id, as text if a number of JavaScript may not represent it."""
    return track if track < 2**53 else str(track)


def _embed(
    crops: Mapping[int, Sequence[Crop]], n_tracklets: int, first_needed: NDArray[np.int64], options: ReportOptions
) -> tuple[list[list[str]], list[tuple[int, str]], list[int]]:
    """Return Base64 JPEGs of each tracklet, unreadable crops with reasons, and tracklets whose crops did not fit."""
    for row in crops:
        if not 0 <= row < n_tracklets:
            raise DataError(f"There are crops of tracklet {row}, but only {n_tracklets} tracklets. Pass valid rows.")
    order = [row for row in dict.fromkeys([*first_needed.tolist(), *range(n_tracklets)]) if len(crops.get(row, ()))]

    def encode_round(number: int, height: int, room: int) -> tuple[dict[int, str], dict[int, str], bool]:
        """Encode crop `number` of each tracklet while they fit: (JPEGs, errors, whether all fit)."""
        encoded: dict[int, str] = {}
        errors: dict[int, str] = {}
        for row in (row for row in order if number < len(crops[row])):
            crop = crops[row][number]
            try:
                text = _jpeg(crop, height, options.pixelate_heads)
            except DataError as error:
                if not isinstance(crop, bytes):
                    raise DataError(f"A crop of tracklet {row}: {error}") from error
                errors[row] = str(error)
                continue
            room -= len(text)
            if room < 0:
                return encoded, errors, False
            encoded[row] = text
        return encoded, errors, True

    embedded: list[list[str]] = [[] for _ in range(n_tracklets)]
    unreadable: list[tuple[int, str]] = []
    room, height = options.max_bytes, _HEIGHTS[0]
    for number in range(_MAX_CROPS):
        encoded, errors, all_fit = encode_round(number, height, room)
        if number == 0 and not all_fit:
            height = _HEIGHTS[1]
            encoded, errors, all_fit = encode_round(0, height, room)
        if number > 0 and not all_fit:
            break
        for row, text in encoded.items():
            embedded[row].append(text)
        unreadable += errors.items()
        room -= sum(map(len, encoded.values()))
        if not all_fit:
            return embedded, unreadable, sorted(row for row in order if row not in encoded and row not in errors)
    return embedded, unreadable, []


def _jpeg(crop: Crop, height: int, hide_head: bool) -> str:
    """Scale a crop to a height (and at most three times that width) and return it as a Base64 JPEG."""
    image: NDArray[np.uint8]
    if isinstance(crop, bytes):
        decoded = cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_COLOR) if crop else None
        if decoded is None:
            raise DataError(f"{len(crop):,} bytes are not a JPEG or PNG")
        image = decoded.view(np.uint8)
    else:
        if not isinstance(crop, np.ndarray):
            raise DataError(f"it is {type(crop).__name__}. Pass uint8 [H, W, 3] RGB, or the bytes of a file.")
        image = check_image(crop)[:, :, ::-1]
    width = min(3 * height, max(1, round(image.shape[1] * height / image.shape[0])))
    interpolation = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation).view(np.uint8)
    if hide_head:
        image = pixelate_heads([image])[0]
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return base64.b64encode(cv2.imencode(".jpg", image, settings)[1].tobytes()).decode()


def _tiles(matches: Matches) -> list[tuple[str, str]]:
    t = matches.tracklets
    identities, sizes = np.unique(matches.identity, return_counts=True)
    values = {
        "cameras": len(t.camera_names),
        "tracklets": len(t),
        "identities": len(identities),
        "in two or more cameras": count_multi_camera_identities(matches),
        "with one tracklet": (sizes == 1).sum(),
        "candidate pairs": len(matches.links),
    }
    return [(f"{int(value):,}", name) for name, value in values.items()]


def _learned_tables(matches: Matches) -> list[Table]:
    """Return tables of learned transition times and of clock offsets."""
    times = [
        [*pair, f"{median:.1f}", f"{spread:.1f}", f"{links:,}"]
        for pair, (median, spread, links) in sorted(matches.transition_times.items())
    ]
    offsets = [[name, f"{seconds:+.2f}"] for name, seconds in sorted(matches.clock_offsets.items())]
    head = ["from", "to", "median (s)", "spread (s)", "links"]
    tables = [
        Table(head, times, "Camera transitions learned from confident links"),
        Table(["camera", "offset (s)"], offsets, "Estimated clock offsets: seconds ahead of the other cameras"),
    ]
    return [table for table in tables if table.rows]
