"""Calibration: thresholds by false-match rate and p(same | distance), learned from labelled items.

`reid.evaluation.track_calibration` learns them from the tracks of single cameras, without labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from reid.core.arrays import UNKNOWN
from reid.core.errors import DataError, check_number
from reid.evaluation.curves import (
    CameraPair,
    Curve,
    Floats,
    TooFew,
    camera_curves,
    check_rate,
    coarse,
    interpolate,
    overall_curve,
    stored_as,
)
from reid.evaluation.features import MEMORY_LIMIT, EmbeddingTable, Features, Metric
from reid.evaluation.pairs import BINS, DISTRACTOR, LabelledPairs

FORMAT = 1
KIND = "reid calibration"

Cameras = tuple[ArrayLike, ArrayLike]


def _from_entries(given: Any) -> Any:
    """Return the entries of a file by their cameras."""
    if isinstance(given, Mapping):
        return given
    try:
        return {tuple(entry["cameras"]): {key: entry[key] for key in entry if key != "cameras"} for entry in given}
    except (KeyError, TypeError) as error:
        raise ValueError("it is not a list of entries with cameras") from error


def _to_entries(by_cameras: Mapping[CameraPair, Curve | TooFew]) -> list[dict[str, Any]]:
    return [
        {"cameras": list(cameras), **TypeAdapter(type(value)).dump_python(value, mode="json", by_alias=True)}
        for cameras, value in sorted(by_cameras.items())
    ]


Value = TypeVar("Value")
ByCameras = Annotated[dict[CameraPair, Value], BeforeValidator(_from_entries), PlainSerializer(_to_entries)]


@dataclass(frozen=True, eq=False, config=stored_as({"chosen_fmr": "fmr", "by_cameras": "camera_pairs"}))
class Calibration:
    """What the distances of one model mean; made by `calibrate` or `calibrate_tracks`.

    Attributes:
        metric: "cosine" (1 − cosine similarity) or "euclidean" (‖a − b‖).
        chosen_fmr: false-match rate of the default threshold.
        overall: curve of all pairs together.
        by_cameras: curves of pairs of cameras (lower id first) with enough pairs.
        too_few: numbers of pairs of the pairs of cameras with too few; `overall` is used for them.
        identities: number of identities (or tracklets) it was learned from.
        identity_pairs: number of pairs of different identities that were compared.
        model: id of the weights; "" if unknown.
        source: "labels" or "tracks".
        notes: how it was made, as plain values.
    """

    metric: Metric
    chosen_fmr: Annotated[float, Field(gt=0, lt=1)]
    overall: Curve
    by_cameras: ByCameras[Curve] = field(default_factory=dict)
    too_few: ByCameras[TooFew] = field(default_factory=dict)
    identities: int = 0
    identity_pairs: int = 0
    model: str = ""
    source: Literal["labels", "tracks"] = "labels"
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def prior(self) -> float:
        """Assumed fraction of pairs that show the same person: that of the labelled pairs; ½ without labels."""
        return self.overall.prior if self.source == "labels" else 0.5

    def curve(self, cameras: CameraPair | None = None) -> Curve:
        """Return the curve of a pair of cameras, in either order; `overall` for None and for pairs without a curve."""
        if cameras is None:
            return self.overall
        first, second = sorted(int(camera) for camera in cameras)
        return self.by_cameras.get((first, second), self.overall)

    def threshold(self, fmr: float | None = None, cameras: CameraPair | None = None) -> float:
        """Return the distance below which the fraction `fmr` of the pairs of different people are.

        Args:
            fmr: false-match rate; None for the chosen one.
            cameras: a pair of camera ids; None for all pairs together.

        Raises:
            DataError: a rate that is too small for the number of pairs, or not between 0 and 1.
        """
        fmr = self.chosen_fmr if fmr is None else fmr
        curve = self.curve(cameras)
        check_rate(fmr, self.overall.impostor, self.identity_pairs)
        distance, rate = curve.false_match
        return float(np.interp(np.log(fmr), np.log(rate), distance))

    def fmr(self, threshold: float, cameras: CameraPair | None = None) -> float:
        """Return the expected fraction of pairs of different people at a distance below `threshold`.

        It is never below the smallest rate that can be estimated, `10 / impostor pairs`.
        """
        distance, rate = self.curve(cameras).false_match
        return float(np.exp(np.interp(threshold, distance, np.log(rate))))

    def tmr(self, threshold: float, cameras: CameraPair | None = None) -> float:
        """Return the expected fraction of pairs of one person at a distance below `threshold`."""
        distance, rate = self.curve(cameras).true_match
        return float(np.interp(threshold, distance, rate, left=0.0))

    def log_ratio(self, distances: ArrayLike, cameras: Cameras | None = None) -> Floats:
        """Return log( p(distance | same) / p(distance | different) ), which falls with the distance.

        Args:
            distances: any shape; the result has the same.
            cameras: two camera ids, or two arrays of them that broadcast to `distances`; None for all pairs together.
        """
        wanted = np.asarray(distances, dtype=np.float64)
        if cameras is None:
            return interpolate(self.overall.log_ratio, wanted)
        first, second = (np.broadcast_to(np.asarray(ids), wanted.shape).reshape(-1) for ids in cameras)
        ordered = np.stack([np.minimum(first, second), np.maximum(first, second)], axis=1)
        pairs, pair = np.unique(ordered, axis=0, return_inverse=True)
        flat, values = wanted.reshape(-1), np.empty(wanted.size)
        for number, (low, high) in enumerate(pairs):
            rows = pair.reshape(-1) == number
            values[rows] = interpolate(self.curve((int(low), int(high))).log_ratio, flat[rows])
        return values.reshape(wanted.shape)

    def probability(self, distances: ArrayLike, cameras: Cameras | None = None, prior: float | None = None) -> Floats:
        """Return p(same | distance), the probability that two crops at this distance show the same person.

        It falls with the distance and is never exactly 0 or 1. By Bayes' rule,
        `p / (1 − p) = ratio(distance) · prior / (1 − prior)`.

        Args:
            distances: any shape; the result has the same.
            cameras: as in `log_ratio`.
            prior: fraction of pairs that show the same person, 0 < prior < 1. None for `Calibration.prior`. With
                labels that is right for pairs picked at random from similar data, and far too low for selected
                candidates, such as the nearest gallery items.

        Raises:
            ConfigError: the prior is not between 0 and 1.
        """
        prior = self.prior if prior is None else prior
        check_number("The prior", prior, 0, 1, above=True, below=True)
        odds = self.log_ratio(distances, cameras) + np.log(prior / (1 - prior))
        return np.asarray(1 / (1 + np.exp(-odds)))

    def check_fits(self, model: str | None, subject: str = "these embeddings") -> None:
        """Raise an error if `subject` is of another known model, or the calibration is not of cosine distances.

        Raises:
            DataError: naming both models, or the metric.
        """
        if self.model and model and self.model != model:
            raise DataError(
                f"The calibration is of model {self.model!r}, but {subject} come from {model!r}, whose distances have "
                "another meaning. Calibrate that model with `reid calibrate`."
            )
        if self.metric != "cosine":
            raise DataError(f"The calibration is of {self.metric} distances. Calibrate with cosine distances.")

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python, ready for JSON."""
        stored = _FILE.dump_python(self, mode="json", by_alias=True)
        return {"kind": KIND, "format": FORMAT, "threshold": self.threshold(), **stored}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Calibration:
        """Read what `as_dict` returned.

        Raises:
            DataError: it is not a calibration, of an unknown format, or damaged; the key is named.
        """
        if not isinstance(stored, Mapping) or stored.get("kind") != KIND:
            raise DataError(f"This is not a calibration: its 'kind' is not {KIND!r}. Make one with `reid calibrate`.")
        if stored.get("format") != FORMAT:
            raise DataError(
                f"The calibration has format {stored.get('format')!r}; this version reads {FORMAT}. Make it again with "
                "`reid calibrate`."
            )
        try:
            return _FILE.validate_python(stored)
        except ValidationError as error:
            problem = error.errors()[0]
            key, given = ".".join(map(str, problem["loc"])), str(problem["input"])[:80]
            raise DataError(
                f"The calibration is damaged: {key} is {given}: {problem['msg']}. Make it again with `reid calibrate`."
            ) from error


_FILE = TypeAdapter(Calibration)


def calibrate(
    features: Features | EmbeddingTable,
    pids: ArrayLike | None = None,
    camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    fmr: float = 1e-3,
    cross_camera: bool = True,
    distractor: int | None = DISTRACTOR,
    model: str = "",
    memory_limit: int = MEMORY_LIMIT,
) -> Calibration:
    """Learn what a distance means from labelled items. `count_pairs` describes which pairs count.

    - False-match rate: fraction of impostor pairs at a smaller distance, counted; stored as 4 knots per decade.
    - p(same | distance): isotonic regression (pool adjacent violators) over 200 groups of distances, each with an
      equal fraction of genuine and impostor pairs together. Each step has at least 10 pairs of either kind; its ratio
      is (g + ½)/(G + 1) ÷ (i + ½)/(I + 1), so that no p is 0 or 1. Steps are connected by linear interpolation. With
      fewer than 500 genuine pairs: logistic regression on the distance with equal weight for both kinds, its log ratio
      limited to ± log of the number of pairs of the rarer kind.
    - A pair of known cameras gets its own curve if it has 50 genuine and 10/fmr impostor pairs: its counts plus the
      overall curve weighted as 500 genuine and 100/fmr impostor pairs. Other pairs of cameras use `overall`.

    Args:
        features, pids, camids, metric, cross_camera, distractor, memory_limit: as in `count_pairs`.
        fmr: false-match rate of the default threshold.
        model: id of the weights, stored so that features of another model can be refused.

    Raises:
        DataError: as `count_pairs`; too few pairs (10/fmr impostor pairs of 1/fmr pairs of identities and 20 genuine
            pairs are needed); or genuine pairs that are not nearer than impostor pairs.

    Example:
        >>> import numpy as np
        >>> from reid import calibrate
        >>> rng = np.random.default_rng(0)
        >>> pids = np.repeat(np.arange(1, 41), 5)
        >>> features = rng.normal(size=(41, 16))[pids] + 0.3 * rng.normal(size=(200, 16))
        >>> calibration = calibrate(features, pids, cross_camera=False, fmr=0.01)
        >>> threshold = calibration.threshold()
        >>> bool(calibration.probability(threshold / 4, prior=0.5) > 0.95)
        True
    """
    pairs = LabelledPairs(features, pids, camids, metric, cross_camera, distractor)
    genuine, impostor = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    by_cameras = {}
    for first, second, one, two in pairs.count_by_cameras(memory_limit):
        genuine += one
        impostor += two
        if UNKNOWN not in (first, second):
            by_cameras[first, second] = (coarse(one), coarse(two))
    counts = pairs.describe_counts(genuine, impostor)
    pairs.require_both(counts)
    identity_pairs = pairs.n_units * (pairs.n_units - 1) // 2
    overall = overall_curve(counts.edges, genuine, impostor, fmr, identity_pairs)
    has_cameras = camids is not None or getattr(features, "camids", None) is not None
    curves, too_few = camera_curves(counts.edges, genuine, impostor, by_cameras if has_cameras else {}, fmr)
    return Calibration(
        metric=metric,
        chosen_fmr=fmr,
        overall=overall,
        by_cameras=curves,
        too_few=too_few,
        identities=pairs.n_units,
        identity_pairs=identity_pairs,
        model=model,
        notes={"pairs": counts.pairs, "images": counts.images},
    )
