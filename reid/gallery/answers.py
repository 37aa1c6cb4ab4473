"""Search galleries, and say how much a hit means: strangers expected this near, p(same), or nobody."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import unit_rows
from reid.core.errors import ConfigError, DataError, check_number
from reid.data.tracks import last_number
from reid.gallery.index import Index
from reid.gallery.scope import Scope

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration
    from reid.gallery.gallery import Gallery

EXPECTED_FALSE = 0.1
"""Default limit: one stranger in ten searches for a person who is not in the scope."""


class Seen(NamedTuple):
    """A stored crop of a tracklet: its frame, time (milliseconds since 1970) and box x, y, w, h in pixels.

    Time and box are None where unknown.
    """

    frame: int
    time: int | None
    box: tuple[float, float, float, float] | None


@dataclass(frozen=True, eq=False)
class Hit:
    """One tracklet of an answer.

    Attributes:
        distance: smallest cosine distance of a photo to one of its prototypes.
        strangers: expected number of strangers' tracklets at this distance or nearer in the whole scope; None without
            a calibration.
        probability: p(same person); None without a calibration.
        accepted: whether `strangers` is at most the limit; None without a calibration.
        gallery: name of the gallery.
        tracklet: id.
        source, camera, track, identity, path: as added; None where unknown.
        start, end: milliseconds since 1970; None where unknown.
        crops: number of crops of the tracklet.
        picture: JPEG of its most typical crop, or None.
        seen: its stored crops whose frame is known, by frame.
    """

    distance: float
    strangers: float | None
    probability: float | None
    accepted: bool | None
    gallery: str
    tracklet: str
    source: str
    camera: str | None
    track: int | None
    identity: int | None
    start: int | None
    end: int | None
    crops: int
    path: str | None = None
    picture: bytes | None = field(default=None, repr=False)
    seen: tuple[Seen, ...] = field(default=(), repr=False)

    @property
    def person(self) -> tuple[str, ...]:
        """Key that is equal for hits of one person: the identity of `reid match` where known, else the tracklet."""
        return (
            (self.gallery, self.tracklet) if self.identity is None else (self.gallery, self.source, str(self.identity))
        )


@dataclass(frozen=True, eq=False)
class Answer:
    """Result of a search.

    Attributes:
        hits: the nearest tracklets, sorted by distance.
        found: whether someone is there: the best hit is nearer than chance explains. None without a calibration.
        expected_false: the limit of `Hit.strangers` for an accepted hit.
        tracklets, rows: size of the searched scope.
        without_time: rows that a filter by time left out because their time is unknown.
        seconds: duration of the search.
        calibration: description of the calibration; None without one.
    """

    hits: list[Hit]
    found: bool | None
    expected_false: float
    tracklets: int
    rows: int
    without_time: int
    seconds: float
    calibration: str | None

    @property
    def accepted(self) -> list[Hit]:
        """Hits that chance does not explain."""
        return [hit for hit in self.hits if hit.accepted]

    def people(self) -> list[list[Hit]]:
        """Return the hits by person, the person with the nearest hit first."""
        groups: dict[tuple[str, ...], list[Hit]] = {}
        for hit in self.hits:
            groups.setdefault(hit.person, []).append(hit)
        return list(groups.values())

    def person_numbers(self) -> list[int]:
        """Return the number of each hit's person, from 1, in the order of `people`."""
        number: dict[tuple[str, ...], int] = {}
        return [number.setdefault(hit.person, len(number) + 1) for hit in self.hits]

    def describe(self) -> str:
        """Return the answer in one sentence."""
        scope = f"{self.tracklets:,} tracklets searched"
        if not self.tracklets:
            return "Nothing was searched: no tracklet is in the scope."
        if self.found is None:
            return f"Ranks only, because there is no calibration: whether this person is there is unknown. {scope}."
        if not self.found:
            best = f" The best hit is explained by chance: {self.hits[0].strangers:.2g} strangers are expected at its "
            best += f"distance or nearer, more than the limit of {self.expected_false:g}."
            return f"Nobody here.{best if self.hits else ''} {scope}."
        return f"{len(self.accepted)} hits that chance does not explain (limit {self.expected_false:g}). {scope}."

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python, ready for JSON, without pictures."""
        values = {key: value for key, value in vars(self).items() if key != "hits"}
        hits = [{**vars(hit), "seen": [one._asdict() for one in hit.seen]} for hit in self.hits]
        for hit in hits:
            del hit["picture"]
        people = [[self.hits.index(hit) for hit in group] for group in self.people()]
        return {**values, "hits": hits, "people": people}


@dataclass(frozen=True)
class Evidence:
    """What distances mean in a scope.

    Attributes:
        calibration: of the model.
        looks: strangers in the scope, by the camera number of the calibration; None: cameras without a number.
        camera: number of the camera of the photo; None if it is unknown.
    """

    calibration: Calibration
    looks: dict[int | None, float]
    camera: int | None = None

    def _pair(self, camera: int | None) -> tuple[int, int] | None:
        return None if self.camera is None or camera is None else (self.camera, camera)

    def strangers(self, distance: float) -> float:
        """Return the expected number of strangers at this distance or nearer: Σ over cameras of size × FMR."""
        return sum(size * self._rate(distance, camera) for camera, size in self.looks.items())

    def _rate(self, distance: float, camera: int | None) -> float:
        """Return the false-match rate, continued below its smallest knot along the slope of its last decade."""
        knots, rates = self.calibration.curve(self._pair(camera)).false_match
        if distance >= knots[0]:
            return self.calibration.fmr(distance, self._pair(camera))
        decade = max(int(np.searchsorted(rates, 10 * rates[0])), 1)
        slope = np.log(rates[min(decade, len(rates) - 1)] / rates[0]) / max(
            knots[min(decade, len(rates) - 1)] - knots[0], 1e-9
        )
        return float(rates[0] * np.exp(slope * (distance - knots[0])))

    def probability(self, distance: float, camera: int | None) -> float:
        """Return p(same): the prior is one tracklet of the person among all in the scope."""
        size = max(sum(self.looks.values()), 1.0)
        pair = self._pair(camera)
        return float(self.calibration.probability(distance, pair, prior=1 / (1 + size)))


def search(
    galleries: Sequence[Gallery],
    queries: NDArray[np.float32],
    *,
    scope: Scope | None = None,
    top: int = 10,
    within: float | None = None,
    expected_false: float = EXPECTED_FALSE,
    camera: str | None = None,
    calibration: Calibration | None = None,
    purpose: str | None = None,
) -> Answer:
    """Find the tracklets that look most like a person, in one or several galleries of one model.

    Args:
        galleries: one or more.
        queries: `[Q, D]` features of photos of one person. The distance to a tracklet is that of the nearest photo;
            the expected number of strangers is counted for each photo.
        scope: cameras and times; everything by default.
        top: largest number of hits.
        within: largest distance.
        expected_false: limit of the expected number of strangers for an accepted hit.
        camera: that took the photos, if it is one of the calibration's cameras.
        calibration: of the model; without one, hits are ranked only.
        purpose: for the audit log.

    Raises:
        ModelError: a gallery of another model than the first, or photos of another dimension.
        ConfigError: a value out of range, or no purpose where a gallery requires one.
        DataError: features that are not finite, or a calibration of another model.
    """
    began = time.perf_counter()
    check_number("top", top, 1)
    check_number("within", within)
    check_number("expected_false", expected_false, 0, above=True)
    for gallery in galleries:
        if gallery.settings.require_purpose and not (purpose or "").strip():
            raise ConfigError(f"{gallery.path} requires the purpose of a search. Pass it with --purpose.")
    scope = scope or Scope()
    queries = unit_rows(np.atleast_2d(np.asarray(queries, np.float32)))
    if not len(queries) or not np.isfinite(queries).all() or not queries.any(axis=1).all():
        raise DataError("The features of the photo contain NaN, infinity or only zeros. Embed it again.")
    for gallery in galleries:
        gallery.check_fits(galleries[0].model or {}, queries.shape[1], "The search")
    nearest: list[tuple[float, str, Gallery]] = []
    looks: dict[int | None, float] = {}
    rows = tracklets = without_time = 0
    for gallery in galleries:
        index, chosen, found = gallery.nearest(queries, scope, top, within)
        nearest += [(*hit, gallery) for hit in found]
        rows += len(index) if chosen is None else len(chosen)
        tracklets += _count_tracklets(index, chosen)
        without_time += index.count_without_time(scope)
        numbers = [last_number(name) for name in index.cameras]
        for number, size in zip([*numbers, None], index.looks_by_camera(chosen).tolist(), strict=True):
            looks[number] = looks.get(number, 0.0) + len(queries) * size
    nearest = sorted(nearest, key=lambda hit: hit[:2])[:top]
    evidence = None
    if calibration is not None:
        calibration.check_fits((galleries[0].model or {}).get("model"), "the gallery's features")
        evidence = Evidence(calibration, looks, None if camera is None else _camera_number(camera))
    hits = _describe(nearest, evidence, expected_false)
    answer = Answer(
        hits,
        None if evidence is None else any(hit.accepted for hit in hits),
        expected_false,
        tracklets,
        rows,
        without_time,
        time.perf_counter() - began,
        None if calibration is None else f"{calibration.source}, {calibration.overall.impostor:,} impostor pairs",
    )
    for gallery in galleries:
        gallery.log_search(answer, queries, scope, purpose)
    return answer


def _count_tracklets(index: Index, rows: NDArray[np.int64] | None) -> int:
    codes = index.tracklet if rows is None else index.tracklet[rows]
    return int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0


def _camera_number(name: str) -> int:
    number = last_number(name)
    if number is None:
        raise ConfigError(
            f"The camera {name!r} of the photo has no number, so it is none of the calibration's cameras."
        )
    return number


def _describe(
    nearest: Sequence[tuple[float, str, Gallery]], evidence: Evidence | None, expected_false: float
) -> list[Hit]:
    hits = []
    galleries = dict.fromkeys(gallery for _, _, gallery in nearest)
    details = {gallery: gallery.details([hit[1] for hit in nearest if hit[2] is gallery]) for gallery in galleries}
    for rounded, tracklet, gallery in nearest:
        distance = max(rounded, 0.0)  # rounding errors of equal features are below 0
        values = details[gallery].get(tracklet)
        if values is None:
            continue  # erased by another process since the search
        strangers = probability = accepted = None
        if evidence is not None:
            number = None if values["camera"] is None else last_number(values["camera"])
            strangers = evidence.strangers(distance)
            probability, accepted = evidence.probability(distance, number), strangers <= expected_false
        hits.append(Hit(distance, strangers, probability, accepted, gallery.name, tracklet, **values))
    return hits
