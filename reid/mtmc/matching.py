"""Match tracklets across cameras: `match`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from reid.config import MatchSettings
from reid.core.errors import ConfigError, check_type
from reid.data.tracks import Floats, Integers
from reid.embedding.table import Embeddings
from reid.evaluation.clustering import (
    MAX_THRESHOLD,
    Candidates,
    ThresholdSelection,
    cosine_candidates,
    cosine_distances,
    limit_ratio,
    select_threshold,
)
from reid.evaluation.neighbour_search import chosen_search, find_neighbours
from reid.evaluation.neighbours import Neighbours
from reid.mtmc.candidates import CameraWhitening, pair_distances, reranked_candidates
from reid.mtmc.confidence import tracklet_confidence
from reid.mtmc.constraints import REASONS, Constraints, Rules, compile_rules, find_violations
from reid.mtmc.evidence import link_evidence
from reid.mtmc.ground import GapJoin, GroundEvidence, join_over_gaps, measure_distances
from reid.mtmc.handovers import Handovers, find_handovers
from reid.mtmc.negatives import simultaneous_rows
from reid.mtmc.pooling import Mask
from reid.mtmc.solvers import (
    Clusters,
    agglomerative,
    apply_must_links,
    apply_stitching,
    correlation,
    decision_distances,
    hungarian,
    reassign,
    single_linkage,
)
from reid.mtmc.thresholds import PREFERRED_THRESHOLD, fit_odds, fit_slope
from reid.mtmc.tracklets import Tracklets
from reid.mtmc.transitions import TransitionModel, clock_offsets, fit_transitions

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration
    from reid.mtmc.cameras import Cameras

MIN_TRACKLETS = 20
"""With fewer tracklets, nothing is learned from them."""

SMALL_SET_THRESHOLD = 0.3
"""Threshold (plain cosine distance) used with fewer than `MIN_TRACKLETS` tracklets."""

LOG_RATIO_WEIGHT = 0.2
"""Distance that log-odds of 1 from time or space are worth, where it cannot be measured (`_appearance_slope`)."""

PRIOR_ONE_CAMERA = -1.2
"""Log-odds that a track continues another before their paths are compared, without appearance and with one camera."""

MAX_LOG_ODDS = 12.0
"""Limit of the log-odds that are the costs of correlation clustering."""

NEIGHBOURS_PER_IDENTITY_SIZE = 1.5
"""k1 of re-ranking, per tracklet that an identity is estimated to have."""


@dataclass(frozen=True, eq=False)
class Links(Candidates):
    """Every candidate pair of tracklets: columns of length L, `first < second`, sorted.

    Attributes:
        first, second, distance, far, tracklets: As in `Candidates`; the distance is after time evidence.
        margin: float64, threshold − deciding distance. Positive: joined. Negative: not joined. The deciding distance is
            the mean distance between the groups of tracklets that were compared when the pair was joined, or between
            the two final identities (`solvers.decision_distances`). −inf where a rule forbids the pair. Solvers other
            than `agglomerative` do not decide by mean distances, and a rule about other members can prevent a join;
            where the margin would then contradict the result, it is 0.
        probability: float64, p(same) = 1 / (1 + exp(−slope · margin)), so 0.5 at the threshold and in the same order
            as the margin. The slope is fitted to this run's own result: it describes how sharply the distance decides,
            not how often the decision is right. 0 where a rule forbids the pair.
        forbidden_by: str objects, the rule that forbids the pair (one of `constraints.REASONS`), or "".
        joined: bool, whether both tracklets have one identity.
    """

    margin: Floats
    probability: Floats
    forbidden_by: NDArray[np.object_]
    joined: Mask

    def with_result(self, joined: Mask) -> Links:
        """Return links with this result; a margin that contradicts it becomes 0, its probability 0.5."""
        contradicts = np.where(joined, self.margin < 0, self.margin > 0)
        margin, probability = np.where(contradicts, 0.0, self.margin), np.where(contradicts, 0.5, self.probability)
        return replace(self, joined=joined, margin=margin, probability=probability)


@dataclass(frozen=True, eq=False)
class Matches:
    """Result of `match`.

    Attributes:
        tracklets: The matched tracklets.
        identity: `[T]` int64 from 1, numbered by first appearance.
        confidence: `[T]` 0..1, see `confidence.tracklet_confidence`.
        links: Every candidate pair with its decision.
        threshold: Largest mean distance at which identities are joined: the lowest of `threshold_interval` if it was
            selected, unless `MatchSettings.join_undecided`.
        fmr: Expected false-match rate: fraction of the certain negatives within the threshold. None without any.
        protocol: Settings and statistics of the run, as plain JSON values.
        transition_times: Learned times, {(from, to): (median seconds, spread, number of links)}.
        clock_offsets: Seconds by which each camera's clock seems to be ahead (`transitions.clock_offsets`), by camera.
            Empty if clocks agree or cannot be compared. They are not applied: set them in `Cameras`.
        evidence: `[L]` log-odds of each link by kind: looks, time and space (`evidence.link_evidence`); NaN where there
            is none.
        gap_joins: Joins of identities whose paths continue each other (`ground.join_over_gaps`).
        handovers: Tracklets that continue each other at the common border of two cameras (`handovers.find_handovers`).
        space: Evidence of simultaneous positions.
        threshold_interval: Lowest and highest threshold that resampled data select (90 %). None where the threshold was
            given, fixed, or derived from a calibration.
    """

    tracklets: Tracklets
    identity: Integers
    confidence: Floats
    links: Links
    threshold: float
    fmr: float | None
    protocol: dict[str, Any]
    transition_times: dict[tuple[str, str], tuple[float, float, int]] = field(default_factory=dict)
    clock_offsets: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, Floats] = field(default_factory=dict)
    gap_joins: tuple[GapJoin, ...] = ()
    handovers: Handovers | None = None
    space: GroundEvidence | None = None
    threshold_interval: tuple[float, float] | None = None

    @property
    def undecided(self) -> Mask:
        """Links that another threshold within `threshold_interval` would decide differently, `[L]`: to be reviewed."""
        low, high = self.threshold_interval or (self.threshold, self.threshold)
        margin = self.links.margin
        return np.where(self.links.joined, margin < self.threshold - low, margin > self.threshold - high)

    @property
    def advice(self) -> list[str]:
        """What would make the result more certain, one sentence each; empty if nothing is missing."""
        found = []
        undecided, several = int(self.undecided.sum()), len(np.unique(self.tracklets.camera)) > 1
        few = self.tracklets.has_feature.any() and self.protocol["threshold"].startswith("fixed")
        if undecided or few:
            what = f"The data leave {undecided} links undecided" if undecided else "The threshold is a fixed guess"
            if undecided and not (self.undecided & self.links.joined).any():
                what += ", which are kept separate"
            found.append(f"{what}. Pass a calibration (reid calibrate), set threshold, or review them in the report.")
        if not self.tracklets.has_path.any():
            where = "where cameras overlap and " if several else ""
            found.append(f"No camera has ground positions. Add points or a homography to cameras.yaml: {where}"
                         "where tracks are interrupted they decide best.")  # fmt: skip
        return found


def match(
    tracklets: Tracklets | Embeddings,
    *,
    cameras: Cameras | None = None,
    settings: MatchSettings | None = None,
    calibration: Calibration | None = None,
    constraints: Constraints | None = None,
    search: Callable[[NDArray[np.float32], int], Neighbours] | None = None,
) -> Matches:
    """Give every tracklet an identity over all cameras.

    Args:
        tracklets: Tracklets, or embeddings with camids, tracks and frames.
        cameras: Clocks, overlaps and transition times. Nothing is assumed about missing values.
        settings: Parameters; the defaults if not given.
        calibration: Calibration of the embedding model. The threshold is then derived from it.
        constraints: Must-links, cannot-links and tolerances.
        search: Finds the neighbours of features `[N, D]`, as `find_neighbours` does, elsewhere.

    Raises:
        ConfigError: Constraints contradict each other, or a setting does not fit the data.
        RuntimeError: An identity breaks a rule. This is a bug in the solver; no result is returned.

    Example:
        >>> import numpy as np
        >>> from reid.mtmc import Tracklets, match
        >>> tracklets = Tracklets.from_features(
        ...     ["entrance", "hall"],
        ...     camera=np.array([0, 0, 1, 1]),
        ...     track=np.array([1, 2, 1, 2]),
        ...     frame=np.array([1, 1, 500, 500]),
        ...     features=np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]], np.float32),
        ... )
        >>> match(tracklets).identity.tolist()
        [1, 2, 1, 2]
    """
    settings = settings or MatchSettings()
    if isinstance(tracklets, Embeddings):
        tracklets = Tracklets.from_embeddings(tracklets, cameras)
    how = "Read embeddings with reid.Embeddings.load, or match files with reid.pipelines.match_files."
    check_type("tracklets", tracklets, (Tracklets, Embeddings), how)
    rules = compile_rules(tracklets, cameras, constraints)
    # Answers about single pairs are no sample of all pairs: sizes, distances and the threshold are found without them.
    unasked = rules.without_answers()
    handovers = find_handovers(tracklets, lambda first, second: unasked.violations(first, second) == 0)
    candidates, reranked, description = score_candidates(tracklets, unasked, settings, handovers, search)
    selection = _select_threshold(candidates, unasked, handovers, PREFERRED_THRESHOLD if reranked else None)
    negatives = pair_distances(candidates, *simultaneous_rows(tracklets, tracklets.has_feature).T)
    threshold, threshold_source = _threshold(
        tracklets, candidates, unasked, selection, negatives, settings, calibration
    )
    interval = _threshold_interval(threshold_source, selection, negatives, settings)
    neutral = threshold
    if interval is not None and threshold_source.startswith("selected") and not settings.join_undecided:
        threshold = interval[0]
    looks, weight = candidates, LOG_RATIO_WEIGHT
    space = measure_distances(tracklets)
    rules = forbid_too_fast(rules, space)
    if len(space):
        weight = 1 / _appearance_slope(candidates, space, tracklets.has_feature, neutral)
        candidates = add_space(candidates, space, tracklets.has_feature, neutral, weight)
    violation = rules.violations(candidates.first, candidates.second)
    allowed = violation == 0
    clusters = _start(rules)
    agglomerative(candidates, clusters, threshold)
    transitions = TransitionModel({})
    if settings.transitions and tracklets.has_feature.any():
        transitions = fit_transitions(tracklets, clusters.labels, candidates.first, candidates.second)
    if len(transitions):
        ratios = transitions.log_ratios(tracklets, candidates.first, candidates.second)
        lowest = np.minimum(candidates.distance, 0)
        distance = np.maximum(candidates.distance - weight * ratios, lowest).astype(np.float32)
        candidates = replace(candidates, distance=distance)
        clusters = _start(rules)
        agglomerative(candidates, clusters, threshold)
    same = clusters.labels[candidates.first] == clusters.labels[candidates.second]
    intercept, slope = fit_odds(candidates.distance[allowed], same[allowed], threshold)
    if settings.solver != "agglomerative":
        clusters = _start(rules)
    if settings.solver == "correlation":
        distance = np.append(candidates.distance.astype(np.float64), candidates.far)
        costs = -np.clip(intercept + slope * distance, -MAX_LOG_ODDS, MAX_LOG_ODDS)
        correlation(replace(candidates, distance=costs[:-1].astype(np.float32), far=float(costs[-1])), clusters)
    elif settings.solver != "agglomerative":
        (single_linkage if settings.solver == "single_linkage" else hungarian)(candidates, clusters, threshold)
    moves = 0
    by_default = settings.solver in ("single_linkage", "hungarian")
    if settings.solver != "correlation" and (by_default if settings.reassign is None else settings.reassign):
        moves = reassign(candidates, clusters, threshold)
    walks: list[GapJoin] = []
    if tracklets.has_path.any():
        walks = join_over_gaps(clusters, space.spread, appearance_odds(candidates, tracklets, neutral, weight))
    unmatched = _join_featureless(clusters, settings.featureless_max_gap)
    identity = number_identities(tracklets.start, clusters.labels)
    violations = find_violations(tracklets, identity, cameras, constraints)
    if violations:
        raise RuntimeError(
            f"The solver {settings.solver} breaks {len(violations)} rules: {'; '.join(violations[:3])}. "
            "This is a bug: report it with the data."
        )
    joined = identity[candidates.first] == identity[candidates.second]
    margin = np.where(allowed, threshold - decision_distances(candidates, identity, _start(rules)), -np.inf)
    reasons = np.array(REASONS, object)[violation]
    links = Links(
        **vars(candidates), margin=margin, probability=expit(-slope * margin), forbidden_by=reasons, joined=joined
    )
    links = links.with_result(joined)
    evidence = link_evidence(candidates, looks, space, tracklets.has_feature, neutral, weight)
    names = tracklets.camera_names
    return Matches(
        tracklets,
        identity,
        tracklet_confidence(identity, links),
        links,
        threshold,
        float((negatives <= threshold).mean()) if len(negatives) else None,
        protocol={
            "settings": settings.as_dict(),
            "distance": description,
            "threshold": threshold_source,
            "silhouette": round(selection.silhouette, 4),
            "certain_negatives": len(negatives),
            "p_same_slope": round(-slope, 4),
            "reassigned": moves,
            "simultaneous_pairs_on_the_ground": len(space),
            "distance_per_log_odds": weight,
            "neutral_distance": neutral,
            "of_these_too_far_apart": int(space.far_apart.sum()),
            "spread_of_people_m": round(float(space.spread), 2),
            "joined_over_gaps": len(walks),
            "handovers": handovers.as_dict(),
            "tracklets": len(tracklets),
            "tracklets_without_feature": int((~tracklets.has_feature).sum()),
            "tracklets_without_feature_unmatched": unmatched,
            "stitched_tracks": int((tracklets.previous_track >= 0).sum()),
            "invalid_crops": len(tracklets.invalid_rows),
            "identities": int(identity.max()) if len(identity) else 0,
        },
        transition_times={
            (names[a], names[b]): (learned.median, learned.spread, learned.links)
            for (a, b), learned in transitions.transitions.items()
        },
        clock_offsets=clock_offsets(tracklets, identity, cameras),
        evidence=evidence,
        gap_joins=tuple(walks),
        handovers=handovers,
        space=space,
        threshold_interval=interval,
    )


def forbid_too_fast(rules: Rules, space: GroundEvidence) -> Rules:
    """Return rules that also forbid pairs that one person could only be by moving too fast, except must-linked ones."""
    clusters = Clusters(rules)
    apply_must_links(clusters)
    first, second = space.too_fast.T
    free = clusters.labels[first] != clusters.labels[second]
    return replace(rules, too_fast=np.unique(first[free] * len(rules.tracklets) + second[free]))


def _appearance_slope(candidates: Candidates, space: GroundEvidence, has_feature: Mask, threshold: float) -> float:
    """Log-odds of one person per unit of distance in appearance, from pairs that the ground tells apart or together.

    With a strong model a pair beyond the threshold is hardly one person, with a weak one it may well be. The ground
    does not depend on appearance, so it can tell (`thresholds.fit_slope`).
    """
    both = np.flatnonzero(has_feature[space.first] & has_feature[space.second])
    distance = pair_distances(candidates, space.first[both], space.second[both])
    return fit_slope(threshold - distance, expit(limit_ratio(space.log_ratio[both])), 1 / LOG_RATIO_WEIGHT)


def add_space(
    candidates: Candidates, space: GroundEvidence, has_feature: Mask, threshold: float, weight: float
) -> Candidates:
    """Return candidates that also contain the pairs of `space`, with distances lowered by `weight` per log-odds of 1.

    A pair without two features has the threshold for its distance in appearance, so appearance decides nothing. Such
    distances may be below 0.
    """
    n = candidates.tracklets
    codes = candidates.first * n + candidates.second, space.first * n + space.second
    code = np.unique(np.concatenate(codes))
    first, second = code // n, code % n
    distance = pair_distances(candidates, first, second)
    distance[~(has_feature[first] & has_feature[second])] = threshold
    log_ratio = np.full(len(code), np.nan)
    log_ratio[np.searchsorted(code, codes[1])] = space.log_ratio
    distance -= weight * limit_ratio(np.nan_to_num(log_ratio))
    columns = (first, second, distance.astype(np.float32))
    return Candidates(*columns, candidates.far, n, log_ratio=log_ratio, weight=weight)


def appearance_odds(
    candidates: Candidates, tracklets: Tracklets, threshold: float, weight: float
) -> Callable[[Integers, Integers], Floats]:
    """Return a function from pairs of rows to their log-odds of one person before their paths are compared.

    By appearance. Without two features 0, or `PRIOR_ONE_CAMERA` where one camera's paths are all that is known.
    """
    has_feature = tracklets.has_feature
    seen = tracklets.camera[tracklets.has_path]
    prior = PRIOR_ONE_CAMERA if len(np.unique(seen)) == 1 else 0.0

    def odds(first: Integers, second: Integers) -> Floats:
        log_odds = (threshold - pair_distances(candidates, first, second)) / weight
        return np.where(has_feature[first] & has_feature[second], log_odds, prior)

    return odds


def score_candidates(
    tracklets: Tracklets,
    rules: Rules,
    settings: MatchSettings,
    handovers: Handovers | None = None,
    search: Callable[[NDArray[np.float32], int], Neighbours] | None = None,
) -> tuple[Candidates, bool, str]:
    """Whiten features by camera, find neighbours and re-rank; rows of the candidates are rows of `tracklets`.

    Tracklets without a feature have no candidates. If fewer than `MIN_TRACKLETS` have one, cameras and neighbourhoods
    cannot be estimated, and the distance is the plain cosine distance.

    Returns:
        The candidates with the solver's distance, whether it is re-ranked, and a description of it.
    """
    rows = np.flatnonzero(tracklets.has_feature)
    few = len(rows) < MIN_TRACKLETS
    description = "cosine distance"
    if len(rows) < 2:
        none = np.zeros(0, np.int64)
        return Candidates(none, none, none.astype(np.float32), 1.0, len(tracklets)), False, description
    features = tracklets.features if len(rows) == len(tracklets) else tracklets.features[rows]
    camera = tracklets.camera[rows]
    if settings.camera_whitening is not None and not few:
        features = CameraWhitening(settings.camera_whitening).fit(features, camera).transform(features, camera)
        description += f" of camera-whitened features (λ={settings.camera_whitening:g})"

    def of_tracklets(found: Candidates) -> Candidates:
        return replace(found, first=rows[found.first], second=rows[found.second], tracklets=len(tracklets))

    find = search or partial(find_neighbours, how=settings.neighbour_search)
    neighbours = find(features, max(settings.neighbours, settings.k1 or 15))
    if search is None and chosen_search(settings.neighbour_search, len(rows)) == "faiss":
        description += "; neighbours: FAISS"
    if few or not settings.rerank:
        return of_tracklets(cosine_candidates(features, neighbours)), False, description
    k1 = settings.k1
    if k1 is None:
        plain = of_tracklets(cosine_candidates(features, neighbours))
        size = _select_threshold(plain, rules, handovers).identity_size
        k1 = int(np.clip(round(NEIGHBOURS_PER_IDENTITY_SIZE * size), 4, 15))
        description += f"; estimated tracklets per identity: {size:.1f}"
    return of_tracklets(reranked_candidates(features, neighbours, k1)), True, f"{description}; re-ranked (k1={k1})"


def _join_featureless(clusters: Clusters, max_gap: float) -> int:
    """Join tracklets without a feature as `MatchSettings.featureless_max_gap` describes; return how many stay alone.

    They are processed in order of start; ties by row.
    """
    t = clusters.rules.tracklets
    alone = 0
    missing = np.flatnonzero(~t.has_feature)
    for row in missing[np.lexsort((missing, t.start[missing]))]:
        label = int(clusters.labels[row])
        gap = np.maximum(t.start - t.end[row], t.start[row] - t.end)
        adjacent = (t.camera == t.camera[row]) & (clusters.labels != label) & (gap >= 0) & (gap <= max_gap)
        groups = [int(group) for group in np.unique(clusters.labels[adjacent]) if clusters.may_join(int(group), label)]
        if max_gap > 0 and len(groups) == 1:
            clusters.join(groups[0], label)
        elif len(clusters.members[label]) == 1:
            alone += 1
    return alone


def _start(rules: Rules) -> Clusters:
    """Clusters before the first join by distance."""
    clusters = Clusters(rules)
    apply_must_links(clusters)
    apply_stitching(clusters)
    return clusters


def _select_threshold(
    candidates: Candidates, rules: Rules, handovers: Handovers | None, preferred: float | None = None
) -> ThresholdSelection:
    """Select the threshold by the silhouette. Handovers are taken to be one person here; stitched tracks are not."""
    clusters = Clusters(rules)
    if handovers is not None:
        for earlier, later in zip(handovers.earlier.tolist(), handovers.later.tolist(), strict=True):
            clusters.join_rows(earlier, later)
    start = clusters.labels.copy()
    joins = agglomerative(candidates, clusters, MAX_THRESHOLD * candidates.far)
    return select_threshold(candidates, start, joins, preferred)


def _threshold(
    tracklets: Tracklets,
    candidates: Candidates,
    rules: Rules,
    selection: ThresholdSelection,
    negatives: Floats,
    settings: MatchSettings,
    calibration: Calibration | None,
) -> tuple[float, str]:
    """The threshold, and a description of its source."""
    if settings.threshold is not None:
        return settings.threshold, "given"
    if calibration is not None and len(candidates):
        # The calibration is on plain cosine distances. The same fraction of candidates passes on the solver's distance.
        cosine = cosine_distances(tracklets.features, candidates.first, candidates.second)
        fraction = threshold = 0.0
        allowed = rules.violations(candidates.first, candidates.second) == 0
        if allowed.any():
            fraction = float((cosine[allowed] <= calibration.threshold()).mean())
            threshold = float(np.quantile(candidates.distance[allowed], fraction))
        return threshold, f"calibration: its {calibration.threshold():.4f} passes {fraction:.2%} of the candidates"
    if settings.fmr is not None:
        if len(negatives) * settings.fmr < 1:
            raise ConfigError(
                f"fmr is {settings.fmr}, but only {len(negatives)} pairs of tracklets are seen simultaneously by one "
                "camera, too few to find its threshold. Remove fmr, or set threshold."
            )
        # Distances beyond this limit are those of pairs that are not candidates, which are unknown.
        limit = MAX_THRESHOLD * candidates.far
        return min(float(np.quantile(negatives, settings.fmr)), limit), (
            f"{settings.fmr:.2%} of {len(negatives)} certain negatives"
        )
    if int(tracklets.has_feature.sum()) < MIN_TRACKLETS:
        return SMALL_SET_THRESHOLD, f"fixed, because fewer than {MIN_TRACKLETS} tracklets have a feature"
    return selection.threshold, f"selected by the mean silhouette ({selection.silhouette:.3f})"


def _threshold_interval(
    source: str, selection: ThresholdSelection, negatives: Floats, settings: MatchSettings
) -> tuple[float, float] | None:
    """Interval of the threshold: from resampled clusters, or from resampled certain negatives with `fmr`."""
    if source.startswith("selected"):
        return selection.interval
    if settings.threshold is not None or settings.fmr is None or not source.endswith("certain negatives"):
        return None
    rng = np.random.default_rng(0)
    drawn = [np.quantile(rng.choice(negatives, len(negatives)), settings.fmr) for _ in range(100)]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(low), float(high)


def number_identities(start: Floats, labels: Integers) -> Integers:
    """Number clusters from 1 by first appearance (ties: lower row)."""
    order = np.lexsort((np.arange(len(start)), start))
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first)) + 1
    identity = np.empty(len(start), np.int64)
    identity[order] = rank[inverse]
    return identity
