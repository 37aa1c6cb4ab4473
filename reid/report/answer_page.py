"""The page of a search: hits with pictures and evidence, and the trajectory over the cameras."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.core.atomic import write_text
from reid.gallery.times import show_time
from reid.report.page import Table, render_template
from reid.report.style import BLUE

if TYPE_CHECKING:
    from reid.gallery import Answer, Hit, Trajectory


@dataclass(frozen=True, eq=False)
class AnswerOptions:
    """What the page of a search shows besides the hits.

    Attributes:
        title: heading.
        zone: time zone of all times.
        trajectory: chained from the hits; None for none.
        photos: JPEG files of the person that was searched for.
        positions: by tracklet, `[K, 2]` positions on the ground in metres, by time; without any there is no floor plan.
        about: names and values: what was searched, and how.
    """

    title: str = "Search"
    zone: str = "UTC"
    trajectory: Trajectory | None = None
    photos: Sequence[bytes] = ()
    positions: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def write_answer_page(path: str | Path, answer: Answer, options: AnswerOptions | None = None) -> Path:
    """Write the answer of a search as one HTML file that needs no other file, runs no script and sends nothing.

    All text is escaped, and absolute paths are shortened to file names. Pictures are those stored in the gallery.

    Raises:
        DataError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> import reid
        >>> gallery = reid.Gallery.create(tempfile.mkdtemp() + "/shop")
        >>> _ = gallery.add(reid.Embeddings([[1, 0], [0, 1]], camids=[1, 2], tracks=[1, 1]), source="monday")
        >>> write_answer_page(tempfile.mkdtemp() + "/answer.html", gallery.search([[1, 0]])).name
        'answer.html'
    """
    options = options or AnswerOptions()
    chain = options.trajectory
    steps = {id(step.hit): number for number, step in enumerate(chain.steps, 1)} if chain else {}
    reasons = {id(one.hit): one.reason for one in chain.dropped} if chain else {}
    kinds = ["step" if id(hit) in steps else "dropped" if id(hit) in reasons else "other" for hit in answer.hits]
    lanes, axis = _timeline(answer.hits, kinds, steps, options.zone)
    hits = []
    for hit, kind in zip(answer.hits, kinds, strict=True):
        state = {
            "step": f"step {steps.get(id(hit))} of the trajectory",
            "dropped": f"dropped: {reasons.get(id(hit))}",
            "other": "" if hit.accepted is not False else "explained by chance",
        }[kind]
        hits.append({"kind": kind, "state": state, **_describe(hit, options.zone)})
    page = render_template(
        "answer_page.html",
        title=options.title,
        verdict=answer.describe(),
        warnings=_warnings(answer),
        photos=[_data_uri(photo) for photo in options.photos],
        lanes=lanes,
        axis=axis,
        chain=chain.describe() if chain else "",
        steps=_step_table(chain, options.zone) if chain and chain.steps else None,
        dropped=chain.describe_dropped(options.zone) if chain else [],
        others="other" in kinds,
        floor=_floor(chain, options),
        hits=hits,
        about={**options.about, **_scope(answer)},
        meaning=_MEANING if answer.found is not None else _RANKS_ONLY,
        colours={"blue": BLUE},
    )
    write_text(path, page)
    return Path(path)


_MEANING = (
    "Strangers: how many tracklets of other people are expected at this distance or nearer in everything that was "
    "searched. A hit is accepted if this number is at most the limit. p(same): probability that the hit is this person."
)
_RANKS_ONLY = "Without a calibration, hits are only ranked: the first one need not be this person."


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def _warnings(answer: Answer) -> list[str]:
    if not answer.without_time:
        return []
    return [f"{answer.without_time:,} rows were not searched, because their time is unknown."]


def _scope(answer: Answer) -> dict[str, Any]:
    return {
        "tracklets searched": answer.tracklets,
        "limit of expected strangers": None if answer.found is None else answer.expected_false,
        "calibration": answer.calibration,
    }


def _describe(hit: Hit, zone: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"distance": f"{hit.distance:.3f}"}
    if hit.strangers is not None and hit.probability is not None:
        facts |= {"strangers": f"{hit.strangers:.2g}", "p(same)": f"{hit.probability:.3f}"}
    facts |= {"track": "–" if hit.track is None else str(hit.track)}
    facts |= {} if hit.identity is None else {"identity": str(hit.identity)}
    facts |= {"crops": hit.crops, "source": hit.source}
    if hit.path is not None:
        facts["file"] = Path(hit.path).name
    picture = None if hit.picture is None else _data_uri(hit.picture)
    camera = hit.camera or "unknown camera"
    return {"picture": picture, "camera": camera, "time": show_time(hit.start, zone), "facts": facts}


def _step_table(chain: Trajectory, zone: str) -> Table:
    columns = chain.columns(zone)
    del columns["distance"]  # each hit shows it below
    return Table(list(columns), [list(map(str, row)) for row in zip(*columns.values(), strict=True)], numbers=False)


def _timeline(
    hits: Sequence[Hit], kinds: Sequence[str], steps: Mapping[int, int], zone: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the lanes of the cameras, in the order of their first hit, and the texts of the axis."""
    timed = [
        (hit.start, hit.end, rank, hit)
        for rank, hit in enumerate(hits, 1)
        if hit.start is not None and hit.end is not None
    ]
    if not timed:
        return [], []
    timed.sort(key=lambda one: one[:3])
    first, last = timed[0][0], max(end for _, end, _, _ in timed)
    length = max(last - first, 1)
    lanes: dict[str | None, list[dict[str, Any]]] = {}
    for start, end, rank, hit in timed:
        bar = {
            "left": round((start - first) / length, 5),
            "width": round((end - start) / length, 5),
            "kind": kinds[rank - 1],
            "label": steps.get(id(hit), ""),
            "rank": rank,
            "title": f"hit {rank}: {show_time(start, zone)} to {show_time(end, zone)}",
        }
        lanes.setdefault(hit.camera, []).append(bar)
    axis = [show_time(time, zone) for time in (first, (first + last) // 2, last)]
    return [{"camera": camera or "unknown camera", "bars": bars} for camera, bars in lanes.items()], axis


def _floor(chain: Trajectory | None, options: AnswerOptions) -> dict[str, Any] | None:
    """Return the drawing of the steps whose positions are known; None without any."""
    known = [
        (number, step, options.positions[step.hit.tracklet])
        for number, step in enumerate(chain.steps if chain else (), 1)
        if len(options.positions.get(step.hit.tracklet, ()))
    ]
    if not known:
        return None
    points = np.concatenate([path for _, _, path in known]) * (1, -1)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.1 * max(float((high - low).max()), 10.0)
    (left, top), (width, height) = low - margin, high - low + 2 * margin
    step_m = next((m for m in (1, 2, 5, 10, 20, 50, 100, 200, 500) if max(width, height) / m <= 16), 1000)
    grid = [(x, top, x, top + height) for x in _marks(left, left + width, step_m)]
    grid += [(left, y, left + width, y) for y in _marks(top, top + height, step_m)]
    steps = [
        {
            "number": number,
            "points": _polyline(path),
            "x": f"{path[:, 0].mean():.2f}",
            "y": f"{-path[:, 1].mean():.2f}",
            "title": f"{step.hit.camera}, {show_time(step.hit.start, options.zone)}",
        }
        for number, step, path in known
    ]
    missing = sorted(set(range(1, 1 + len(chain.steps if chain else ()))) - {number for number, _, _ in known})
    return {
        "box": f"{left:.2f} {top:.2f} {width:.2f} {height:.2f}",
        "grid": [[f"{value:.2f}" for value in line] for line in grid],
        "all": " ".join(_polyline(path) for _, _, path in known),
        "steps": steps,
        "step": step_m,
        "unit": float(f"{max(width, height) / 700:.3g}"),
        "note": f"Steps without a known position: {', '.join(map(str, missing))}." if missing else "",
    }


def _marks(low: float, high: float, step: float) -> list[float]:
    return (np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step).tolist()


def _polyline(path: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.2f},{-y:.2f}" for x, y in path)
