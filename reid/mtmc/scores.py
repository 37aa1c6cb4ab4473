"""How good tracks and identities are: IDF1, HOTA, CLEAR over all cameras at once, and scores of clusters."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from reid.core.errors import ReidError
from reid.data.tracks import Floats, Integers, Tracks, same_cameras

ALPHAS = np.arange(0.05, 0.99, 0.05)
"""HOTA's localisation thresholds, 19 of them."""
_EPS = np.finfo(np.float64).eps
_CELLS = 2_000_000
"""Box pairs compared at a time: about 250 MB."""


@dataclass(frozen=True)
class ClusterScores:
    """How well a clustering of items (tracklets, mostly) finds the identities. Shares are in 0..1.

    With n_cj the items of true identity c in found identity j, n_c and n_j their sums, N all items:

    - pairs: precision = Σ n_cj (n_cj − 1) / Σ n_j (n_j − 1), recall = Σ n_cj (n_cj − 1) / Σ n_c (n_c − 1). Where there
      is no pair to judge, 1: nothing was claimed wrongly, or nothing was there to find. F1 = 2 TP / (2 TP + FP + FN).
    - B³ (Bagga and Baldwin, 1998): precision = Σ n_cj² / n_j / N, recall = Σ n_cj² / n_c / N, F1 their harmonic mean.
      Each item counts alike, so large identities do not rule as they do in pairs.

    Attributes:
        items: N.
        true_identities, found_identities: how many there are.
        exact_identities: found identities that hold all items of a true one and no other.
        pair_precision, pair_recall, pair_f1, b3_precision, b3_recall, b3_f1: as above; nan when there are no items.
    """

    items: int
    true_identities: int
    found_identities: int
    exact_identities: int
    pair_precision: float
    pair_recall: float
    pair_f1: float
    b3_precision: float
    b3_recall: float
    b3_f1: float

    def as_dict(self) -> dict[str, Any]:
        """Plain Python for JSON; None for nan."""
        return _plain(asdict(self))


def cluster_scores(true_labels: ArrayLike, predicted_labels: ArrayLike) -> ClusterScores:
    """Score identities found for items against the true ones; needs no boxes.

    Args:
        true_labels: `[N]` who each item is, integers or strings. Leave items out beforehand that are nobody.
        predicted_labels: `[N]` the identity each was given; an item left alone has a label of its own.

    Raises:
        ReidError: not two lists of one length.
    """
    true, predicted = np.asarray(true_labels), np.asarray(predicted_labels)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ReidError(
            f"cluster_scores: labels have shapes {list(true.shape)} and {list(predicted.shape)}; give two lists of "
            "one length, one label an item."
        )
    n = len(true)
    if n == 0:
        return ClusterScores(0, 0, 0, 0, *[math.nan] * 6)
    _, true = np.unique(true, return_inverse=True)
    _, predicted = np.unique(predicted, return_inverse=True)
    per_true, per_predicted = np.bincount(true), np.bincount(predicted)
    cells, shared = np.unique(true * len(per_predicted) + predicted, return_counts=True)
    of_true, of_predicted = per_true[cells // len(per_predicted)], per_predicted[cells % len(per_predicted)]
    right, claimed, there = (float((c * (c - 1)).sum()) for c in (shared, per_predicted, per_true))
    b3_precision = float((shared**2 / of_predicted).sum()) / n
    b3_recall = float((shared**2 / of_true).sum()) / n
    return ClusterScores(
        items=n,
        true_identities=len(per_true),
        found_identities=len(per_predicted),
        exact_identities=int(((shared == of_true) & (shared == of_predicted)).sum()),
        pair_precision=right / claimed if claimed else 1.0,
        pair_recall=right / there if there else 1.0,
        pair_f1=2 * right / (claimed + there) if claimed + there else 1.0,
        b3_precision=b3_precision,
        b3_recall=b3_recall,
        b3_f1=2 * b3_precision * b3_recall / (b3_precision + b3_recall),
    )


@dataclass(frozen=True)
class IdScores:
    """Identity scores (Ristani et al., 2016) of one assignment of identities. Shares are in 0..1, 0 where empty.

    True and found identities are paired one to one so that the boxes they share (IoU at or above the threshold) are
    as many as can be: IDTP. IDF1 = 2 IDTP / (2 IDTP + IDFP + IDFN), IDP = IDTP / (IDTP + IDFP),
    IDR = IDTP / (IDTP + IDFN), where IDTP + IDFP are all predicted boxes and IDTP + IDFN all true ones.
    """

    IDF1: float
    IDP: float
    IDR: float
    IDTP: int
    IDFP: int
    IDFN: int


@dataclass(frozen=True, eq=False)
class BoxScores:
    """All box scores of one set of timesteps. A timestep is a (camera, frame). Shares are in 0..1, 0 where empty.

    Attributes:
        truth_boxes, predicted_boxes, truth_ids, predicted_ids: how many there are.
        IDF1, IDP, IDR, IDTP, IDFP, IDFN: see `IdScores`.
        HOTA, DetA, AssA, LocA, DetRe, DetPr, AssRe, AssPr: (Luiten et al., 2021) means over `ALPHAS`. With TP, FN, FP
            at α, DetA = TP / (TP + FN + FP); A(c) of a match c is the share of boxes, of all that its two identities
            have, that are matches of the two; AssA is its mean over the matches; HOTA_α = √(DetA · AssA).
        per_alpha: the same eight at each α, `[19]`.
        MOTA: 1 − (FN + FP + IDSW) / truth_boxes (Bernardin and Stiefelhagen, 2008).
        MOTP: mean IoU of the matches.
        TP, FP, FN: matches, boxes without; boxes match at IoU at or above the threshold.
        IDSW: matches of a person under another identity than at the match before. Cameras come one after another, so
            an identity that changes from one camera to the next counts.
        MT, PT, ML: people of whose boxes more than 80 %, 20 to 80 %, less than 20 % are matched.
        Frag: how often a person's matches stop and start again.
    """

    truth_boxes: int
    predicted_boxes: int
    truth_ids: int
    predicted_ids: int
    IDF1: float
    IDP: float
    IDR: float
    IDTP: int
    IDFP: int
    IDFN: int
    HOTA: float
    DetA: float
    AssA: float
    LocA: float
    DetRe: float
    DetPr: float
    AssRe: float
    AssPr: float
    MOTA: float
    MOTP: float
    TP: int
    FP: int
    FN: int
    IDSW: int
    MT: int
    PT: int
    ML: int
    Frag: int
    per_alpha: dict[str, Floats] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain Python for JSON, without the curves over α."""
        return _plain({name: value for name, value in vars(self).items() if name != "per_alpha"})


@dataclass(frozen=True, eq=False)
class TrackScores:
    """The scores of predicted tracks against the truth.

    Attributes:
        overall: over all cameras at once, with one assignment of identities. **Quote its IDF1 and HOTA.**
        per_camera: the same for each camera by itself. These do not see identities that change between cameras.
        multi_camera: identity scores over people whom the truth has in two or more cameras. A predicted identity goes
            with the person on whom most of its boxes lie (IoU at or above the threshold; in a tie, with one who is
            kept). Identities that go with a person seen in one camera are left out whole, with that person; all
            others stay whole, false ones too. Then as in `IdScores`, with an assignment of its own.
        multi_camera_people: how many people that is.
        tracklets: `ClusterScores` over the predicted tracks of each camera, (camera, id) an item: who each one is,
            against the identity that it has. One that lies on nobody is left out.
        false_tracklets: how many those are.
        iou: the threshold.
        warnings: cameras that only one side has, in words.
    """

    overall: BoxScores
    per_camera: dict[str, BoxScores]
    multi_camera: IdScores
    multi_camera_people: int
    tracklets: ClusterScores
    false_tracklets: int
    iou: float
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain Python for JSON."""
        return {
            "iou": self.iou,
            "overall": self.overall.as_dict(),
            "multi_camera": {"people": self.multi_camera_people, **asdict(self.multi_camera)},
            "tracklets": {**self.tracklets.as_dict(), "false_tracklets": self.false_tracklets},
            "per_camera": {name: scores.as_dict() for name, scores in self.per_camera.items()},
            "warnings": list(self.warnings),
        }


def score_tracks(truth: Tracks, predicted: Tracks, *, iou: float = 0.5) -> TrackScores:
    """Score predicted tracks with global ids against the truth; equals trackeval 1.3.0 on the quantities it has.

    An id means one person in all cameras, on both sides. Cameras are the same by name, else by the number in their
    names (`same_cameras`), else where each side has only one. Boxes in a camera that the truth does not have are
    false, those of a camera that the predicted tracks do not have are missed; `warnings` says so.

    Args:
        iou: at or above this IoU a predicted box can be a match. Of IDF1 and CLEAR; HOTA has its own.

    Raises:
        ReidError: the two have no camera in common; `iou` outside (0, 1].
    """
    if not 0 < iou <= 1:
        raise ReidError(f"score_tracks: iou is {iou}; it must be above 0 and at most 1.")
    names, cameras, warnings = _common_cameras(truth, predicted)
    boxes = _pair_boxes(truth, predicted, cameras)
    per_camera = {name: _box_scores(boxes.of_camera(camera), iou) for camera, name in enumerate(names)}
    overall = _box_scores(boxes, iou)
    several, people = _multi_camera(boxes, iou)
    labels, tracklet_ids = _tracklet_labels(boxes, iou)
    true = labels >= 0
    return TrackScores(
        overall=overall,
        per_camera=per_camera,
        multi_camera=several,
        multi_camera_people=people,
        tracklets=cluster_scores(labels[true], tracklet_ids[true]),
        false_tracklets=int((~true).sum()),
        iou=iou,
        warnings=warnings,
    )


def true_ids(truth: Tracks, tracks: Tracks, *, iou: float = 0.5) -> tuple[Integers, Integers, Integers]:
    """Who each track of each camera is: (camera, track, true id), each `[T]`, sorted by (camera, track).

    The true id is that of the person on whom most of the track's boxes lie (IoU ≥ `iou`; in a tie the lower id), −1
    for a track that lies on nobody. `camera` indexes `tracks.camera_names`. With it the identities that a matcher gave
    to local tracks can be put to `cluster_scores`.
    """
    _, cameras, _ = _common_cameras(truth, tracks)
    boxes = _pair_boxes(truth, tracks, cameras)
    group, first = _tracklets(boxes.step_camera[boxes.predicted_step], boxes.predicted_id)
    label = _majority(boxes, group, len(first), iou)
    back = np.zeros(int(cameras[1].max(initial=-1)) + 1, dtype=np.int64)
    back[cameras[1]] = np.arange(len(cameras[1]))
    camera = back[boxes.step_camera[boxes.predicted_step[first]]]
    track = np.unique(tracks.track)[boxes.predicted_id[first]]
    found = np.where(label >= 0, boxes.truth_ids[label], -1) if len(boxes.truth_ids) else label
    order = np.lexsort((track, camera))
    return camera[order], track[order], found[order]


# Pairs of boxes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Two sides of boxes over common timesteps, and the pairs of boxes that meet (IoU above 0), sorted by (truth row,
    predicted row). Rows are sorted by timestep on both sides; `truth_id` and `predicted_id` count from 0."""

    truth_step: Integers  # [N]
    truth_id: Integers  # [N]
    truth_ids: Integers  # the ids as given
    predicted_step: Integers  # [M]
    predicted_id: Integers  # [M]
    step_camera: Integers  # [S]
    truth_row: Integers  # [K]
    predicted_row: Integers  # [K]
    iou: Floats  # [K]
    share: Floats  # [K] IoU over the sum of both boxes' IoUs with all others, less itself

    def of_camera(self, camera: int) -> _Boxes:
        """One camera's part, with rows, ids and steps counted anew."""
        steps = slice(*np.searchsorted(self.step_camera, [camera, camera + 1]).tolist())
        truth = slice(*np.searchsorted(self.truth_step, [steps.start, steps.stop]).tolist())
        predicted = slice(*np.searchsorted(self.predicted_step, [steps.start, steps.stop]).tolist())
        pairs = slice(*np.searchsorted(self.truth_row, [truth.start, truth.stop]).tolist())
        present, truth_id = _numbered(self.truth_id[truth])
        return _Boxes(
            truth_step=self.truth_step[truth] - steps.start,
            truth_id=truth_id,
            truth_ids=self.truth_ids[present],
            predicted_step=self.predicted_step[predicted] - steps.start,
            predicted_id=_numbered(self.predicted_id[predicted])[1],
            step_camera=self.step_camera[steps],
            truth_row=self.truth_row[pairs] - truth.start,
            predicted_row=self.predicted_row[pairs] - predicted.start,
            iou=self.iou[pairs],
            share=self.share[pairs],
        )


def _common_cameras(truth: Tracks, predicted: Tracks) -> tuple[list[str], list[Integers], tuple[str, ...]]:
    """Names of all cameras, for each side the number of each of its cameras among them, and what differs in words."""
    same = same_cameras(truth.camera_names, predicted.camera_names)
    warnings = []
    if not same and len(truth.camera_names) == len(predicted.camera_names) == 1:
        same = {predicted.camera_names[0]: truth.camera_names[0]}
        warnings.append(f"Taken for one camera: {truth.camera_names[0]} (truth) and {predicted.camera_names[0]}.")
    if not same and len(truth) and len(predicted):
        raise ReidError(
            f"The truth's cameras ({', '.join(truth.camera_names)}) and those of the predicted tracks "
            f"({', '.join(predicted.camera_names)}) have no name or number in common. Name them alike."
        )
    only_predicted = [name for name in predicted.camera_names if name not in same]
    only_truth = [name for name in truth.camera_names if name not in same.values()]
    names = [*truth.camera_names, *only_predicted]
    if len(set(names)) < len(names):
        raise ReidError("A camera's name on one side is another camera's on the other. Name the cameras alike.")
    if only_predicted:
        warnings.append(f"The truth has no camera {', '.join(only_predicted)}: all boxes there count as false.")
    if only_truth:
        warnings.append(f"The predicted tracks have no camera {', '.join(only_truth)}: all boxes there are missed.")
    place = {name: number for number, name in enumerate(names)}
    cameras = [
        np.array([place[name] for name in truth.camera_names], dtype=np.int64),
        np.array([place[same.get(name, name)] for name in predicted.camera_names], dtype=np.int64),
    ]
    return names, cameras, tuple(warnings)


def _pair_boxes(truth: Tracks, predicted: Tracks, cameras: list[Integers]) -> _Boxes:
    frames = 1 + max((int(side.frame.max()) for side in (truth, predicted) if len(side)), default=0)
    keys, ids, rows = [], [], []
    for side, numbers in zip((truth, predicted), cameras, strict=True):
        key = numbers[side.camera] * frames + side.frame if len(side) else side.frame
        order = np.argsort(key, kind="stable")
        keys.append(key[order])
        ids.append(np.unique(side.track[order], return_inverse=True))
        rows.append(side.boxes[order])
    steps = np.union1d(*(key[np.diff(key, prepend=-1) != 0] for key in keys))
    truth_step, predicted_step = (np.searchsorted(steps, key) for key in keys)
    return _Boxes(
        truth_step,
        ids[0][1],
        ids[0][0],
        predicted_step,
        ids[1][1],
        steps // frames,
        *_meeting(truth_step, predicted_step, rows[0], rows[1], len(steps)),
    )


def _meeting(
    truth_step: Integers, predicted_step: Integers, truth_boxes: Floats, predicted_boxes: Floats, steps: int
) -> tuple[Integers, Integers, Floats, Floats]:
    """Truth row, predicted row, IoU and its share of all pairs with IoU above 0, sorted by rows.

    Timesteps with as many boxes on both sides are computed together, so there is no loop over timesteps, and sums run
    over the same numbers in the same order as for one timestep by itself.
    """
    n, m = np.bincount(truth_step, minlength=steps), np.bincount(predicted_step, minlength=steps)
    truth_start, predicted_start = np.cumsum(n) - n, np.cumsum(m) - m
    both = np.flatnonzero((n > 0) & (m > 0))
    both = both[np.lexsort((m[both], n[both]))]
    cuts = np.flatnonzero((np.diff(n[both]) != 0) | (np.diff(m[both]) != 0)) + 1
    found: list[tuple[NDArray[Any], ...]] = []
    for alike in np.split(both, cuts) if len(both) else []:
        a, b = int(n[alike[0]]), int(m[alike[0]])
        at_once = max(1, _CELLS // (a * b))
        for begin in range(0, len(alike), at_once):
            part = alike[begin : begin + at_once]
            rows = truth_start[part][:, None] + np.arange(a)
            columns = predicted_start[part][:, None] + np.arange(b)
            iou = _iou(truth_boxes[rows], predicted_boxes[columns])
            total = iou.sum(1)[:, None, :] + iou.sum(2)[:, :, None] - iou
            where = np.nonzero(iou)
            value, whole = iou[where], total[where]
            share = np.divide(value, whole, out=np.zeros_like(value), where=whole > _EPS)
            found.append((rows[where[0], where[1]], columns[where[0], where[2]], value, share))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    row, column, value, share = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((column, row))
    return row[order], column[order], value[order], share[order]


def _iou(a: Floats, b: Floats) -> Floats:
    """IoU of boxes `[n, A, 4]` with `[n, B, 4]`, x, y, width, height: `[n, A, B]`."""
    a_high, b_high = a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]
    width = np.minimum(a_high[:, :, None, 0], b_high[:, None, :, 0]) - np.maximum(a[:, :, None, 0], b[:, None, :, 0])
    height = np.minimum(a_high[:, :, None, 1], b_high[:, None, :, 1]) - np.maximum(a[:, :, None, 1], b[:, None, :, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    a_area = (a_high[..., 0] - a[..., 0]) * (a_high[..., 1] - a[..., 1])
    b_area = (b_high[..., 0] - b[..., 0]) * (b_high[..., 1] - b[..., 1])
    union = a_area[:, :, None] + b_area[:, None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > _EPS))


# Scores --------------------------------------------------------------------------------------------------------------


def _box_scores(boxes: _Boxes, iou: float) -> BoxScores:
    identity = _identity(boxes, iou)
    curves = _hota(boxes)
    means: dict[str, Any] = {name: float(values.mean()) for name, values in curves.items()}
    return BoxScores(
        truth_boxes=len(boxes.truth_id),
        predicted_boxes=len(boxes.predicted_id),
        truth_ids=_count(boxes.truth_id),
        predicted_ids=_count(boxes.predicted_id),
        **asdict(identity),
        **means,
        **_clear(boxes, iou),
        per_alpha=curves,
    )


def _numbered(values: Integers) -> tuple[Integers, Integers]:
    """The different values, sorted, and of each its number among them; values are 0 or more."""
    most = _count(values)
    if most > 4 * len(values) + 1_000_000:
        different, number = np.unique(values, return_inverse=True)
        return different, number
    there = np.zeros(most, dtype=bool)
    there[values] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[values]


def _count(ids: Integers) -> int:
    return int(ids.max()) + 1 if len(ids) else 0


def _identity(boxes: _Boxes, iou: float) -> IdScores:
    near = boxes.iou >= iou
    shared = _most_shared(boxes.truth_id[boxes.truth_row[near]], boxes.predicted_id[boxes.predicted_row[near]])
    return _id_scores(shared, len(boxes.truth_id), len(boxes.predicted_id))


def _id_scores(shared: int, truth: int, predicted: int) -> IdScores:
    return IdScores(
        IDF1=2 * shared / max(1, truth + predicted),
        IDP=shared / max(1, predicted),
        IDR=shared / max(1, truth),
        IDTP=shared,
        IDFP=predicted - shared,
        IDFN=truth - shared,
    )


def _most_shared(truth_id: Integers, predicted_id: Integers) -> int:
    """The most boxes that a one-to-one pairing of identities can share; one row a pair of boxes that could."""
    if not len(truth_id):
        return 0
    truth, row = _numbered(truth_id)
    predicted, column = _numbered(predicted_id)
    cells, cell = _numbered(row * len(predicted) + column)
    counts = np.bincount(cell)
    row, column = cells // len(predicted), cells % len(predicted)
    # Each true identity may also stay alone, in a column of its own, which shares nothing. Stored costs must not be 0.
    most = int(counts.max()) + 1
    alone = np.arange(len(truth))
    cost = np.concatenate([most - counts, np.full(len(truth), most)]).astype(np.float64)
    graph = csr_array(
        (cost, (np.concatenate([row, alone]), np.concatenate([column, len(predicted) + alone]))),
        shape=(len(truth), len(predicted) + len(truth)),
    )
    rows, columns = min_weight_full_bipartite_matching(graph)
    return int(sum(most - graph[rows, columns]))


def _multi_camera(boxes: _Boxes, iou: float) -> tuple[IdScores, int]:
    """See `TrackScores.multi_camera`; and the number of people."""
    if not len(boxes.truth_id):
        return _id_scores(0, 0, len(boxes.predicted_id)), 0
    camera = boxes.step_camera[boxes.truth_step]
    cameras = _count(boxes.step_camera)
    seen, _ = _numbered(boxes.truth_id * cameras + camera)
    kept = np.bincount(seen // cameras, minlength=_count(boxes.truth_id)) > 1
    whose = _majority(boxes, boxes.predicted_id, _count(boxes.predicted_id), iou, first=kept)
    stays = (whose < 0) | kept[whose]
    near = boxes.iou >= iou
    truth_id, predicted_id = boxes.truth_id[boxes.truth_row[near]], boxes.predicted_id[boxes.predicted_row[near]]
    both = kept[truth_id] & stays[predicted_id]
    shared = _most_shared(truth_id[both], predicted_id[both])
    truth, predicted = kept[boxes.truth_id].sum(), stays[boxes.predicted_id].sum()
    return _id_scores(shared, int(truth), int(predicted)), int(kept.sum())


def _majority(
    boxes: _Boxes, group: Integers, groups: int, iou: float, first: NDArray[np.bool_] | None = None
) -> Integers:
    """Of each group of predicted boxes the true identity on which most lie, −1 for none. A box lies on the one true
    box that it overlaps most. In a tie identities with `first` come first, then the lower number."""
    near = np.flatnonzero(boxes.iou >= iou)
    most = np.zeros(len(boxes.predicted_id))
    np.maximum.at(most, boxes.predicted_row[near], boxes.iou[near])
    near = near[boxes.iou[near] == most[boxes.predicted_row[near]]]
    lowest = np.full(len(boxes.predicted_id), len(boxes.truth_id))
    np.minimum.at(lowest, boxes.predicted_row[near], boxes.truth_row[near])
    near = near[boxes.truth_row[near] == lowest[boxes.predicted_row[near]]]
    label = np.full(groups, -1, dtype=np.int64)
    if len(near):
        people = _count(boxes.truth_id)
        cells, cell = _numbered(group[boxes.predicted_row[near]] * people + boxes.truth_id[boxes.truth_row[near]])
        counts = np.bincount(cell)
        where, person = cells // people, cells % people
        later = np.zeros(len(cells), dtype=bool) if first is None else ~first[person]
        order = np.lexsort((person, later, -counts, where))
        best = order[np.diff(where[order], prepend=-1) != 0]
        label[where[best]] = person[best]
    return label


def _tracklets(camera: Integers, track: Integers) -> tuple[Integers, Integers]:
    """Number each (camera, track), in that order: the number of each row, and the first row of each number."""
    tracks, number = np.unique(track, return_inverse=True)
    groups, group = _numbered(camera * max(1, len(tracks)) + number)
    first = np.full(len(groups), len(track))
    np.minimum.at(first, group, np.arange(len(track)))
    return group, first


def _tracklet_labels(boxes: _Boxes, iou: float) -> tuple[Integers, Integers]:
    """Of each predicted (camera, id): whose it is (−1: nobody's), and the id."""
    group, first = _tracklets(boxes.step_camera[boxes.predicted_step], boxes.predicted_id)
    return _majority(boxes, group, len(first), iou), boxes.predicted_id[first]


class _Matcher:
    """One-to-one matching inside timesteps: candidates that no other contests are taken at once, the rest solved."""

    def __init__(self, boxes: _Boxes) -> None:
        steps = len(boxes.step_camera)
        self.boxes = boxes
        self.truth_start = np.searchsorted(boxes.truth_step, np.arange(steps + 1))
        self.predicted_start = np.searchsorted(boxes.predicted_step, np.arange(steps + 1))
        self.step = boxes.truth_step[boxes.truth_row]
        self.pair_start = np.searchsorted(self.step, np.arange(steps + 1))

    def contested(self, candidate: NDArray[np.bool_]) -> Integers:
        """The timesteps in which a box is in two candidate pairs, in order."""
        row, column = self.boxes.truth_row[candidate], self.boxes.predicted_row[candidate]
        several = (np.bincount(row, minlength=1)[row] > 1) | (np.bincount(column, minlength=1)[column] > 1)
        return np.unique(self.step[candidate][several])

    def solve(self, step: int, value: Floats) -> Integers:
        """The pairs of a timestep that together have the most value, those of value 0 left out.

        `value` is of the timestep's pairs, in order; pairs that do not meet have value 0.
        """
        begin, end = self.pair_start[step], self.pair_start[step + 1]
        row = self.boxes.truth_row[begin:end] - self.truth_start[step]
        column = self.boxes.predicted_row[begin:end] - self.predicted_start[step]
        shape = (
            self.truth_start[step + 1] - self.truth_start[step],
            self.predicted_start[step + 1] - self.predicted_start[step],
        )
        matrix = np.zeros(shape)
        matrix[row, column] = value
        rows, columns = linear_sum_assignment(-matrix)
        chosen = np.full(shape[0], -1)
        chosen[rows] = columns
        return begin + np.flatnonzero((chosen[row] == column) & (value > _EPS))


def _hota(boxes: _Boxes) -> dict[str, Floats]:
    """HOTA and its parts at each α, `[19]`."""
    names = ("HOTA", "DetA", "AssA", "LocA", "DetRe", "DetPr", "AssRe", "AssPr")
    truth, predicted = len(boxes.truth_id), len(boxes.predicted_id)
    curves = {name: np.zeros(len(ALPHAS)) for name in names}
    if not truth or not predicted:
        curves["LocA"][:] = 1
        return curves
    n_predicted = _count(boxes.predicted_id)
    of_truth, of_predicted = np.bincount(boxes.truth_id), np.bincount(boxes.predicted_id)
    cells, cell = _numbered(boxes.truth_id[boxes.truth_row] * n_predicted + boxes.predicted_id[boxes.predicted_row])
    of_truth, of_predicted = of_truth[cells // n_predicted], of_predicted[cells % n_predicted]
    potential = np.bincount(cell, weights=boxes.share, minlength=len(cells))
    alignment = potential / (of_truth + of_predicted - potential)
    value = alignment[cell] * boxes.iou

    matcher = _Matcher(boxes)
    matched = value > 0
    for step in matcher.contested(matched):
        pairs = slice(matcher.pair_start[step], matcher.pair_start[step + 1])
        matched[pairs] = False
        matched[matcher.solve(step, value[pairs])] = True
    cell, similarity = cell[matched], boxes.iou[matched]
    for i, alpha in enumerate(ALPHAS):
        here = similarity >= alpha - _EPS
        tp = int(here.sum())
        shared = np.bincount(cell[here], minlength=len(cells))
        curves["DetA"][i] = tp / (truth + predicted - tp)
        curves["DetRe"][i] = tp / truth
        curves["DetPr"][i] = tp / predicted
        curves["AssA"][i] = (shared * shared / (of_truth + of_predicted - shared)).sum() / max(1, tp)
        curves["AssRe"][i] = (shared * shared / of_truth).sum() / max(1, tp)
        curves["AssPr"][i] = (shared * shared / of_predicted).sum() / max(1, tp)
        curves["LocA"][i] = similarity[here].sum() / tp if tp else 1
    curves["HOTA"] = np.sqrt(curves["DetA"] * curves["AssA"])
    return curves


def _clear(boxes: _Boxes, iou: float) -> dict[str, Any]:
    """The CLEAR scores, by name.

    A match of the timestep before is kept where it can be, then the sum of IoU is the largest. Timesteps in which one
    side is empty are passed over; "the timestep before" is the last in which neither was.
    """
    truth, predicted = len(boxes.truth_id), len(boxes.predicted_id)
    people = _count(boxes.truth_id)
    matcher = _Matcher(boxes)
    near = boxes.iou >= iou - _EPS
    matched = near.copy()
    both = np.flatnonzero((np.diff(matcher.truth_start) > 0) & (np.diff(matcher.predicted_start) > 0))
    pair_truth, pair_predicted = boxes.truth_id[boxes.truth_row], boxes.predicted_id[boxes.predicted_row]
    before = np.full(people, -1)
    contested = matcher.contested(near)
    for step, place in zip(contested, np.searchsorted(both, contested), strict=True):
        pairs = slice(matcher.pair_start[step], matcher.pair_start[step + 1])
        last: Any = slice(0, 0)
        if place:
            last = slice(matcher.pair_start[both[place - 1]], matcher.pair_start[both[place - 1] + 1])
        kept = pair_truth[last][matched[last]]
        before[kept] = pair_predicted[last][matched[last]]
        value = 1000 * (before[pair_truth[pairs]] == pair_predicted[pairs]) + boxes.iou[pairs]
        before[kept] = -1
        matched[pairs] = False
        matched[matcher.solve(step, np.where(near[pairs], value, 0))] = True

    tp = int(matched.sum())
    person, identity = pair_truth[matched], pair_predicted[matched]
    place = np.searchsorted(both, matcher.step[matched])
    order = np.argsort(person, kind="stable")
    person, identity, place = person[order], identity[order], place[order]
    same_person = person[1:] == person[:-1]
    switches = int((same_person & (identity[1:] != identity[:-1])).sum())
    ratio = np.bincount(person, minlength=people) / np.maximum(1, np.bincount(boxes.truth_id, minlength=people))
    mostly = int((ratio > 0.8).sum())
    partly = int((ratio >= 0.2).sum()) - mostly
    return {
        "MOTA": (2 * tp - predicted - switches) / max(1, truth) if truth else 0.0,
        "MOTP": float(boxes.iou[matched].sum()) / max(1, tp),
        "TP": tp,
        "FP": predicted - tp,
        "FN": truth - tp,
        "IDSW": switches,
        "MT": mostly,
        "PT": partly,
        "ML": people - mostly - partly,
        "Frag": int((same_person & (np.diff(place) > 1)).sum()),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
