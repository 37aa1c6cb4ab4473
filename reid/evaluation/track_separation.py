"""Do features separate the people whom one camera sees simultaneously? Needs tracks, and no identities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import integer_column
from reid.core.errors import DataError
from reid.evaluation.features import Features, prepare_one
from reid.evaluation.protocol import Integers

FEWEST_TRACKS = 20
"""With fewer scored tracks nothing is concluded."""

_CROPS_PER_TRACK = 8
_DRAWS = 1000
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class TrackSeparation:
    """Scores of T' tracks that have two crops or more and are simultaneous with another track.

    Attributes:
        tracks: `[T']` int64, their numbers.
        auc: `[T']` 0..1: how often a later crop of the track is nearer to an earlier one than a crop of a simultaneous
            track is (ties count half); ½ is chance.
        rank1: `[T']` 0..1: fraction of the earlier crops whose nearest crop is of the track itself.
        moments: `[T', 4]` of the similarities that `auc` compares: mean and mean square of those within the track, and
            of those with simultaneous tracks.
    """

    tracks: Integers
    auc: NDArray[np.float64]
    rank1: NDArray[np.float64]
    moments: NDArray[np.float64]

    def distinctness(self, rows: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return d′: how many standard deviations the similarities within tracks are above those between tracks.

        With the means μ and variances σ² over all tracks, each weighted equally,
        `d′ = (μ_within − μ_between) / √((σ²_within + σ²_between) / 2)`. AUC and rank-1 cannot exceed 1, which good
        models reach; d′ still grows.

        Args:
            rows: `[..., n]` rows of the columns to use; None: all.

        Returns:
            `[...]`; NaN without tracks, or without any variance.
        """
        used = self.moments if rows is None else self.moments[np.asarray(rows)]
        if used.shape[-2] == 0:
            return np.full(used.shape[:-2], np.nan)
        mean = used.mean(axis=-2)
        within, between = mean[..., 0], mean[..., 2]
        variance = (mean[..., 1] - within**2 + mean[..., 3] - between**2) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(variance > _LEAST_VARIANCE, (within - between) / np.sqrt(variance), np.nan)

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the means as plain values for JSON; None without tracks, or without any variance."""
        n = len(self.tracks)
        means = [round(float(column.mean()), 4) if n else None for column in (self.auc, self.rank1)]
        distinct = float(self.distinctness())
        return {
            "tracks": n,
            "auc": means[0],
            "rank1": means[1],
            "d_prime": None if np.isnan(distinct) else round(distinct, 3),
        }


def separate_tracks(
    features: Features, tracks: ArrayLike, times: ArrayLike, simultaneous: ArrayLike
) -> TrackSeparation:
    """Score features by the tracks of single cameras, as a re-association: is a person recognised later?

    Of each track at most 8 crops, evenly spread over time, are used. Each crop of the first half is a query. Its
    positives are the crops of the second half; its negatives are all crops of the tracks that the same camera sees
    simultaneously, which are different people (certain negatives). Both gaps in time are as long as the tracks allow.

    Args:
        features: `[N, D]`, of crops; compared by cosine.
        tracks: `[N]` track of each crop, 0 or above.
        times: `[N]` time or frame of each crop.
        simultaneous: `[P, 2]` pairs of tracks that one camera sees simultaneously.

    Raises:
        DataError: columns of different length, invalid features, or a negative track.

    Example:
        >>> features = np.array([[1, 0], [1, 0.1], [0, 1], [0.2, 1]], np.float32)
        >>> separate_tracks(features, [0, 0, 1, 1], [1, 9, 1, 9], [[0, 1]]).as_dict()
        {'tracks': 2, 'auc': 1.0, 'rank1': 1.0, 'd_prime': 15.812}
    """
    ready = prepare_one(features, "crop", "cosine").cpu().numpy()
    track = integer_column("tracks", tracks, len(ready))
    if (track < 0).any():
        raise DataError(f"{int((track < 0).sum())} crops have a negative track. Remove crops of unknown tracks.")
    order = np.lexsort((np.asarray(times), track))
    count = np.bincount(track)
    parts = np.split(order, np.cumsum(count)[:-1])
    rows_of = {
        number: part[np.unique(np.linspace(0, len(part) - 1, _CROPS_PER_TRACK).astype(np.int64))]
        for number, part in enumerate(parts)
        if len(part)
    }
    others: dict[int, list[int]] = {}
    for first, second in np.asarray(simultaneous, np.int64).reshape(-1, 2).tolist():
        others.setdefault(first, []).append(second)
        others.setdefault(second, []).append(first)
    scores = []
    for number in sorted(others):
        own = rows_of.get(number, order[:0])
        found = [rows_of[other] for other in others[number] if other in rows_of]
        if len(own) < 2 or not found:
            continue
        half = len(own) // 2
        query = ready[own[:half]]
        right, wrong = query @ ready[own[half:]].T, np.sort(query @ ready[np.concatenate(found)].T, axis=1)
        moments = [
            value for part in (right, wrong) for value in (part.mean(), np.square(part, dtype=np.float64).mean())
        ]
        below = [np.searchsorted(w, r, side) for side in ("left", "right") for w, r in zip(wrong, right, strict=True)]
        auc = float(np.mean(below)) / wrong.shape[1]
        scores.append((number, auc, (right.max(axis=1) > wrong[:, -1]).mean(), *moments))
    columns = np.array(scores, np.float64).reshape(-1, 7)
    return TrackSeparation(columns[:, 0].astype(np.int64), columns[:, 1], columns[:, 2], columns[:, 3:])


def gain_interval(before: TrackSeparation, after: TrackSeparation, seed: int = 0) -> tuple[float, float] | None:
    """Return the 90 % interval of the gain in d′ (`distinctness`), by resampling the tracks (paired bootstrap).

    Returns:
        Lowest and highest gain; None with fewer than 20 tracks, or without any variance.

    Raises:
        DataError: the two are of different tracks.
    """
    if not np.array_equal(before.tracks, after.tracks):
        raise DataError("The two models were scored on different tracks. Score both on the same crops.")
    n = len(before.tracks)
    if n < FEWEST_TRACKS:
        return None
    drawn = np.random.default_rng(seed).integers(0, n, (_DRAWS, n))
    low, high = np.quantile(after.distinctness(drawn) - before.distinctness(drawn), [0.05, 0.95])
    return None if np.isnan(low + high) else (float(low), float(high))
