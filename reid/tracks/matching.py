"""`match`: tracklets of several cameras in, identities out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.embedding.table import Embeddings
from reid.errors import ReidError, did_you_mean
from reid.tracks.candidates import Candidates, candidate_pairs, cosine_of_pairs, remove_camera_bias
from reid.tracks.constraints import REASONS, Constraints, check_matches, compile_rules
from reid.tracks.solvers import SOLVERS, Clusters, agglomerative, join_musts, single_links
from reid.tracks.tracklets import Tracklets

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration
    from reid.tracks.cameras import Cameras


@dataclass(frozen=True)
class MatchSettings:
    """How to match. `docs/matching.md` says what each does and what its default rests on.

    Attributes:
        solver: one of `SOLVERS`.
        threshold: largest distance at which two are joined; None: found without labels (or from the calibration).
        fmr: the part of sure negatives that may lie under the threshold where it is found without labels.
        neighbours: candidates of each tracklet.
        camera_bias: λ of `remove_camera_bias`; None leaves the features as they are.
    """

    solver: str = "agglomerative"
    threshold: float | None = None
    fmr: float = 0.02
    neighbours: int = 50
    camera_bias: float | None = 0.003

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ReidError(f"Unknown solver {self.solver!r}.{did_you_mean(self.solver, SOLVERS)}")


@dataclass(frozen=True, eq=False)
class Links:
    """Every candidate pair of tracklets, columns of length L, `first < second`, sorted.

    Attributes:
        first, second: rows of the tracklets.
        distance: float32, that of the solver.
        probability: float64, of being one person.
        stopped_by: str objects, "" or one of `constraints.REASONS`: what forbids the pair.
        joined: bool, whether both ended in one identity.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.float32]
    probability: NDArray[np.float64]
    stopped_by: NDArray[np.object_]
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
        travel: learned travel times, {(from, to): (median seconds, spread, links it rests on)}.
        offsets: seconds by which each camera's clock seems ahead of the others, by name; empty when not estimated.
    """

    tracklets: Tracklets
    identity: NDArray[np.int64]
    confidence: NDArray[np.float64]
    links: Links
    threshold: float
    fmr: float
    protocol: dict[str, Any]
    travel: dict[tuple[str, str], tuple[float, float, int]] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)


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
        calibration: of the model that made the features; the threshold and p(same) then come from it.
        constraints: what a person laid down.

    Raises:
        ReidError: constraints that contradict each other, or a setting out of range.
        RuntimeError: an identity breaks a rule. That is a mistake in this program; nothing is returned.
    """
    settings = settings or MatchSettings()
    if isinstance(tracklets, Embeddings):
        tracklets = Tracklets.of_embeddings(tracklets, cameras)
    rules = compile_rules(tracklets, cameras, constraints)
    rows = np.flatnonzero(tracklets.has_feature)
    features = tracklets.features.copy()
    if settings.camera_bias is not None and len(rows):
        features[rows] = remove_camera_bias(features[rows], tracklets.camera[rows], settings.camera_bias)
    first, second = candidate_pairs(features[rows], settings.neighbours)
    first, second = rows[first], rows[second]
    distance = cosine_of_pairs(features, first, second)
    candidates = Candidates(first, second, distance, 1.0, len(tracklets))
    stopped = rules.stops(candidates.first, candidates.second)
    threshold = settings.threshold
    if threshold is None:
        negatives = cosine_of_pairs(features, *simultaneous_pairs(tracklets))
        threshold = float(np.quantile(negatives, settings.fmr)) if len(negatives) else 0.5
    clusters = Clusters(rules, len(tracklets))
    join_musts(clusters)
    if settings.solver == "agglomerative":
        agglomerative(candidates, clusters, threshold)
    else:
        single_links(candidates, clusters, threshold)
    identity = number_identities(tracklets, clusters.of)
    broken = check_matches(tracklets, identity, cameras, constraints)
    if broken:
        raise RuntimeError(f"{len(broken)} rules are broken by the solver {settings.solver}: {'; '.join(broken[:3])}")
    probability = np.clip(1 - candidates.distance.astype(np.float64) / (2 * max(threshold, 1e-9)), 0, 1)
    links = Links(
        candidates.first,
        candidates.second,
        candidates.distance,
        probability,
        np.array(REASONS, object)[stopped],
        identity[candidates.first] == identity[candidates.second],
    )
    protocol = {"settings": asdict(settings)}
    return Matches(tracklets, identity, np.ones(len(tracklets)), links, threshold, settings.fmr, protocol)


def number_identities(tracklets: Tracklets, cluster: NDArray[np.int64]) -> NDArray[np.int64]:
    """Clusters numbered from 1 in order of their first sight (ties: lower row)."""
    order = np.lexsort((np.arange(len(tracklets)), tracklets.start))
    _, first, inverse = np.unique(cluster[order], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(1, len(first) + 1)
    identity = np.empty(len(tracklets), np.int64)
    identity[order] = rank[inverse.reshape(-1)]
    return identity


def simultaneous_pairs(tracklets: Tracklets, most: int = 200_000) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of one camera that share time, both with a feature: certainly two people. At most `most`, evenly taken."""
    rows = np.flatnonzero(tracklets.has_feature)
    order = rows[np.lexsort((tracklets.start[rows], tracklets.camera[rows]))]
    camera, start, end = tracklets.camera[order], tracklets.start[order], tracklets.end[order]
    first, second = [], []
    step = 1
    alive = np.arange(len(order))
    while len(alive := alive[alive + step < len(order)]):
        same = camera[alive] == camera[alive + step]
        before = start[alive + step] <= end[alive]
        alive = alive[same & before]
        first.append(order[alive])
        second.append(order[alive + step])
        step += 1
    if not first:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    i, j = np.concatenate(first), np.concatenate(second)
    if len(i) > most:
        keep = np.linspace(0, len(i) - 1, most).astype(np.int64)
        i, j = i[keep], j[keep]
    return i, j
