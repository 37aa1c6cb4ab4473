"""What distance means the same person: thresholds by false-match rate, and p(same | distance).

With labels (`calibrate`) or from the tracks of single cameras alone (`calibrate_tracks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from reid.errors import ReidError
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric
from reid.evaluation.verification import BINS, DISTRACTOR, PAIRS_PER_ERROR, LabelledPairs

FORMAT = 1
KIND = "reid calibration"

FEWEST_GENUINE = 20
"""Below so many pairs of one person nothing is fitted."""

ISOTONIC_FROM = 500
"""From so many pairs of one person on p is isotonic, below logistic."""

_GROUPS = 200
_MOST_KNOTS = 40
_FEWEST_IN_A_STEP = 10
_COARSE = 4096
_OWN_GENUINE = 50
_PRIOR_GENUINE = 500
_PRIOR_ERRORS = 100

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
            prior: share of same pairs among those asked about, 0 < prior < 1. None is that of the pairs the
                calibration rests on, overall: right for pairs picked at random from alike data, far too low for
                candidates that somebody picked (0.5 where same and different are as likely).

        Raises:
            ReidError: the prior is not between 0 and 1.
        """
        share = self.overall.prior if prior is None else prior
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

    - False-match rate: the share of impostor pairs at a smaller distance, counted; kept as knots 8 to a decade.
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
    return [[float(f"{value:.7g}") for value in row] for row in table]


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
    rates = np.concatenate([np.geomspace(lowest, 0.5, 2 + int(8 * decades)), [0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]])
    return Curve(
        genuine=n_genuine,
        impostor=n_impostor,
        method=method,
        false_match=_quantiles(edges, impostor, np.unique(rates)),
        true_match=_quantiles(edges, genuine, np.linspace(0, 1, 41)),
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
