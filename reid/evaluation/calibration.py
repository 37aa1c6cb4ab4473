"""What distance means the same person: thresholds by false-match rate, and p(same | distance).

With labels (`calibrate`) or from the tracks of single cameras alone (`calibrate_tracks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.errors import ReidError
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric
from reid.evaluation.verification import BINS, DISTRACTOR, PAIRS_PER_ERROR, Block, LabelledPairs, histogram

FORMAT = 1
KIND = "reid calibration"

FEWEST_GENUINE = 20
"""Below so many pairs of one person nothing is fitted."""

ISOTONIC_FROM = 500
"""From so many pairs of one person on p is isotonic, below logistic."""

_GROUPS = 200
_MOST_KNOTS = 32
_FEWEST_IN_A_STEP = 10
_COARSE = 4096
_OWN_GENUINE = 50
_PRIOR_GENUINE = 500
_PRIOR_ERRORS = 100

NO_TRACK = -1
_CROPS_PER_TRACK = 16
_MOST_CROPS = 30_000
_FEWEST_ACROSS = 1000

Cameras = tuple[ArrayLike, ArrayLike]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """What is known of one kind of pairs: how their distances are spread, and what a distance says.

    Everything is knots with straight lines between them.

    Attributes:
        genuine, impostor: pairs it rests on.
        method: "isotonic" or "logistic".
        false_match: `[2, K]`, distance and share of impostor pairs below it, ascending; straight in log rate.
        true_match: `[2, K]`, distance and share of genuine pairs below it.
        log_ratio: `[2, M]`, distance and log( p(distance | same) / p(distance | different) ), which never rises;
            constant beyond the ends.
        thinning: leaving knots out moved `log_ratio` by at most this at a knot.
    """

    genuine: int
    impostor: int
    method: str
    false_match: Floats
    true_match: Floats
    log_ratio: Floats
    thinning: float = 0.0

    @property
    def prior(self) -> float:
        """The share of genuine pairs among those it rests on."""
        return self.genuine / (self.genuine + self.impostor)

    @property
    def smallest_rate(self) -> float:
        """The smallest false-match rate that so many impostor pairs can tell."""
        return PAIRS_PER_ERROR / self.impostor

    def as_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        knots = {name: _rounded(getattr(self, name)) for name in ("false_match", "true_match", "log_ratio")}
        return {
            "genuine_pairs": self.genuine,
            "impostor_pairs": self.impostor,
            "method": self.method,
            **knots,
            "thinning": float(f"{self.thinning:.3g}"),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Curve:
        """What `as_dict` wrote. KeyError, TypeError or ValueError where it is something else."""
        knots = {}
        for name in ("false_match", "true_match", "log_ratio"):
            table = np.asarray(stored[name], dtype=np.float64)
            if table.ndim != 2 or table.shape[0] != 2 or not table.shape[1] or not np.isfinite(table).all():
                raise ValueError(f"{name} is not two rows of numbers")
            sign = -1 if name == "log_ratio" else 1
            if (np.diff(table[0]) < 0).any() or (sign * np.diff(table[1]) < 0).any():
                raise ValueError(f"{name} is not monotone")
            knots[name] = table
        genuine, impostor = int(stored["genuine_pairs"]), int(stored["impostor_pairs"])
        if genuine < 1 or impostor < 1:
            raise ValueError("it rests on no pairs")
        return cls(genuine, impostor, str(stored["method"]), **knots, thinning=float(stored["thinning"]))


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the distances of one model mean; made by `calibrate` or `calibrate_tracks`.

    Attributes:
        metric: "cosine" (1 − cosine similarity) or "euclidean" (‖a − b‖).
        chosen_fmr: the false-match rate whose threshold is the default.
        overall: all pairs together.
        by_cameras: one curve for a pair of cameras (lower id first) that has enough pairs of its own.
        too_few: the pairs of cameras that have not, with their (genuine, impostor) pairs; they go by `overall`.
        identities: how many identities (or tracklets) it rests on.
        identity_pairs: how many pairs of them were compared as different.
        model: the id of the weights, "" where nobody said.
        source: "labels" or "tracks".
        notes: how it was made, in words and plain values.
    """

    metric: Metric
    chosen_fmr: float
    overall: Curve
    by_cameras: dict[tuple[int, int], Curve] = field(default_factory=dict)
    too_few: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    identities: int = 0
    identity_pairs: int = 0
    model: str = ""
    source: Literal["labels", "tracks"] = "labels"
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def prior(self) -> float:
        """The share of same pairs taken for granted: that of the labelled pairs; ½ without labels, which tell none."""
        return self.overall.prior if self.source == "labels" else 0.5

    def curve(self, cameras: tuple[int, int] | None = None) -> Curve:
        """The curve of a pair of cameras, in either order; `overall` for None and for a pair without its own."""
        if cameras is None:
            return self.overall
        first, second = sorted(int(camera) for camera in cameras)
        return self.by_cameras.get((first, second), self.overall)

    def threshold(self, fmr: float | None = None, cameras: tuple[int, int] | None = None) -> float:
        """The distance below which the share `fmr` of pairs of different people stand.

        Args:
            fmr: false-match rate; None is the chosen one.
            cameras: a pair of camera ids; None is all pairs together.

        Raises:
            ReidError: a rate that so many pairs cannot tell, or not between 0 and 1.
        """
        fmr = self.chosen_fmr if fmr is None else fmr
        curve = self.curve(cameras)
        _check_rate(fmr, curve.impostor if curve is self.overall else self.overall.impostor, self.identity_pairs)
        distance, rate = curve.false_match
        return float(np.interp(np.log(fmr), np.log(rate), distance))

    def fmr(self, threshold: float, cameras: tuple[int, int] | None = None) -> float:
        """The expected share of pairs of different people at a distance below `threshold`.

        Never below the smallest that so many pairs can tell: `10 / impostor pairs`.
        """
        distance, rate = self.curve(cameras).false_match
        return float(np.exp(np.interp(threshold, distance, np.log(rate))))

    def tmr(self, threshold: float, cameras: tuple[int, int] | None = None) -> float:
        """The expected share of pairs of one person at a distance below `threshold`."""
        distance, rate = self.curve(cameras).true_match
        return float(np.interp(threshold, distance, rate, left=0.0))

    def log_ratio(self, distances: ArrayLike, cameras: Cameras | None = None) -> Floats:
        """log( p(distance | same) / p(distance | different) ), of the shape of `distances`; falls with the distance.

        Args:
            distances: any shape.
            cameras: two camera ids, or two arrays of them that broadcast to `distances`; None is all pairs together.
        """
        wanted = np.asarray(distances, dtype=np.float64)
        if cameras is None:
            return _line(self.overall.log_ratio, wanted)
        first, second = (np.broadcast_to(np.asarray(ids), wanted.shape) for ids in cameras)
        out = np.empty(wanted.shape)
        both = np.stack([np.minimum(first, second).ravel(), np.maximum(first, second).ravel()], axis=1)
        kinds, kind = np.unique(both, axis=0, return_inverse=True)
        flat, values = wanted.reshape(-1), out.reshape(-1)
        for number, (low, high) in enumerate(kinds):
            mine = kind.reshape(-1) == number
            values[mine] = _line(self.curve((int(low), int(high))).log_ratio, flat[mine])
        return out

    def probability(self, distances: ArrayLike, cameras: Cameras | None = None, prior: float | None = None) -> Floats:
        """p(same | distance), of the shape of `distances`; falls with the distance, never exactly 0 or 1.

        Bayes: `p / (1 − p) = ratio(distance) · prior / (1 − prior)`.

        Args:
            distances: any shape.
            cameras: as in `log_ratio`.
            prior: share of same pairs among those asked about, 0 < prior < 1. None is `Calibration.prior`.
                With labels that is right for pairs picked at random from alike data, and far too low for candidates
                that somebody picked.

        Raises:
            ReidError: the prior is not between 0 and 1.
        """
        share = self.prior if prior is None else prior
        if not 0 < share < 1:
            raise ReidError(f"The prior is the share of same pairs, above 0 and below 1, not {share}.")
        odds = self.log_ratio(distances, cameras) + np.log(share / (1 - share))
        return np.asarray(1 / (1 + np.exp(-odds)))

    def check_model(self, model: str | None, what: str = "these embeddings") -> None:
        """Refuse a calibration of another model. Passes where either side does not say.

        Raises:
            ReidError: naming both models.
        """
        if self.model and model and self.model != model:
            raise ReidError(
                f"The calibration is of model {self.model!r}, but {what} come from {model!r}: its distances mean "
                "something else. Calibrate that model with `reid calibrate`."
            )

    def check_fits(self, model: str | None, what: str) -> None:
        """As `check_model`; and refuse a calibration of other than cosine distances, where those are what is used.

        Raises:
            ReidError: naming both models, or the metric.
        """
        self.check_model(model, what)
        if self.metric != "cosine":
            raise ReidError(f"It is of {self.metric} distances; here they are cosine. Calibrate with cosine.")

    def as_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "model": self.model,
            "metric": self.metric,
            "source": self.source,
            "fmr": self.chosen_fmr,
            "threshold": self.threshold(),
            "identities": self.identities,
            "identity_pairs": self.identity_pairs,
            "notes": dict(self.notes),
            "overall": self.overall.as_dict(),
            "camera_pairs": [
                {"cameras": list(cameras), **curve.as_dict()} for cameras, curve in sorted(self.by_cameras.items())
            ],
            "too_few": [
                {"cameras": list(cameras), "genuine_pairs": genuine, "impostor_pairs": impostor}
                for cameras, (genuine, impostor) in sorted(self.too_few.items())
            ],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Calibration:
        """What `as_dict` wrote.

        Raises:
            ReidError: it is no calibration, of a newer format, or damaged; the key is named.
        """
        if not isinstance(stored, Mapping) or stored.get("kind") != KIND:
            raise ReidError(f"This is no calibration: its 'kind' is not {KIND!r}. Make one with `reid calibrate`.")
        if stored.get("format") != FORMAT:
            raise ReidError(
                f"The calibration is of format {stored.get('format')!r}; this version reads {FORMAT}. Make it anew."
            )
        try:
            if stored["metric"] not in ("cosine", "euclidean"):
                raise ValueError(f"metric is {stored['metric']!r}")
            if not 0 < stored["fmr"] < 1:
                raise ValueError(f"fmr is {stored['fmr']!r}")
            return cls(
                metric=stored["metric"],
                chosen_fmr=float(stored["fmr"]),
                overall=Curve.from_dict(stored["overall"]),
                by_cameras={_pair(entry): Curve.from_dict(entry) for entry in stored["camera_pairs"]},
                too_few={
                    _pair(entry): (int(entry["genuine_pairs"]), int(entry["impostor_pairs"]))
                    for entry in stored["too_few"]
                },
                identities=int(stored["identities"]),
                identity_pairs=int(stored["identity_pairs"]),
                model=str(stored["model"]),
                source=stored["source"],
                notes=dict(stored["notes"]),
            )
        except KeyError as error:
            raise ReidError(f"The calibration lacks {error}. Make it anew with `reid calibrate`.") from error
        except (TypeError, ValueError) as error:
            raise ReidError(f"The calibration is damaged: {error}. Make it anew with `reid calibrate`.") from error


def calibrate(
    features: Features,
    pids: ArrayLike,
    camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    fmr: float = 1e-3,
    cross_camera: bool = True,
    distractor: int | None = DISTRACTOR,
    model: str = "",
    memory_limit: int = MEMORY_LIMIT,
) -> Calibration:
    """Learn from labelled items what a distance means. Which pairs count is told at `count_pairs`.

    - False-match rate: the share of impostor pairs at a smaller distance, counted; kept as knots 4 to a decade.
    - p(same | distance): isotonic regression (pool adjacent violators) over 200 groups of distance, each with as much
      of the genuine and impostor pairs' total share. A step rests on 10 pairs of either kind at least; its ratio is
      (g + ½)/(G + 1) ÷ (i + ½)/(I + 1), so that no p is 0 or 1. Straight lines run between the steps' centres. With
      fewer than 500 genuine pairs: logistic regression on the distance, both kinds given equal weight, its log ratio
      kept within ± log of the number of pairs of the rarer kind.
    - A pair of cameras gets a curve of its own when it has 50 genuine and 10/fmr impostor pairs: its counts and, on
      top, the overall curve as if it were 500 genuine and 100/fmr impostor pairs more. Other pairs go by `overall`.

    Args:
        fmr: the false-match rate that `Calibration.threshold` gives by default.
        model: the id of the weights, to refuse features of another model later.
        (the others): as in `count_pairs`.

    Raises:
        ReidError: as `count_pairs`; or too few pairs: 10/fmr impostor pairs of 1/fmr pairs of identities and 20
            genuine pairs are needed; or genuine pairs are no nearer than impostor ones.
    """
    pairs = LabelledPairs.of(features, pids, camids, metric, cross_camera, distractor)
    genuine, impostor = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    per_cameras: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    for first, second, own, others in pairs.by_cameras(memory_limit):
        genuine += own
        impostor += others
        per_cameras[first, second] = (_coarse(own), _coarse(others))
    counts = pairs.counts(genuine, impostor)
    pairs.require_both(counts)
    identities = pairs.n_units
    return _calibration(
        counts.edges,
        genuine,
        impostor,
        per_cameras if camids is not None else {},
        metric=metric,
        fmr=fmr,
        identities=identities,
        identity_pairs=identities * (identities - 1) // 2,
        model=model,
        source="labels",
        notes={"pairs": counts.pairs, "images": counts.images},
    )


def calibrate_tracks(
    features: Features,
    camids: ArrayLike,
    tracks: ArrayLike,
    times: ArrayLike,
    *,
    metric: Metric = "cosine",
    fmr: float = 1e-3,
    model: str = "",
    memory_limit: int = MEMORY_LIMIT,
) -> Calibration:
    """Learn what a distance means from the tracks of single cameras, without labels.

    Two tracks of one camera that overlap in time show two people: their crops are impostor pairs. Crops of one track
    show one person: they are genuine pairs, of which the farther half in time is taken. Both are nearer to each other
    than pairs across cameras are, because they share a camera's light, background and view. So a line
    `a + b · distance`, which takes the quartiles (¼, ½, ¾) of the impostor pairs to those of all pairs across
    cameras by least squares, is laid on the distances of both before anything is counted. Nearly all pairs across
    cameras are impostors, and a few genuine ones hardly move quartiles. Each pair of cameras has a line of its own.

    Corner cases:
    1. One camera only: no line; the calibration is for pairs within that camera.
    2. Of each track no more than 16 crops, evenly spaced, are used, and fewer where that would be over 30,000 crops.
    3. Rows of track -1 are left out. That a track has two crops at one time is refused from 1 in 100 crops on: the
       numbers are then of something else (in Market-1501's names, of videos).
    4. A person who left two overlapping tracks (two boxes at once) becomes a false impostor pair; distances are made
       to look harder, and thresholds too strict.

    What it rests on: `identities` counts tracks, `identity_pairs` pairs of tracks that overlap. The prior is ½.

    Args:
        features: `[N, D]` numbers, as in `count_pairs`.
        camids: `[N]` integers.
        tracks: `[N]` integers, a track's number within its camera.
        times: `[N]` numbers: frames or seconds, compared within a camera only.
        (the others): as in `calibrate`.

    Raises:
        ReidError: shapes do not fit; a time is not finite; a feature is NaN, infinite or (cosine) zero; too few pairs,
            as in `calibrate`.
    """
    clock = np.asarray(times, dtype=np.float64)
    cameras, local = np.asarray(camids), np.asarray(tracks)
    if not cameras.shape == local.shape == clock.shape or clock.ndim != 1:
        raise ReidError(f"There are {cameras.shape} camids, {local.shape} tracks and {clock.shape} times.")
    if not np.isfinite(clock).all():
        raise ReidError(f"The time of row {int(np.argmin(np.isfinite(clock)))} is not a number.")
    known = np.flatnonzero(local != NO_TRACK)
    if len(known) < 2:
        raise ReidError(f"Nothing can be learned without labels: {len(known)} rows have a track (-1 is none).")
    tracklet = np.full(len(local), -1, dtype=np.int64)
    tracklet[known] = np.unique(np.stack([cameras[known], local[known]]), axis=1, return_inverse=True)[1].reshape(-1)
    n_tracks = int(tracklet.max()) + 1
    once = np.unique(np.stack([tracklet[known], clock[known]]), axis=1).shape[1]
    if once < 0.99 * len(known):
        raise ReidError(
            f"{len(known) - once:,} of {len(known):,} crops stand in a track that has another crop at the same time: "
            "a track is one person, one box at a time. Are these numbers of videos or sequences, or tracks that are "
            "numbered alike in several videos? Give each track of a camera a number of its own."
        )
    start, end = np.full(n_tracks, np.inf), np.full(n_tracks, -np.inf)
    np.minimum.at(start, tracklet[known], clock[known])
    np.maximum.at(end, tracklet[known], clock[known])
    chosen = np.where(_spread(tracklet, clock), tracklet, -1)

    pairs = LabelledPairs.of(features, chosen, cameras, metric, cross_camera=False, distractor=None)
    when, of = clock[pairs.order], pairs.pids
    far_apart = _median_gap(of, when)
    genuine, impostor = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    across: dict[tuple[int, int], NDArray[np.int64]] = {}
    overlapping: set[int] = set()
    for first, second, blocks in pairs.blocks(memory_limit):
        every = np.zeros(BINS, dtype=np.int64)
        for block in blocks:
            flat = block.bins.reshape(-1)
            if first != second:
                every += histogram(flat, BINS)
                continue
            rows, columns = of[block.rows], of[block.columns]
            gap = _at(np.abs(when[block.rows][:, None] - when[block.columns][None]), block.genuine)
            genuine += histogram(flat[block.genuine[torch.from_numpy(gap >= far_apart).to(flat.device)]], BINS)
            sure = _overlap(rows, columns, start, end, block)
            impostor += histogram(flat[sure.to(flat.device)], BINS)
            row, column = np.divmod(sure.numpy(), len(columns))
            overlapping.update(np.unique(rows[row] * n_tracks + columns[column]).tolist())
        if first != second:
            across[first, second] = every
    n_cameras = len(np.unique(pairs.camids))
    if not genuine.any() or not impostor.any():
        what = "do two tracks of one camera overlap" if genuine.any() else "does a track have two crops at two times"
        raise ReidError(
            f"Nothing can be learned without labels: nowhere {what} "
            f"({n_tracks:,} tracks in {n_cameras} cameras). Give longer or more tracks, or labels (a pid column)."
        )
    notes: dict[str, Any] = {
        "pairs": (
            "crops of tracks of one camera that overlap in time, against crops of one track"
            + (", their distances moved by a line to those across cameras" if across else "; one camera only")
        ),
        "images": len(of),
        "genuine pairs apart in time by at least": far_apart,
    }
    edges = pairs.edges
    counted = (genuine, impostor)
    lines = {cameras: _bridge(edges, impostor, every) for cameras, every in across.items()}
    line = _bridge(edges, impostor, np.sum(list(across.values()), axis=0)) if across else (0.0, 1.0)
    notes["line"] = [float(f"{value:.6g}") for value in line]
    _check_rate(fmr, int(impostor.sum()), len(overlapping))
    whole = _calibration(
        _moved(edges, line),
        *counted,
        {},
        metric=metric,
        fmr=fmr,
        identities=n_tracks,
        identity_pairs=len(overlapping),
        model=model,
        source="tracks",
        notes=notes,
    )
    n_genuine, n_impostor = whole.overall.genuine, whole.overall.impostor
    weights = (genuine.astype(np.float64), impostor.astype(np.float64))
    return replace(
        whole,
        by_cameras={
            cameras: _fit(_moved(edges, own), *weights, n_genuine, n_impostor)
            for cameras, own in lines.items()
            if across[cameras].sum() >= _FEWEST_ACROSS
        },
        too_few={cameras: (0, int(every.sum())) for cameras, every in across.items() if every.sum() < _FEWEST_ACROSS},
    )


def _spread(tracklet: NDArray[np.int64], clock: Floats) -> NDArray[np.bool_]:
    """Which rows to use: of each track up to so many, evenly spaced in order of time."""
    order = np.lexsort((clock, tracklet))
    order = order[tracklet[order] >= 0]
    used = np.zeros(len(tracklet), dtype=bool)
    if not len(order):
        return used
    _, first, length = np.unique(tracklet[order], return_index=True, return_counts=True)
    most = int(np.clip(_MOST_CROPS // len(length), 2, _CROPS_PER_TRACK))
    for begin, n in zip(first, length, strict=True):
        used[order[begin + np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))]] = True
    return used


def _median_gap(of: NDArray[np.int64], when: Floats) -> float:
    """The median time between two crops of one track, of those that are not at one time; inf where there is none."""
    order = np.lexsort((when, of))
    of, when = of[order], when[order]
    gaps = [(when[step:] - when[:-step])[of[step:] == of[:-step]] for step in range(1, min(_CROPS_PER_TRACK, len(of)))]
    apart = np.concatenate([gap[gap > 0] for gap in gaps]) if gaps else np.zeros(0)
    return float(np.median(apart)) if len(apart) else float("inf")


def _at(matrix: Floats, flat: Tensor) -> Floats:
    return np.asarray(matrix.reshape(-1)[flat.cpu().numpy()])


def _overlap(rows: NDArray[np.int64], columns: NDArray[np.int64], start: Floats, end: Floats, block: Block) -> Tensor:
    """Flat positions of the pairs of two tracks that overlap in time, each pair once."""
    sure = (start[rows][:, None] <= end[columns][None]) & (start[columns][None] <= end[rows][:, None])
    sure &= rows[:, None] != columns[None]
    flat = sure.reshape(-1)
    flat[block.left_out.cpu().numpy()] = False
    return torch.from_numpy(np.flatnonzero(flat))


def _bridge(edges: Floats, near: NDArray[np.int64], far: NDArray[np.int64]) -> tuple[float, float]:
    """The line (a, b) that takes the quartiles of `near` to those of `far` by least squares."""
    share = np.array([0.25, 0.5, 0.75])
    x, y = (_quantiles(edges, counts.astype(np.float64), share)[0] for counts in (near, far))
    if len(x) < 3 or len(y) < 3:
        raise ReidError("The distances are all but equal: these features do not tell people apart.")
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return float(y.mean() - slope * x.mean()), slope


def _moved(edges: Floats, line: tuple[float, float]) -> Floats:
    return np.asarray(np.maximum(line[0] + line[1] * edges, 0))


def _calibration(
    edges: Floats,
    genuine: NDArray[np.int64],
    impostor: NDArray[np.int64],
    per_cameras: dict[tuple[int, int], tuple[Floats, Floats]],
    *,
    metric: Metric,
    fmr: float,
    identities: int,
    identity_pairs: int,
    model: str,
    source: Literal["labels", "tracks"],
    notes: dict[str, Any],
) -> Calibration:
    n_genuine, n_impostor = int(genuine.sum()), int(impostor.sum())
    _check_rate(fmr, n_impostor, identity_pairs)
    if n_genuine < FEWEST_GENUINE:
        raise ReidError(
            f"A calibration needs {FEWEST_GENUINE} pairs of one person at least; there are {n_genuine}. "
            "Give more items of people who are seen more than once."
        )
    overall = _fit(edges, genuine.astype(np.float64), impostor.astype(np.float64), n_genuine, n_impostor)
    by_cameras, too_few = {}, {}
    coarse_edges = edges[:: BINS // _COARSE]
    whole_genuine, whole_impostor = _coarse(genuine) / n_genuine, _coarse(impostor) / n_impostor
    for cameras, (own, others) in per_cameras.items():
        n_own, n_others = int(own.sum()), int(others.sum())
        if n_own < _OWN_GENUINE or n_others * fmr < PAIRS_PER_ERROR:
            too_few[cameras] = (n_own, n_others)
            continue
        by_cameras[cameras] = _fit(
            coarse_edges,
            own + _PRIOR_GENUINE * whole_genuine,
            others + _PRIOR_ERRORS / fmr * whole_impostor,
            n_own,
            n_others,
        )
    return Calibration(
        metric=metric,
        chosen_fmr=fmr,
        overall=overall,
        by_cameras=by_cameras,
        too_few=too_few,
        identities=identities,
        identity_pairs=identity_pairs,
        model=model,
        source=source,
        notes=notes,
    )


def _check_rate(fmr: float, impostor: int, identity_pairs: int) -> None:
    if not 0 < fmr < 1:
        raise ReidError(f"A false-match rate lies between 0 and 1, not {fmr}.")
    need, need_people = int(np.ceil(PAIRS_PER_ERROR / fmr - 1e-9)), int(np.ceil(1 / fmr - 1e-9))
    lacking = []
    if impostor < need:
        lacking.append(f"{need:,} pairs of different people, and there are {impostor:,}")
    if identity_pairs < need_people:
        lacking.append(f"{need_people:,} pairs of identities to compare, and there are {identity_pairs:,}")
    if lacking:
        within = max(PAIRS_PER_ERROR / max(impostor, 1), 1 / max(identity_pairs, 1))
        mend = f"ask for {_round_up(within):g} or more, or " if within < 0.5 else ""
        raise ReidError(
            f"A false-match rate of {fmr:g} cannot be told from so little: it needs {' and '.join(lacking)}. "
            f"Too few: {mend}label more people."
        )


def _round_up(rate: float) -> float:
    """The next rate of one digit."""
    unit = 10.0 ** np.floor(np.log10(rate))
    return float(np.ceil(rate / unit - 1e-9) * unit)


def _coarse(counts: NDArray[np.int64]) -> Floats:
    return counts.reshape(_COARSE, -1).sum(axis=1).astype(np.float64)


def _line(knots: Floats, distances: Floats) -> Floats:
    return np.asarray(np.interp(distances, knots[0], knots[1]))


def _rounded(table: Floats) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in row] for row in table]


def _pair(entry: Mapping[str, Any]) -> tuple[int, int]:
    first, second = entry["cameras"]
    return int(first), int(second)


def _fit(edges: Floats, genuine: Floats, impostor: Floats, n_genuine: int, n_impostor: int) -> Curve:
    """The curve of (possibly weighted) counts by bin that rest on so many pairs."""
    if n_genuine < ISOTONIC_FROM:
        method, log_ratio, thinning = "logistic", _logistic(edges, genuine, impostor, min(n_genuine, n_impostor)), 0.0
    else:
        method, (log_ratio, thinning) = "isotonic", _thin(_isotonic(edges, genuine, impostor), _MOST_KNOTS)
    lowest = min(PAIRS_PER_ERROR / n_impostor, 0.5)
    decades = np.log10(0.5 / lowest)
    rates = np.concatenate([np.geomspace(lowest, 0.5, 2 + int(4 * decades)), [0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]])
    return Curve(
        genuine=n_genuine,
        impostor=n_impostor,
        method=method,
        false_match=_quantiles(edges, impostor, np.unique(rates)),
        true_match=_quantiles(edges, genuine, np.linspace(0, 1, 21)),
        log_ratio=log_ratio,
        thinning=thinning,
    )


def _quantiles(edges: Floats, counts: Floats, rates: Floats) -> Floats:
    """Distances below which the shares `rates` stand, `[2, K]`; where a distance is that of several, the largest."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    below /= below[-1]
    steps = np.flatnonzero(np.diff(below) > 0)
    place, height = np.append(edges[steps], edges[steps[-1] + 1]), np.append(below[steps], 1.0)
    distances = np.interp(rates, height, place)
    last = np.append(np.diff(distances) > 0, True)
    return np.stack([distances[last], rates[last]])


def _groups(edges: Floats, genuine: Floats, impostor: Floats) -> tuple[Floats, Floats, Floats]:
    """Centre, genuine and impostor counts of up to `_GROUPS` neighbouring bins with like shares of both together."""
    share = genuine / genuine.sum() + impostor / impostor.sum()
    used = np.flatnonzero(share)
    place = np.minimum((np.cumsum(share[used]) - share[used] / 2) / 2 * _GROUPS, _GROUPS - 1).astype(np.int64)
    starts = np.flatnonzero(np.append(True, np.diff(place) > 0))
    centres = (edges[used] + edges[used + 1]) / 2

    def total(values: Floats) -> Floats:
        return np.asarray(np.add.reduceat(values, starts))

    weight = share[used]
    return total(centres * weight) / total(weight), total(genuine[used]), total(impostor[used])


def _isotonic(edges: Floats, genuine: Floats, impostor: Floats) -> Floats:
    """Knots `[2, M]` of the log ratio."""
    from sklearn.isotonic import IsotonicRegression

    centre, own, others = _groups(edges, genuine, impostor)
    n_own, n_others = own.sum(), others.sum()
    same, different = own / n_own, others / n_others
    weight = same + different
    fitted = IsotonicRegression(increasing=False).fit_transform(centre, same / weight, sample_weight=weight)
    step = np.cumsum(np.append(True, np.diff(fitted) != 0)) - 1
    rows = np.stack([np.bincount(step, column) for column in (centre * weight, weight, own, others)], axis=1)
    steps: list[Floats] = []
    waiting = np.zeros(4)
    for row in rows:
        waiting = waiting + row
        if waiting[2:].min() >= _FEWEST_IN_A_STEP:
            steps.append(waiting)
            waiting = np.zeros(4)
    if waiting[1] > 0:
        steps.append(steps.pop() + waiting if steps else waiting)
    table = np.stack(steps)
    ratio = np.log((table[:, 2] + 0.5) / (n_own + 1)) - np.log((table[:, 3] + 0.5) / (n_others + 1))
    return np.stack([table[:, 0] / table[:, 1], np.minimum.accumulate(ratio)])


def _logistic(edges: Floats, genuine: Floats, impostor: Floats, fewest: int) -> Floats:
    """Knots `[2, M]` of a log ratio that is a straight line, kept within ± log(fewest)."""
    from sklearn.linear_model import LogisticRegression

    centre, own, others = _groups(edges, genuine, impostor)
    mean = (centre * (own / own.sum() + others / others.sum())).sum() / 2
    scale = max(float(np.ptp(centre)), 1e-12)
    unit = np.concatenate([(centre - mean) / scale] * 2)[:, None]
    labels = np.repeat([1, 0], len(centre))
    weights = np.concatenate([own / own.sum(), others / others.sum()]) * fewest
    model = LogisticRegression(C=1e6).fit(unit, labels, sample_weight=weights)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope >= 0:
        raise ReidError(
            "Pairs of one person are no nearer than pairs of different people: these features do not tell people "
            "apart, or the labels are wrong."
        )
    bound = np.log(max(fewest, 2))
    ends = np.array([min(bound, slope * (place - mean) / scale + offset) for place in (edges[0], edges[-1])])
    ends = np.maximum(ends, -bound)
    places = mean + (ends - offset) / slope * scale
    return np.stack([places, ends])


def _thin(knots: Floats, most: int) -> tuple[Floats, float]:
    """Leave out the inner knots that straight lines replace best; the worst error at one left out."""
    kept = list(range(knots.shape[1]))
    while len(kept) > most:
        errors = [_error(knots, kept[i - 1], kept[i + 1]) for i in range(1, len(kept) - 1)]
        del kept[1 + int(np.argmin(errors))]
    thinned = knots[:, kept]
    return thinned, float(np.abs(_line(thinned, knots[0]) - knots[1]).max())


def _error(knots: Floats, first: int, last: int) -> float:
    inner = slice(first + 1, last)
    ends = knots[:, [first, last]]
    return float(np.abs(_line(ends, knots[0, inner]) - knots[1, inner]).max())
