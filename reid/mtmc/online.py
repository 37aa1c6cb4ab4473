"""Online matching: identities as tracks end, never changed afterwards, with bounded memory and delay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from reid.config import MatchSettings, StreamSettings
from reid.core.errors import ConfigError
from reid.data.tracks import Integers
from reid.mtmc.confidence import tracklet_confidence
from reid.mtmc.constraints import Constraints, Key, Rules, compile_rules, find_violations, row_finder
from reid.mtmc.ground import join_over_gaps
from reid.mtmc.matching import (
    Matches,
    appearance_odds,
    forbid_too_fast,
    match,
    number_identities,
)
from reid.mtmc.pooling import Mask
from reid.mtmc.solvers import Clusters, agglomerative, apply_stitching
from reid.mtmc.tracklets import Tracklets

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from reid.evaluation.calibration import Calibration
    from reid.mtmc.cameras import Cameras


class MatchInputs(TypedDict, total=False):
    """Keyword arguments of `match`."""

    cameras: Cameras | None
    settings: MatchSettings | None
    calibration: Calibration | None
    constraints: Constraints | None


class OnlineMatcher:
    """Give identities to tracklets as they end, and never change them.

    At each push, `match` processes the remembered and the new tracklets together and provides the distances (camera
    whitening, re-ranking, transition times, positions) and the threshold. Average linkage then joins under the same
    rules, and identities whose paths continue each other are joined (`ground.join_over_gaps`), but two identities that
    were both given before are never joined, and a tracklet keeps its identity. Other solvers and
    reassignment are not used, because they revise earlier decisions. Undecided links are joined, because no review can
    join them later.

    Args:
        stream: Limits of the memory.
        inputs: `cameras`, `settings`, `calibration` and `constraints`, as in `match`.

    Attributes:
        last: The highest identity given so far.
    """

    def __init__(self, *, stream: StreamSettings | None = None, **inputs: Unpack[MatchInputs]) -> None:
        settings = inputs.get("settings") or MatchSettings()
        self._inputs = inputs
        self._inputs["settings"] = settings.model_copy(update={"solver": "agglomerative", "reassign": False})
        self._constraints = inputs.get("constraints") or Constraints()
        self._stream = stream or StreamSettings()
        self._remembered: Tracklets | None = None
        self._identity = np.zeros(0, np.int64)
        self._given: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
        pairs = (*self._constraints.cannot_link, *self._constraints.must_link)
        self._constrained = {key[:2] for pair in pairs for key in pair}
        self.last = 0

    def __len__(self) -> int:
        """Number of remembered tracklets."""
        return len(self._identity)

    def push(self, tracklets: Tracklets) -> Integers:
        """Match tracklets that have ended since the last push.

        Returns:
            `[T]` int64 identities from 1: one that was given before, or the next new number (by first appearance).

        Raises:
            ConfigError: Constraints contradict identities that were given before.
        """
        if self._remembered is not None and len(tracklets):  # after a pause, all may be too old
            kept = np.flatnonzero(self._remembered.end >= tracklets.start.min() - self._stream.memory)
            self._remembered, self._identity = self._remembered.take(kept), self._identity[kept]
        known = len(self._identity)
        both = tracklets if self._remembered is None else self._remembered.append(tracklets)
        constraints = self._active_constraints(both)
        rules = compile_rules(both, self._inputs.get("cameras"), constraints)
        fixed = np.concatenate([self._identity, np.zeros(len(tracklets), np.int64)])
        forbidden = self._given_partners(both, known, self._constraints.cannot_link)
        for row, numbers in sorted(self._given_partners(both, known, self._constraints.must_link).items()):
            number = min(numbers)
            members = np.flatnonzero(fixed == number)
            if numbers - {number} or number in forbidden.get(row, ()) or not rules.allow(members, np.array([row])):
                raise ConfigError(
                    f"{both.describe(row)} is must-linked with a tracklet of identity {number}, but a rule or another "
                    "constraint forbids that. Remove the must-link, or match offline."
                )
            fixed[row] = number
        self._inputs["constraints"] = constraints
        offline = match(both, **self._inputs)
        space = offline.space
        clusters = _FixedClusters(rules if space is None else forbid_too_fast(rules, space), fixed, forbidden)
        agglomerative(offline.links, clusters, offline.threshold)
        if space is not None and both.has_path.any():
            neutral, weight = (offline.protocol[name] for name in ("neutral_distance", "distance_per_log_odds"))
            join_over_gaps(clusters, space.spread, appearance_odds(offline.links, both, neutral, weight))
        identity = clusters.identities()
        new = identity == 0
        identity[new] = self.last + number_identities(both.start[new], clusters.labels[new])
        self.last = max(self.last, int(identity.max(initial=0)))
        for row in range(known, len(both)):
            key = both.camera_names[both.camera[row]], int(both.track[row])
            if key in self._constrained:
                frames = int(both.first_frame[row]), int(both.last_frame[row])
                self._given.setdefault(key, []).append((*frames, int(identity[row])))
        self._remember(both, identity)
        return identity[known:]

    def _active_constraints(self, tracklets: Tracklets) -> Constraints:
        """Constraints whose tracklets are both present; `_given_partners` covers forgotten ones."""

        find = row_finder(tracklets)

        def present(pairs: tuple[tuple[Key, Key], ...]) -> tuple[tuple[Key, Key], ...]:
            return tuple(pair for pair in pairs if all(find(key) for key in pair))

        given = self._constraints
        return replace(given, cannot_link=present(given.cannot_link), must_link=present(given.must_link))

    def _given_partners(
        self, tracklets: Tracklets, known: int, pairs: tuple[tuple[Key, Key], ...]
    ) -> dict[int, set[int]]:
        """For each new row that is in a pair: identities given before to its partners, forgotten ones included."""
        found: dict[int, set[int]] = {}
        find = row_finder(tracklets)
        for key, partner in (*pairs, *(pair[::-1] for pair in pairs)):
            given = self._given.get(partner[:2], [])
            numbers = {number for first, last, number in given if partner[2] < 0 or first <= partner[2] <= last}
            for row in find(key) if numbers else []:
                if row >= known:
                    found.setdefault(row, set()).update(numbers)
        return found

    def _remember(self, tracklets: Tracklets, identity: Integers) -> None:
        order = np.lexsort((np.arange(len(identity)), tracklets.end))[::-1]
        recent = order[tracklets.end[order] >= tracklets.end.max(initial=0.0) - self._stream.memory]
        by_identity = np.argsort(identity[recent], kind="stable")
        numbers = identity[recent][by_identity]
        place = np.arange(len(numbers)) - np.searchsorted(numbers, numbers)
        allowed = np.sort(by_identity[place < self._stream.max_per_identity])
        kept = np.sort(recent[allowed[: self._stream.max_tracklets]])
        self._remembered, self._identity = tracklets.take(kept), identity[kept]


class _FixedClusters(Clusters):
    """Clusters of which some have an identity that they keep."""

    def __init__(self, rules: Rules, identity: Integers, forbidden: dict[int, set[int]]) -> None:
        super().__init__(rules)
        self.number = identity.tolist()
        self.forbidden = [set(forbidden.get(row, ())) for row in range(len(identity))]
        for number in np.unique(identity[identity > 0]):
            first, *others = np.flatnonzero(identity == number).tolist()
            for row in others:
                self.join(first, row)
        for a, b in rules.must_link:
            self.join_rows(a, b)
        apply_stitching(self)

    def may_join(self, a: int, b: int) -> bool:
        """As `may_join_each`, for one pair."""
        return bool(self.may_join_each(np.array([a]), np.array([b]))[0])

    def may_join_each(self, a: Integers, b: Integers) -> Mask:
        """As in `Clusters`; and not two identities, nor a cluster with an identity that is forbidden for it."""
        allowed = super().may_join_each(a, b)
        for place, (one, other) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
            first, second = self.number[one], self.number[other]
            if (first and second) or first in self.forbidden[other] or second in self.forbidden[one]:
                allowed[place] = False
        return allowed

    def join_all(self, kept: Integers, removed: Integers) -> None:
        """As in `Clusters`, one pair after the other."""
        for pair in zip(kept.tolist(), removed.tolist(), strict=True):
            self.join(*pair)

    def join(self, kept: int, removed: int) -> None:
        """As in `Clusters`; the result has the identity and the forbidden identities of both."""
        self.number[kept] = self.number[kept] or self.number[removed]
        self.forbidden[kept] |= self.forbidden[removed]
        super().join(kept, removed)

    def identities(self) -> Integers:
        """Identity of each tracklet, `[T]`; 0 where it has none yet."""
        return np.array(self.number, np.int64)[self.labels]


@dataclass(frozen=True, eq=False)
class OnlineMatches:
    """Result of `match_online`.

    Attributes:
        identity: `[T]` int64 from 1, for each tracklet.
        max_remembered: Largest number of tracklets remembered at one time.
        delay: Maximum seconds from the last box of a track to its identity.
    """

    identity: Integers
    max_remembered: int
    delay: float

    def as_matches(self, offline: Matches) -> Matches:
        """Return the offline result of the same tracklets with these identities; its links keep their distances."""
        joined = self.identity[offline.links.first] == self.identity[offline.links.second]
        links = offline.links.with_result(joined)
        online = {"delay": self.delay, "max_remembered": self.max_remembered}
        protocol = {**offline.protocol, "online": online, "identities": int(self.identity.max(initial=0))}
        confidence = tracklet_confidence(self.identity, links)
        joins = [j for j in offline.gap_joins if len(np.unique(self.identity[np.append(j.first, j.second)])) == 1]
        return replace(
            offline,
            identity=self.identity,
            links=links,
            confidence=confidence,
            protocol=protocol,
            gap_joins=tuple(joins),
        )


def match_online(
    tracklets: Tracklets, *, stream: StreamSettings | None = None, **inputs: Unpack[MatchInputs]
) -> OnlineMatches:
    """Match a recording with `OnlineMatcher` as if it were live: no tracklet is used before it has ended.

    Raises:
        ConfigError: As `OnlineMatcher.push`.
        RuntimeError: An identity breaks a rule. This is a bug in this package.
    """
    stream = stream or StreamSettings()
    matcher = OnlineMatcher(stream=stream, **inputs)
    identity = np.zeros(len(tracklets), np.int64)
    max_remembered = 0
    tick = np.ceil((tracklets.end + stream.close_after) / stream.period).astype(np.int64)
    for now in np.unique(tick):
        rows = np.flatnonzero(tick == now)
        identity[rows] = matcher.push(tracklets.take(rows))
        max_remembered = max(max_remembered, len(matcher))
    violations = find_violations(tracklets, identity, inputs.get("cameras"), inputs.get("constraints"))
    if violations:
        raise RuntimeError(f"Online matching breaks {len(violations)} rules (a bug): {'; '.join(violations[:3])}.")
    return OnlineMatches(identity, max_remembered, stream.delay)
