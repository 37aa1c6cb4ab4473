"""Calibration curves: false-match rate, true-match rate and likelihood ratio by distance, fitted to histograms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, PlainSerializer, PlainValidator, PositiveInt
from pydantic.dataclasses import dataclass

from reid.core.errors import DataError
from reid.evaluation.pairs import BINS, PAIRS_PER_ERROR
from reid.evaluation.protocol import Integers

FEWEST_GENUINE = 20
"""Smallest number of genuine pairs for a fit."""

ISOTONIC_FROM = 500
"""Smallest number of genuine pairs for isotonic regression; with fewer, logistic regression is used."""

_GROUPS = 200
_MOST_KNOTS = 32
_FEWEST_IN_A_STEP = 10
_COARSE = 4096
_CAMERA_GENUINE = 50
_PRIOR_GENUINE = 500
_PRIOR_ERRORS = 100

Floats = NDArray[np.float64]
CameraPair = tuple[int, int]


def _check_knots(values: Any, sign: int) -> Floats:
    try:
        table = np.asarray(values, dtype=np.float64)
    except TypeError as error:  # pydantic reports value errors only
        raise ValueError(error) from error
    if table.ndim != 2 or table.shape[0] != 2 or not table.shape[1] or not np.isfinite(table).all():
        raise ValueError("it is not two rows of numbers")
    if (np.diff(table[0]) < 0).any() or (sign * np.diff(table[1]) < 0).any():
        raise ValueError("it is not monotone")
    return table


_rounded = PlainSerializer(lambda table: [[float(f"{x:.6g}") for x in row] for row in table])
Rising = Annotated[Floats, PlainValidator(partial(_check_knots, sign=1)), _rounded]
Falling = Annotated[Floats, PlainValidator(partial(_check_knots, sign=-1)), _rounded]


def stored_as(keys: Mapping[str, str]) -> ConfigDict:
    """Return the configuration of a class whose attributes have other names in files."""
    return ConfigDict(alias_generator=lambda name: keys.get(name, name), validate_by_name=True)


@dataclass(frozen=True, eq=False, config=stored_as({"genuine": "genuine_pairs", "impostor": "impostor_pairs"}))
class Curve:
    """What the distances of one kind of pairs mean, as knots with linear interpolation between them.

    Attributes:
        genuine, impostor: number of pairs it was fitted to.
        method: "isotonic" or "logistic".
        false_match: `[2, K]`, distance and fraction of impostor pairs below it, ascending; linear in the log rate.
        true_match: `[2, K]`, distance and fraction of genuine pairs below it.
        log_ratio: `[2, M]`, distance and log( p(distance | same) / p(distance | different) ), never rising; constant
            beyond the ends.
        thinning: largest error of `log_ratio` at a knot that was removed.
    """

    genuine: PositiveInt
    impostor: PositiveInt
    method: str
    false_match: Rising
    true_match: Rising
    log_ratio: Falling
    thinning: float = 0.0

    @property
    def prior(self) -> float:
        """Fraction of genuine pairs among all pairs."""
        return self.genuine / (self.genuine + self.impostor)


@dataclass(frozen=True)
class TooFew:
    """Numbers of pairs of two cameras that have no curve."""

    genuine_pairs: int
    impostor_pairs: int


def overall_curve(edges: Floats, genuine: Integers, impostor: Integers, fmr: float, identity_pairs: int) -> Curve:
    """Fit the curve of all pairs to their histograms.

    Raises:
        ReidError: too few pairs for the false-match rate `fmr`, or distances that do not separate identities.
    """
    n_genuine, n_impostor = int(genuine.sum()), int(impostor.sum())
    check_rate(fmr, n_impostor, identity_pairs)
    if n_genuine < FEWEST_GENUINE:
        raise DataError(
            f"A calibration needs {FEWEST_GENUINE} pairs of one person; there are {n_genuine}. Add items of people who "
            "are seen more than once."
        )
    return fit_curve(edges, genuine.astype(np.float64), impostor.astype(np.float64), n_genuine, n_impostor)


def camera_curves(
    edges: Floats,
    genuine: Integers,
    impostor: Integers,
    by_cameras: Mapping[CameraPair, tuple[Floats, Floats]],
    fmr: float,
) -> tuple[dict[CameraPair, Curve], dict[CameraPair, TooFew]]:
    """Fit a curve for each pair of cameras with enough pairs, with the overall histograms as a prior.

    Args:
        edges, genuine, impostor: histograms of all pairs.
        by_cameras: coarse histograms (`coarse`) of each pair of cameras.
        fmr: false-match rate that the curve must support.

    Returns:
        The curves, and the numbers of pairs of the pairs of cameras that have too few.
    """
    curves, too_few = {}, {}
    coarse_edges = edges[:: BINS // _COARSE]
    prior_genuine, prior_impostor = coarse(genuine) / int(genuine.sum()), coarse(impostor) / int(impostor.sum())
    for cameras, (some_genuine, some_impostor) in by_cameras.items():
        n_genuine, n_impostor = int(some_genuine.sum()), int(some_impostor.sum())
        if n_genuine < _CAMERA_GENUINE or n_impostor * fmr < PAIRS_PER_ERROR:
            too_few[cameras] = TooFew(n_genuine, n_impostor)
            continue
        curves[cameras] = fit_curve(
            coarse_edges,
            some_genuine + _PRIOR_GENUINE * prior_genuine,
            some_impostor + _PRIOR_ERRORS / fmr * prior_impostor,
            n_genuine,
            n_impostor,
        )
    return curves, too_few


def check_rate(fmr: float, impostor: int, identity_pairs: int) -> None:
    """Raise an error if a false-match rate cannot be estimated from this many pairs.

    Raises:
        DataError: with what is missing and the smallest rate that is possible.
    """
    if not 0 < fmr < 1:
        raise DataError(f"A false-match rate must be between 0 and 1; got {fmr}.")
    need, need_identities = int(np.ceil(PAIRS_PER_ERROR / fmr - 1e-9)), int(np.ceil(1 / fmr - 1e-9))
    lacking = []
    if impostor < need:
        lacking.append(f"{need:,} pairs of different people, and there are {impostor:,}")
    if identity_pairs < need_identities:
        lacking.append(f"{need_identities:,} pairs of identities, and there are {identity_pairs:,}")
    if lacking:
        possible = max(PAIRS_PER_ERROR / max(impostor, 1), 1 / max(identity_pairs, 1))
        digit = 10.0 ** np.floor(np.log10(possible))
        rounded = float(np.ceil(possible / digit - 1e-9) * digit)
        fix = f"Choose a rate of {rounded:g} or more, or label" if possible < 0.5 else "Label"
        raise DataError(
            f"A false-match rate of {fmr:g} cannot be estimated from these pairs: it needs {' and '.join(lacking)}. "
            f"{fix} more people."
        )


def coarse(counts: Integers) -> Floats:
    """Merge the bins of a histogram into 4,096."""
    return counts.reshape(_COARSE, -1).sum(axis=1).astype(np.float64)


def interpolate(knots: Floats, distances: Floats) -> Floats:
    """Return values at `distances` by linear interpolation of `knots [2, K]`, constant beyond the ends."""
    return np.asarray(np.interp(distances, knots[0], knots[1]))


def fit_curve(edges: Floats, genuine: Floats, impostor: Floats, n_genuine: int, n_impostor: int) -> Curve:
    """Fit a curve to (possibly weighted) histograms of `n_genuine` and `n_impostor` pairs."""
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
        false_match=quantiles(edges, impostor, np.unique(rates)),
        true_match=quantiles(edges, genuine, np.linspace(0, 1, 21)),
        log_ratio=log_ratio,
        thinning=thinning,
    )


def quantiles(edges: Floats, counts: Floats, rates: Floats) -> Floats:
    """Return `[2, K]`: the distances below which the fractions `rates` of the pairs are, and these fractions.

    Where several fractions have the same distance, only the largest is returned.
    """
    below = np.concatenate([[0.0], np.cumsum(counts)])
    below /= below[-1]
    steps = np.flatnonzero(np.diff(below) > 0)
    x, y = np.append(edges[steps], edges[steps[-1] + 1]), np.append(below[steps], 1.0)
    distances = np.interp(rates, y, x)
    last = np.append(np.diff(distances) > 0, True)
    return np.stack([distances[last], rates[last]])


def _groups(edges: Floats, genuine: Floats, impostor: Floats) -> tuple[Floats, Floats, Floats]:
    """Merge bins into up to `_GROUPS` groups with about equal fractions of both kinds of pairs together.

    Returns:
        Centre, genuine and impostor counts of each group.
    """
    fraction = genuine / genuine.sum() + impostor / impostor.sum()
    used = np.flatnonzero(fraction)
    weight = fraction[used]
    group = np.minimum((np.cumsum(weight) - weight / 2) / 2 * _GROUPS, _GROUPS - 1).astype(np.int64)
    starts = np.flatnonzero(np.append(True, np.diff(group) > 0))
    centres = (edges[used] + edges[used + 1]) / 2
    moment, total, own, others = (
        np.add.reduceat(values, starts) for values in (centres * weight, weight, genuine[used], impostor[used])
    )
    return moment / total, own, others


def _isotonic(edges: Floats, genuine: Floats, impostor: Floats) -> Floats:
    """Return knots `[2, M]` of the log ratio by isotonic regression."""
    from sklearn.isotonic import IsotonicRegression

    centre, own, others = _groups(edges, genuine, impostor)
    n_own, n_others = own.sum(), others.sum()
    same, different = own / n_own, others / n_others
    weight = same + different
    fitted = IsotonicRegression(increasing=False).fit_transform(centre, same / weight, sample_weight=weight)
    step = np.cumsum(np.append(True, np.diff(fitted) != 0)) - 1
    rows = np.stack([np.bincount(step, column) for column in (centre * weight, weight, own, others)], axis=1)
    steps: list[Floats] = []
    collected = np.zeros(4)
    for row in rows:
        collected = collected + row
        if collected[2:].min() >= _FEWEST_IN_A_STEP:
            steps.append(collected)
            collected = np.zeros(4)
    if collected[1] > 0:
        steps.append(steps.pop() + collected if steps else collected)
    table = np.stack(steps)
    ratio = np.log((table[:, 2] + 0.5) / (n_own + 1)) - np.log((table[:, 3] + 0.5) / (n_others + 1))
    return np.stack([table[:, 0] / table[:, 1], np.minimum.accumulate(ratio)])


def _logistic(edges: Floats, genuine: Floats, impostor: Floats, fewest: int) -> Floats:
    """Return knots `[2, 2]` of a linear log ratio by logistic regression, limited to ± log(fewest)."""
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
        raise DataError(
            "Pairs of one person are not nearer than pairs of different people: these features do not separate "
            "identities, or the labels are wrong. Check both."
        )
    bound = np.log(max(fewest, 2))
    ends = np.array([min(bound, slope * (distance - mean) / scale + offset) for distance in (edges[0], edges[-1])])
    ends = np.maximum(ends, -bound)
    return np.stack([mean + (ends - offset) / slope * scale, ends])


def _thin(knots: Floats, most: int) -> tuple[Floats, float]:
    """Remove the inner knots that interpolation replaces best; also return the largest error at a removed knot."""
    kept = list(range(knots.shape[1]))
    while len(kept) > most:
        errors = [_error(knots, kept[i - 1], kept[i + 1]) for i in range(1, len(kept) - 1)]
        del kept[1 + int(np.argmin(errors))]
    thinned = knots[:, kept]
    return thinned, float(np.abs(interpolate(thinned, knots[0]) - knots[1]).max())


def _error(knots: Floats, first: int, last: int) -> float:
    inner = knots[:, first + 1 : last]
    return float(np.abs(interpolate(knots[:, [first, last]], inner[0]) - inner[1]).max())
