"""`match`: tracklets of several cameras in, identities out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError, did_you_mean
from reid.embedding.table import Embeddings
from reid.mtmc.candidates import (
    CameraWhitening,
    Candidates,
    cosine_candidates,
    cosine_distances,
    find_neighbours,
    pair_distances,
    reranked_candidates,
)
from reid.mtmc.constraints import REASONS, Constraints, Rules, compile_rules, find_violations
from reid.mtmc.solvers import (
    SOLVERS,
    Clusters,
    agglomerative,
    apply_must_links,
    apply_stitching,
    correlation,
    hungarian,
    reassign,
    single_linkage,
)
from reid.mtmc.thresholds import (
    LIMIT,
    USUAL,
    Choice,
    fit_odds,
    select_threshold,
)
from reid.mtmc.tracklets import Tracklets, simultaneous_pairs
from reid.mtmc.transitions import clock_offsets, evidence_of, learn_ways

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration
    from reid.mtmc.cameras import Cameras

FEWEST = 20
"""With fewer tracklets than this nothing is learned from them."""

FEW_THRESHOLD = 0.3
"""The cosine distance that then decides."""

EVIDENCE_TO_DISTANCE = 0.2
"""How much of the distance a log odds of 1 is worth that the gap in time gives."""

SIZE_TO_K1 = 1.5
"""Neighbours in re-ranking for each tracklet that an identity seems to have."""


@dataclass(frozen=True)
class MatchSettings:
    """How to match. `docs/matching.md` says what each does and what its default rests on.

    Attributes:
        solver: one of `SOLVERS`.
        threshold: largest distance at which two are joined; None: chosen without labels, or with the calibration.
        fmr: chooses the threshold under which this part of sure negatives lies (tracklets of one camera that share
            time), where `threshold` is None; None: by silhouette.
        neighbours: nearest tracklets that are looked at for each.
        camera_whitening: λ of `CameraWhitening`; None leaves the features as they are.
        rerank: whether distances are re-ranked.
        k1: neighbours in re-ranking; None: 1.5 times the size that identities seem to have, within 4..15.
        transitions: whether ways between cameras are learned from a first result and used as evidence in a second one.
        featureless_max_gap: a tracklet without a feature joins the one identity that another tracklet of its camera
            belongs to
            which ends before or begins after it within so many seconds, if there is just one; 0: it stays alone.
        reassign: whether single tracklets may move to a better identity at the end; None: after `threshold` and
            `hungarian` only. `correlation` has such moves of its own.
    """

    solver: str = "agglomerative"
    threshold: float | None = None
    fmr: float | None = None
    neighbours: int = 30
    camera_whitening: float | None = 1.0
    rerank: bool = True
    k1: int | None = None
    transitions: bool = True
    featureless_max_gap: float = 0.0
    reassign: bool | None = None

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ReidError(f"Unknown solver {self.solver!r}.{did_you_mean(self.solver, SOLVERS)}")
        if self.threshold is not None and not self.threshold >= 0:
            raise ReidError(f"threshold is {self.threshold}; it is a distance, 0 or more.")
        if self.fmr is not None and not 0 < self.fmr < 1:
            raise ReidError(f"fmr is {self.fmr}; it is a part of pairs, between 0 and 1.")
        if not self.featureless_max_gap >= 0:
            raise ReidError(f"featureless_max_gap is {self.featureless_max_gap}; it is seconds, 0 or more.")
        if self.neighbours < 1 or (self.k1 is not None and self.k1 < 1):
            raise ReidError(f"neighbours and k1 must be at least 1, not {self.neighbours} and {self.k1}.")
        if self.camera_whitening is not None and not self.camera_whitening > 0:
            raise ReidError(f"camera_whitening is {self.camera_whitening}; it must be above 0, or None for none.")


@dataclass(frozen=True, eq=False)
class Links:
    """Every candidate pair of tracklets, columns of length L, `first < second`, sorted.

    Attributes:
        first, second: rows of the tracklets.
        distance: float32, that of the solver.
        probability: float64, of being one person.
        forbidden_by: str objects, "" or one of `constraints.REASONS`: what forbids the pair.
        joined: bool, whether both ended in one identity.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.float32]
    probability: NDArray[np.float64]
    forbidden_by: NDArray[np.object_]
    joined: NDArray[np.bool_]

    def __len__(self) -> int:
        """L."""
        return len(self.first)


@dataclass(frozen=True, eq=False)
class Matches:
    """What `match` found.

    Attributes:
        tracklets: those that were matched (split where the settings say so, clocks corrected).
        identity: `[T]` int64 from 1, in order of first sight.
        confidence: `[T]` 0..1, how likely each tracklet stands where it belongs.
        links: every candidate pair and its decision.
        threshold: the distance that decided.
        fmr: the expected part of different people's pairs that lie under it.
        protocol: settings and what was done, plain JSON values.
        transition_times: learned travel times, {(from, to): (median seconds, spread, links it rests on)}.
        clock_offsets: seconds by which camera clocks seem ahead (`travel.clock_offsets`), by name; empty where they
            seem to
            agree or nothing tells. They are not applied: give them in `Cameras`.
    """

    tracklets: Tracklets
    identity: NDArray[np.int64]
    confidence: NDArray[np.float64]
    links: Links
    threshold: float
    fmr: float
    protocol: dict[str, Any]
    transition_times: dict[tuple[str, str], tuple[float, float, int]] = field(default_factory=dict)
    clock_offsets: dict[str, float] = field(default_factory=dict)


def match(
    tracklets: Tracklets | Embeddings,
    *,
    cameras: Cameras | None = None,
    settings: MatchSettings | None = None,
    calibration: Calibration | None = None,
    constraints: Constraints | None = None,
) -> Matches:
    """Give every tracklet an identity over all cameras.

    Args:
        tracklets: or embeddings with camids, tracks and frames, of which tracklets are made.
        cameras: clocks, overlaps, travel times; nothing is assumed where not given.
        settings: the defaults where not given.
        calibration: of the model that made the features; the threshold then comes from it.
        constraints: what a person laid down.

    Raises:
        ReidError: constraints that contradict each other, or a setting out of range.
        RuntimeError: an identity breaks a rule. That is a mistake in this program; nothing is returned.
    """
    settings = settings or MatchSettings()
    if isinstance(tracklets, Embeddings):
        tracklets = Tracklets.from_embeddings(tracklets, cameras)
    rules = compile_rules(tracklets, cameras, constraints)
    scored = score_candidates(tracklets, rules, settings)
    candidates = scored.candidates
    stopped = rules.stops(candidates.first, candidates.second)
    joins = agglomerative(candidates, _fresh(rules), LIMIT * candidates.far)
    choice = select_threshold(candidates, _fresh(rules).of, joins, USUAL if scored.reranked else None)
    negatives = pair_distances(candidates, *simultaneous_pairs(tracklets))
    threshold, how = _threshold(tracklets, scored, stopped, choice, negatives, settings, calibration)
    clusters = _begun(rules)
    agglomerative(candidates, clusters, threshold)
    ways = learn_ways(tracklets, clusters.of, candidates.first, candidates.second) if settings.transitions else {}
    if ways:
        evidence = evidence_of(ways, tracklets, candidates.first, candidates.second)
        distance = np.maximum(candidates.distance - EVIDENCE_TO_DISTANCE * evidence, 0).astype(np.float32)
        candidates = replace(candidates, distance=distance)
        clusters = _begun(rules)
        agglomerative(candidates, clusters, threshold)
    free = stopped == 0
    same = clusters.of[candidates.first] == clusters.of[candidates.second]
    odds = fit_odds(candidates.distance[free], same[free], threshold)
    log_odds = odds.log_odds(candidates.distance)
    if settings.solver == "correlation":
        clusters = _begun(rules)
        far = float(-odds.log_odds(np.array([candidates.far]))[0])
        correlation(replace(candidates, distance=(-log_odds).astype(np.float32), far=far), clusters)
    elif settings.solver != "agglomerative":
        clusters = _begun(rules)
        (single_linkage if settings.solver == "single_linkage" else hungarian)(candidates, clusters, threshold)
    moves = 0
    wanted = settings.solver in ("single_linkage", "hungarian") if settings.reassign is None else settings.reassign
    if wanted and settings.solver != "correlation":
        moves = reassign(candidates, clusters, threshold)
    alone = join_by_time(clusters, settings.featureless_max_gap)
    identity = number_identities(tracklets, clusters.of)
    broken = find_violations(tracklets, identity, cameras, constraints)
    if broken:
        raise RuntimeError(f"{len(broken)} rules are broken by the solver {settings.solver}: {'; '.join(broken[:3])}")
    probability = np.where(stopped == 0, 1 / (1 + np.exp(-log_odds)), 0.0)
    joined = identity[candidates.first] == identity[candidates.second]
    links = Links(
        candidates.first,
        candidates.second,
        candidates.distance,
        probability,
        np.array(REASONS, object)[stopped],
        joined,
    )
    names = tracklets.camera_names
    transition_times = {(names[a], names[b]): (way.median, way.spread, way.links) for (a, b), way in ways.items()}
    offsets = clock_offsets(tracklets, identity, cameras)
    fmr = float((negatives <= threshold).mean()) if len(negatives) else float("nan")
    protocol = {
        "settings": asdict(settings),
        "distance": scored.words,
        "threshold": how,
        "sure negatives": len(negatives),
        "p(same)": "how sharply the distance decides here: fitted to this result, not to labels",
        "silhouette": round(choice.silhouette, 4),
        "moves": moves,
        "tracklets": len(tracklets),
        "without a feature": int((~tracklets.has_feature).sum()),
        "of these left alone": alone,
        "tracks that go on another": int((tracklets.previous_track >= 0).sum()),
        "crops left out": len(tracklets.invalid_rows),
        "identities": int(identity.max()) if len(identity) else 0,
    }
    return Matches(
        tracklets,
        identity,
        tracklet_confidence(identity, links),
        links,
        threshold,
        fmr,
        protocol,
        transition_times,
        offsets,
    )


@dataclass(frozen=True, eq=False)
class Scored:
    """Candidates with the solver's distance, the features it comes from, whether it is re-ranked, and all in words."""

    candidates: Candidates
    features: NDArray[np.float32]
    reranked: bool
    words: str


def score_candidates(tracklets: Tracklets, rules: Rules, settings: MatchSettings) -> Scored:
    """Camera bias out, nearest tracklets, re-ranked distances; rows of the candidates are rows of `tracklets`.

    Tracklets without a feature have no candidates. With fewer than `FEWEST` that have one, nothing is known of cameras
    and neighbourhoods, and the distance is the cosine distance of the features as they are.
    """
    rows = np.flatnonzero(tracklets.has_feature)
    features = tracklets.features.copy()
    few = len(rows) < FEWEST
    words = "cosine distance"
    if len(rows) < 2:
        none = np.zeros(0, np.int64)
        return Scored(Candidates(none, none, none.astype(np.float32), 1.0, len(tracklets)), features, False, words)
    if settings.camera_whitening is not None and not few:
        bias = CameraWhitening.fit(features[rows], tracklets.camera[rows], settings.camera_whitening)
        features[rows] = bias.remove(features[rows], tracklets.camera[rows])
        words += f" after camera bias is removed (λ={settings.camera_whitening:g})"
    neighbours = find_neighbours(features[rows], max(settings.neighbours, settings.k1 or 15))
    found = cosine_candidates(features[rows], neighbours)
    if settings.rerank and not few:
        k1 = settings.k1
        if k1 is None:
            there = replace(found, first=rows[found.first], second=rows[found.second], tracklets=len(tracklets))
            joins = agglomerative(there, _fresh(rules), LIMIT * there.far)
            size = select_threshold(there, _fresh(rules).of, joins).size
            k1 = int(np.clip(round(SIZE_TO_K1 * size), 4, 15))
            words += f"; identities seem to have {size:.1f} tracklets"
        found = reranked_candidates(features[rows], neighbours, k1)
        words += f"; re-ranked (k1={k1})"
    found = replace(found, first=rows[found.first], second=rows[found.second], tracklets=len(tracklets))
    return Scored(found, features, settings.rerank and not few, words)


def join_by_time(clusters: Clusters, seconds: float) -> int:
    """Join tracklets without a feature to what stands next to them in time, as `MatchSettings.featureless_max_gap`
    says.

    In order of start; ties by row. Returns how many of them stay alone.
    """
    t = clusters.rules.tracklets
    alone = 0
    missing = np.flatnonzero(~t.has_feature)
    for row in missing[np.lexsort((missing, t.start[missing]))]:
        own = int(clusters.of[row])
        near = (t.camera == t.camera[row]) & (clusters.of != own)
        gap = np.maximum(t.start - t.end[row], t.start[row] - t.end)
        near &= (gap >= 0) & (gap <= seconds)
        groups = [int(group) for group in np.unique(clusters.of[near]) if clusters.may_join(int(group), own)]
        if seconds > 0 and len(groups) == 1:
            clusters.join(groups[0], own)
        elif len(clusters.members[own]) == 1:
            alone += 1
    return alone


def _fresh(rules: Rules) -> Clusters:
    clusters = Clusters(rules)
    apply_must_links(clusters)
    return clusters


def _begun(rules: Rules) -> Clusters:
    """Fresh clusters with broken tracks joined, which are not to tell how large identities are, or the threshold."""
    clusters = _fresh(rules)
    apply_stitching(clusters)
    return clusters


def _threshold(
    tracklets: Tracklets,
    scored: Scored,
    stopped: NDArray[np.int8],
    choice: Choice,
    negatives: NDArray[np.float64],
    settings: MatchSettings,
    calibration: Calibration | None,
) -> tuple[float, str]:
    """The distance that decides, and in words where it comes from."""
    candidates = scored.candidates
    if settings.threshold is not None:
        return settings.threshold, "given"
    if calibration is not None and len(candidates):
        # The calibration knows the plain distance; as many candidates are to pass as pass by it.
        plain = cosine_distances(tracklets.features, candidates.first, candidates.second)
        free = stopped == 0
        share = float((plain[free] <= calibration.threshold()).mean()) if free.any() else 0.0
        passes = float(np.quantile(candidates.distance[free], share)) if free.any() else 0.0
        return passes, f"calibration: its {calibration.threshold():.4f} passes {share:.2%} of the candidates"
    if settings.fmr is not None:
        if len(negatives) * settings.fmr < 1:
            raise ReidError(
                f"fmr is {settings.fmr}, but only {len(negatives)} pairs of tracklets share a camera and time, too few "
                "to find its threshold. Leave fmr out, or give a threshold."
            )
        # Beyond LIMIT are pairs that are no candidates, whose distance is not known.
        passes = min(float(np.quantile(negatives, settings.fmr)), LIMIT * candidates.far)
        return passes, f"{settings.fmr:.2%} of {len(negatives)} sure negatives"
    if int(tracklets.has_feature.sum()) < FEWEST:
        return FEW_THRESHOLD, f"fixed: fewer than {FEWEST} tracklets tell nothing"
    return choice.threshold, f"about the largest mean silhouette ({choice.silhouette:.3f})"


def tracklet_confidence(identity: NDArray[np.int64], links: Links) -> NDArray[np.float64]:
    """Of a tracklet with others in its identity: the mean of p(same) over its candidates there. Alone: 1 − the largest
    p(same) of any candidate; 1 without candidates. Joined without being a candidate of any of them: 0.5.
    """
    n = len(identity)
    i = np.concatenate([links.first, links.second])
    p = np.concatenate([links.probability, links.probability])
    joined = np.concatenate([links.joined, links.joined])
    total = np.bincount(i[joined], p[joined], minlength=n)
    count = np.bincount(i[joined], minlength=n)
    largest = np.zeros(n)
    np.maximum.at(largest, i[~joined], p[~joined])
    size = np.bincount(identity, minlength=int(identity.max(initial=0)) + 1)[identity] if n else np.zeros(0)
    together = np.where(count > 0, total / np.maximum(count, 1), 0.5)
    return np.where(size > 1, together, 1 - largest)


def number_identities(tracklets: Tracklets, cluster: NDArray[np.int64]) -> NDArray[np.int64]:
    """Clusters numbered from 1 in order of their first sight (ties: lower row)."""
    order = np.lexsort((np.arange(len(tracklets)), tracklets.start))
    _, first, inverse = np.unique(cluster[order], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(1, len(first) + 1)
    identity = np.empty(len(tracklets), np.int64)
    identity[order] = rank[inverse.reshape(-1)]
    return identity
