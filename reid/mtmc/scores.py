"""Scores of tracks with global identities: IDF1, HOTA and CLEAR over all cameras, and scores of tracklets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from reid.core.errors import check_number
from reid.data.tracks import Floats, Integers, Tracks
from reid.mtmc.box_pairs import BoxPairs, common_cameras, count_ids, pair_boxes, unique_codes
from reid.mtmc.clear import clear_scores
from reid.mtmc.clustering_scores import ClusterScores, cluster_scores
from reid.mtmc.hota import hota_curves


@dataclass(frozen=True)
class IdScores:
    """Identity scores (Ristani et al., 2016). Fractions are in 0..1, and 0 without boxes, as in trackeval.

    True and predicted identities are assigned one to one so that the number of boxes they share (IoU at or above the
    threshold) is maximal: IDTP. IDF1 = 2 IDTP / (2 IDTP + IDFP + IDFN), IDP = IDTP / (IDTP + IDFP),
    IDR = IDTP / (IDTP + IDFN), where IDTP + IDFP is the number of predicted boxes and IDTP + IDFN that of true boxes.

    Example:
        >>> from reid.mtmc import Tracks, score_tracks
        >>> truth = Tracks.from_columns(["door"], [0, 0], [7, 7], [1, 2], [[0, 0, 9, 9], [5, 0, 9, 9]])
        >>> scores = score_tracks(truth, truth.take([0])).overall
        >>> scores.IDTP, scores.IDFN, scores.IDP, scores.IDR
        (1, 1, 1.0, 0.5)
    """

    IDF1: float
    IDP: float
    IDR: float
    IDTP: int
    IDFP: int
    IDFN: int


@dataclass(frozen=True, eq=False)
class BoxScores(IdScores):
    """All box scores over a set of timesteps (camera, frame). Fractions are in 0..1, and 0 without boxes.

    Attributes:
        IDF1, IDP, IDR, IDTP, IDFP, IDFN: See `IdScores`.
        truth_boxes, predicted_boxes, truth_ids, predicted_ids: Numbers of boxes and identities.
        HOTA, DetA, AssA, LocA, DetRe, DetPr, AssRe, AssPr: (Luiten et al., 2021) means over α (`hota.ALPHAS`). With TP,
            FN and FP at α, DetA = TP / (TP + FN + FP). A(c) of a match c is the fraction of the boxes of its two
            identities that are matches of both. AssA is its mean over the matches; HOTA_α = √(DetA · AssA).
        MOTA: 1 − (FN + FP + IDSW) / truth_boxes (Bernardin and Stiefelhagen, 2008).
        MOTP: Mean IoU of the matches.
        TP, FP, FN: Matches, and boxes without a match, at the IoU threshold.
        IDSW: Matches of a person under another identity than at the previous match. Cameras follow one another, so an
            identity that changes between cameras counts.
        MT, PT, ML: People of whose boxes more than 80 %, 20 to 80 %, less than 20 % are matched.
        Frag: Number of times that a person's matches are interrupted.
        per_alpha: HOTA and its components at each α, `[19]`.

    Example:
        >>> from reid.mtmc import Tracks, score_tracks
        >>> truth = Tracks.from_columns(["door"], [0, 0], [7, 7], [1, 2], [[0, 0, 9, 9], [5, 0, 9, 9]])
        >>> scores = score_tracks(truth, truth.with_ids([1, 2])).overall  # another identity in each frame
        >>> scores.TP, scores.IDSW, scores.MOTA, scores.IDF1
        (2, 1, 0.5, 0.5)
    """

    truth_boxes: int
    predicted_boxes: int
    truth_ids: int
    predicted_ids: int
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
        """Plain Python values for JSON, without the curves over α."""
        return {name: value for name, value in vars(self).items() if name != "per_alpha"}


@dataclass(frozen=True)
class ScoreCause:
    """A change of the tracks that would raise the score, and so may explain it (`find_score_causes`).

    Attributes:
        change: What was tried.
        fix: How to apply it, if it is the cause.
        IDF1: Over all cameras, after the change.
    """

    change: str
    fix: str
    IDF1: float

    def describe(self) -> str:
        """Text for the user."""
        return f"IDF1 would be {100 * self.IDF1:.1f} if {self.change}. {self.fix}"


@dataclass(frozen=True, eq=False)
class TrackScores:
    """Scores of predicted tracks against the truth.

    Attributes:
        overall: Over all cameras, with one assignment of identities. **Quote its IDF1 and HOTA.**
        per_camera: The same for each camera. They do not see identities that change between cameras.
        multi_camera: Identity scores over people whom the truth has in two or more cameras. A predicted identity
            belongs to the person whom most of its boxes match (in a tie, one seen in several cameras). Identities of
            people seen in one camera are removed with these people. All others are kept, false ones too.
        multi_camera_people: Number of people seen in two or more cameras.
        tracklets: `ClusterScores` of the predicted tracks of each camera, (camera, id) an item: the person whom most of
            its boxes match, against its identity. Tracks that match no one are left out.
        false_tracklets: Number of tracks that match no one.
        iou: The IoU threshold.
        warnings: Cameras that only one side has.
        causes: Mistakes in the files that would explain a low score, if looked for (`score_causes`).

    Example:
        >>> truth = Tracks.from_columns(["a"], [0, 0], [1, 1], [1, 2], [[0, 0, 10, 20], [5, 0, 10, 20]])
        >>> scores = score_tracks(truth, truth)
        >>> scores.overall.HOTA, scores.per_camera["a"].MOTA, scores.as_dict()["multi_camera"]["IDF1"]
        (1.0, 1.0, None)
    """

    overall: BoxScores
    per_camera: dict[str, BoxScores]
    multi_camera: IdScores
    multi_camera_people: int
    tracklets: ClusterScores
    false_tracklets: int
    iou: float
    warnings: tuple[str, ...] = ()
    causes: tuple[ScoreCause, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON; None for the fractions over people in several cameras if there are none."""
        undefined = {} if self.multi_camera_people else dict.fromkeys(("IDF1", "IDP", "IDR"))
        return {
            "iou": self.iou,
            "overall": self.overall.as_dict(),
            "multi_camera": {"people": self.multi_camera_people, **asdict(self.multi_camera), **undefined},
            "tracklets": {**asdict(self.tracklets), "false_tracklets": self.false_tracklets},
            "per_camera": {name: scores.as_dict() for name, scores in self.per_camera.items()},
            "warnings": list(self.warnings),
            "causes": [asdict(cause) for cause in self.causes],
        }


def score_tracks(truth: Tracks, predicted: Tracks, *, iou: float = 0.5) -> TrackScores:
    """Score predicted tracks with global ids against the truth; equals trackeval 1.3.0 on its quantities.

    An id means one person in all cameras, on both sides. Cameras correspond by name, or by number
    (`same_cameras`), or if each side has only one. Boxes in a camera that the truth does not have are false; boxes of
    a camera that the predicted tracks do not have are missed. `warnings` reports both.

    Args:
        truth, predicted: Tracks with global ids.
        iou: Smallest IoU of a match, for IDF1 and CLEAR. HOTA has its own thresholds.

    Raises:
        DataError: The two sides have no camera in common.
        ConfigError: `iou` is outside (0, 1].

    Example:
        >>> from reid.mtmc import Tracks
        >>> truth = Tracks.from_columns(["a"], [0, 0], [1, 1], [1, 2], [[0, 0, 10, 20], [5, 0, 10, 20]])
        >>> score_tracks(truth, truth.with_ids([7, 8])).overall.IDF1
        0.5
    """
    check_number("iou", iou, 0, 1, above=True)
    names, cameras, warnings = common_cameras(truth, predicted)
    boxes = pair_boxes(truth, predicted, cameras)
    multi_camera, people = _multi_camera(boxes, iou)
    first, label = boxes.tracklets(iou)
    return TrackScores(
        overall=_box_scores(boxes, iou),
        per_camera={
            name: _box_scores(pair_boxes(truth, predicted, cameras, camera), iou) for camera, name in enumerate(names)
        },
        multi_camera=multi_camera,
        multi_camera_people=people,
        tracklets=cluster_scores(label[label >= 0], boxes.predicted_id[first][label >= 0]),
        false_tracklets=int((label < 0).sum()),
        iou=iou,
        warnings=warnings,
    )


def id_scores(truth: Tracks, predicted: Tracks, *, iou: float = 0.5) -> IdScores:
    """The identity scores of `score_tracks` over all cameras, without the others.

    Example:
        >>> truth = Tracks.from_columns(["a"], [0, 0], [1, 1], [1, 2], [[0, 0, 10, 20], [5, 0, 10, 20]])
        >>> id_scores(truth, truth.with_ids([7, 8])).IDF1
        0.5
    """
    _, cameras, _ = common_cameras(truth, predicted)
    boxes = pair_boxes(truth, predicted, cameras)
    return _id_scores(_max_shared(*boxes.matched_ids(iou)), len(truth), len(predicted))


def true_ids(truth: Tracks, tracks: Tracks, *, iou: float = 0.5) -> tuple[Integers, Integers, Integers]:
    """True identity of each track of each camera: (camera, track, true id), `[T]` each, sorted by (camera, track).

    The true id is that of the person whom most of the track's boxes match (IoU ≥ `iou`; in a tie the lower id), −1 for
    a track that matches no one. `camera` indexes `tracks.camera_names`. Use it to score the identities that a matcher
    gave to local tracks with `cluster_scores`.

    Example:
        >>> truth = Tracks.from_columns(["a"], [0, 0], [1, 1], [1, 2], [[0, 0, 10, 20], [5, 0, 10, 20]])
        >>> camera, track, person = true_ids(truth, truth.with_ids([7, 8]))
        >>> track.tolist(), person.tolist()
        ([7, 8], [1, 1])
    """
    _, cameras, _ = common_cameras(truth, tracks)
    boxes = pair_boxes(truth, tracks, cameras)
    first, label = boxes.tracklets(iou)
    local_number = np.zeros(int(cameras[1].max(initial=-1)) + 1, dtype=np.int64)
    local_number[cameras[1]] = np.arange(len(cameras[1]))
    camera = local_number[boxes.step_camera[boxes.predicted_step[first]]]
    track = np.unique(tracks.track)[boxes.predicted_id[first]]
    found = np.where(label >= 0, boxes.truth_ids[label], -1) if len(boxes.truth_ids) else label
    order = np.lexsort((track, camera))
    return camera[order], track[order], found[order]


def _box_scores(boxes: BoxPairs, iou: float) -> BoxScores:
    shared = _max_shared(*boxes.matched_ids(iou))
    curves = hota_curves(boxes)
    means: dict[str, Any] = {name: float(values.mean()) for name, values in curves.items()}
    return BoxScores(
        **asdict(_id_scores(shared, len(boxes.truth_id), len(boxes.predicted_id))),
        truth_boxes=len(boxes.truth_id),
        predicted_boxes=len(boxes.predicted_id),
        truth_ids=count_ids(boxes.truth_id),
        predicted_ids=count_ids(boxes.predicted_id),
        **means,
        **clear_scores(boxes, iou),
        per_alpha=curves,
    )


def _id_scores(shared: int, truth: int, predicted: int) -> IdScores:
    return IdScores(
        IDF1=2 * shared / max(1, truth + predicted),
        IDP=shared / max(1, predicted),
        IDR=shared / max(1, truth),
        IDTP=shared,
        IDFP=predicted - shared,
        IDFN=truth - shared,
    )


def _max_shared(truth_id: Integers, predicted_id: Integers) -> int:
    """Largest number of boxes that a one-to-one assignment of identities can share; one row per matching box pair."""
    if not len(truth_id):
        return 0
    truth, row = unique_codes(truth_id)
    predicted, column = unique_codes(predicted_id)
    cells, cell = unique_codes(row * len(predicted) + column)
    counts = np.bincount(cell)
    row, column = np.divmod(cells, len(predicted))
    # An extra column for each true identity means "not assigned" and shares nothing. Stored costs must not be 0.
    most = int(counts.max()) + 1
    alone = np.arange(len(truth))
    cost = np.concatenate([most - counts, np.full(len(truth), most)]).astype(np.float64)
    graph = csr_array(
        (cost, (np.concatenate([row, alone]), np.concatenate([column, len(predicted) + alone]))),
        shape=(len(truth), len(predicted) + len(truth)),
    )
    rows, columns = min_weight_full_bipartite_matching(graph)
    return int(sum(most - graph[rows, columns]))


def _multi_camera(boxes: BoxPairs, iou: float) -> tuple[IdScores, int]:
    """`TrackScores.multi_camera`, and the number of people."""
    if not len(boxes.truth_id):
        return _id_scores(0, 0, len(boxes.predicted_id)), 0
    cameras = count_ids(boxes.step_camera)
    seen, _ = unique_codes(boxes.truth_id * cameras + boxes.step_camera[boxes.truth_step])
    kept = np.bincount(seen // cameras, minlength=count_ids(boxes.truth_id)) > 1
    person = boxes.majority(boxes.predicted_id, count_ids(boxes.predicted_id), iou, preferred=kept)
    stays = (person < 0) | kept[person]
    truth_id, predicted_id = boxes.matched_ids(iou)
    both = kept[truth_id] & stays[predicted_id]
    shared = _max_shared(truth_id[both], predicted_id[both])
    truth, predicted = kept[boxes.truth_id].sum(), stays[boxes.predicted_id].sum()
    return _id_scores(shared, int(truth), int(predicted)), int(kept.sum())
