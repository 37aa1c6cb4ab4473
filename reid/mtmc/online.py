"""Matching as tracks end: identities that stay as given, from bounded memory, within a stated delay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.mtmc.candidates import Candidates
from reid.mtmc.constraints import Constraints, Key, Rules, compile_rules, find_violations
from reid.mtmc.matching import Matches, MatchSettings, match, tracklet_confidence
from reid.mtmc.solvers import Clusters, agglomerative, apply_stitching
from reid.mtmc.tracklets import Tracklets

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration
    from reid.mtmc.cameras import Cameras


FAR = 1.0
"""The distance that `match` lets stand for every pair that is no candidate."""


@dataclass(frozen=True)
class StreamSettings:
    """How a stream is cut and how much of it is remembered.

    Attributes:
        close_after: seconds without a box after which a track has ended.
        period: seconds between two decisions. An identity is given within `close_after + period` seconds of the
            track's last box. Longer is better: more is known when it is given.
        memory: seconds after its end for which a tracklet is remembered; people who come back later are new.
        members: tracklets remembered of each identity, the latest.
        most: tracklets remembered in all, the latest.
    """

    close_after: float = 2.0
    period: float = 60.0
    memory: float = 3600.0
    members: int = 8
    most: int = 1000

    def __post_init__(self) -> None:
        for name in ("close_after", "period", "memory", "members", "most"):
            value = getattr(self, name)
            if not value > 0 and not (name == "close_after" and value == 0):
                raise ReidError(f"Online matching: {name} is {value}; it must be above 0.")

    @property
    def delay(self) -> float:
        """Seconds from the last box of a track to its identity, at most."""
        return self.close_after + self.period


class OnlineMatcher:
    """Gives identities to tracklets as they end, and never takes one back.

    At each push `match` sees the tracklets remembered and the new ones together, as if nothing had been decided: it
    gives the distances (camera bias, re-ranking, travel times) and the threshold. With these, average linkage joins
    under the same rules, but two identities that were both given out before are never joined, and a tracklet that has
    one keeps it. Other solvers and reassignment, which look back, are not used.

    Args:
        cameras, settings, calibration, constraints: as in `match`.
        stream: what is remembered.
    """

    def __init__(
        self,
        *,
        cameras: Cameras | None = None,
        settings: MatchSettings | None = None,
        calibration: Calibration | None = None,
        constraints: Constraints | None = None,
        stream: StreamSettings | None = None,
    ) -> None:
        self._cameras = cameras
        self._settings = replace(settings or MatchSettings(), solver="agglomerative", reassign=False)
        self._calibration = calibration
        self._constraints = constraints or Constraints()
        self._stream = stream or StreamSettings()
        self._kept: Tracklets | None = None
        self._identity = np.zeros(0, np.int64)
        self._given: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
        self._named = {key[:2] for pair in self._pairs() for key in pair}
        self.last = 0
        """The highest identity given so far."""

    def __len__(self) -> int:
        """How many tracklets are remembered."""
        return len(self._identity)

    def push(self, tracklets: Tracklets) -> NDArray[np.int64]:
        """Take tracklets that have ended since the last push, and give each an identity, from 1.

        Returns:
            `[T]` int64: that of somebody remembered, or the next new number (in order of first sight).

        Raises:
            ReidError: other cameras than before, or constraints that contradict what was already given out.
        """
        known = len(self._identity)
        both = tracklets if self._kept is None else self._kept.append(tracklets)
        constraints = self._constraints_among(both)
        rules = compile_rules(both, self._cameras, constraints)
        fixed = np.concatenate([self._identity, np.zeros(len(tracklets), np.int64)])
        forbidden = self._partners(both, known, self._constraints.cannot_link)
        for row, numbers in self._partners(both, known, self._constraints.must_link).items():
            number = min(numbers)
            members = np.flatnonzero(fixed == number)
            if numbers - {number} or number in forbidden.get(row, ()) or not rules.allow(members, np.array([row])):
                raise ReidError(
                    f"{both.describe(row)} is must-linked with a tracklet of identity {number}, but a rule or another "
                    "constraint forbids that. Remove the must-link, or match offline."
                )
            fixed[row] = number
        clusters = _Fixed(rules, fixed, forbidden)
        free = match(
            both,
            cameras=self._cameras,
            settings=self._settings,
            calibration=self._calibration,
            constraints=constraints,
        )
        links = free.links
        agglomerative(Candidates(links.first, links.second, links.distance, FAR, len(both)), clusters, free.threshold)
        identity = clusters.identities()
        new = np.flatnonzero(identity == 0)
        for row in new[np.lexsort((new, both.start[new]))]:
            if identity[row] == 0:
                self.last += 1
                identity[clusters.members[clusters.labels[row]]] = self.last
        for row in range(known, len(both)):
            key = both.camera_names[both.camera[row]], int(both.track[row])
            if key in self._named:
                frames = int(both.first_frame[row]), int(both.last_frame[row])
                self._given.setdefault(key, []).append((*frames, int(identity[row])))
        self._remember(both, identity)
        return identity[known:]

    def _pairs(self) -> tuple[tuple[Key, Key], ...]:
        return (*self._constraints.cannot_link, *self._constraints.must_link)

    def _constraints_among(self, tracklets: Tracklets) -> Constraints:
        """Those whose tracklets are both here; the others wait, or are answered by `_forbidden`."""
        here: dict[tuple[str, int], list[tuple[int, int]]] = {}
        names = (tracklets.camera_names[number] for number in tracklets.camera.tolist())
        spans = zip(tracklets.first_frame.tolist(), tracklets.last_frame.tolist(), strict=True)
        for name, track, span in zip(names, tracklets.track.tolist(), spans, strict=True):
            here.setdefault((name, track), []).append(span)

        def among(pair: tuple[Key, Key]) -> bool:
            return all(
                any(frame < 0 or first <= frame <= last for first, last in here.get((camera, track), []))
                for camera, track, frame in pair
            )

        return replace(
            self._constraints,
            cannot_link=tuple(pair for pair in self._constraints.cannot_link if among(pair)),
            must_link=tuple(pair for pair in self._constraints.must_link if among(pair)),
        )

    def _partners(self, tracklets: Tracklets, known: int, pairs: tuple[tuple[Key, Key], ...]) -> dict[int, set[int]]:
        """By row of the new tracklets: identities given to those that it is paired with, who may be forgotten."""
        found: dict[int, set[int]] = {}
        for row in range(known, len(tracklets)):
            name, track = tracklets.camera_names[tracklets.camera[row]], int(tracklets.track[row])
            if (name, track) not in self._named:
                continue
            span = int(tracklets.first_frame[row]), int(tracklets.last_frame[row])
            for pair in pairs:
                for mine, other in (pair, pair[::-1]):
                    if mine[:2] == (name, track) and (mine[2] < 0 or span[0] <= mine[2] <= span[1]):
                        for first, last, number in self._given.get(other[:2], []):
                            if other[2] < 0 or first <= other[2] <= last:
                                found.setdefault(row, set()).add(number)
        return found

    def _remember(self, tracklets: Tracklets, identity: NDArray[np.int64]) -> None:
        order = np.lexsort((np.arange(len(identity)), tracklets.end))[::-1]
        recent = order[tracklets.end[order] >= tracklets.end.max(initial=0.0) - self._stream.memory]
        count: dict[int, int] = {}
        rows: list[int] = []
        for row in recent.tolist():
            number = int(identity[row])
            count[number] = count.get(number, 0) + 1
            if count[number] <= self._stream.members and len(rows) < self._stream.most:
                rows.append(row)
        kept = np.sort(np.array(rows, np.int64))
        self._kept, self._identity = tracklets.take(kept), identity[kept]


class _Fixed(Clusters):
    """Clusters of which some have an identity that they keep."""

    def __init__(self, rules: Rules, identity: NDArray[np.int64], forbidden: dict[int, set[int]]) -> None:
        super().__init__(rules)
        self.number = identity.tolist()
        self.forbidden = [set(forbidden.get(row, ())) for row in range(len(identity))]
        first: dict[int, int] = {}
        for row in np.flatnonzero(identity).tolist():
            number = int(identity[row])
            if number in first:
                self.join(int(self.labels[first[number]]), row)
            else:
                first[number] = row
        for a, b in rules.must_link:
            one, other = int(self.labels[a]), int(self.labels[b])
            if one != other and self.may_join(one, other):
                self.join(one, other)
        apply_stitching(self)

    def may_join(self, a: int, b: int) -> bool:
        """As `may_join_each`, of one pair."""
        return bool(self.may_join_each(np.array([a]), np.array([b]))[0])

    def may_join_each(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        """As in `Clusters`; and not two that have identities already, nor one with an identity that it cannot be."""
        allowed = super().may_join_each(a, b)
        for place, (one, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
            mine, theirs = self.number[one], self.number[other]
            if (mine and theirs) or mine in self.forbidden[other] or theirs in self.forbidden[one]:
                allowed[place] = False
        return allowed

    def join(self, keep: int, gone: int) -> None:
        """As in `Clusters`; what one of the two knows, both know."""
        self.number[keep] = self.number[keep] or self.number[gone]
        self.forbidden[keep] |= self.forbidden[gone]
        super().join(keep, gone)

    def identities(self) -> NDArray[np.int64]:
        """`[T]`: the identity of each; 0 where it has none yet."""
        return np.array(self.number, np.int64)[self.labels] if len(self.labels) else np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class OnlineMatches:
    """What a stream gave.

    Attributes:
        identity: `[T]` int64 from 1, for each tracklet.
        remembered: the most tracklets that were remembered at once.
        delay: seconds from the last box of a track to its identity, at most.
    """

    identity: NDArray[np.int64]
    remembered: int
    delay: float

    def as_matches(self, offline: Matches) -> Matches:
        """The offline result of the same tracklets with these identities; its links keep their distances."""
        joined = self.identity[offline.links.first] == self.identity[offline.links.second]
        links = replace(offline.links, joined=joined)
        protocol = {**offline.protocol, "online": {"delay": self.delay, "remembered": self.remembered}}
        protocol["identities"] = int(self.identity.max(initial=0))
        confidence = tracklet_confidence(self.identity, links)
        return replace(offline, identity=self.identity, links=links, confidence=confidence, protocol=protocol)


def match_online(
    tracklets: Tracklets,
    *,
    cameras: Cameras | None = None,
    settings: MatchSettings | None = None,
    calibration: Calibration | None = None,
    constraints: Constraints | None = None,
    stream: StreamSettings | None = None,
) -> OnlineMatches:
    """Run a recording through `OnlineMatcher` as if it came in live: no tracklet is seen before it has ended.

    Raises:
        ReidError: as `OnlineMatcher.push`.
        RuntimeError: an identity breaks a rule, which is a mistake in this program.
    """
    stream = stream or StreamSettings()
    matcher = OnlineMatcher(
        cameras=cameras, settings=settings, calibration=calibration, constraints=constraints, stream=stream
    )
    identity = np.zeros(len(tracklets), np.int64)
    remembered = 0
    tick = np.ceil((tracklets.end + stream.close_after) / stream.period).astype(np.int64)
    for now in np.unique(tick):
        rows = np.flatnonzero(tick == now)
        identity[rows] = matcher.push(tracklets.take(rows))
        remembered = max(remembered, len(matcher))
    broken = find_violations(tracklets, identity, cameras, constraints)
    if broken:
        raise RuntimeError(f"{len(broken)} rules are broken by online matching: {'; '.join(broken[:3])}")
    return OnlineMatches(identity, remembered, stream.delay)
