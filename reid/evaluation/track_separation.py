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


@dataclass(frozen=True, eq=False)
class TrackSeparation:
    """Scores of T' tracks that have two crops or more and are simultaneous with another track.

    Attributes:
        tracks: `[T']` int64, their numbers.
        auc: `[T']` 0..1: how often a later crop of the track is nearer to an earlier one than a crop of a simultaneous
            track is (ties count half); ½ is chance.
        rank1: `[T']` 0..1: fraction of the earlier crops whose nearest crop is of the track itself.
    """

    tracks: Integers
    auc: NDArray[np.float64]
    rank1: NDArray[np.float64]

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the means as plain values for JSON; None without tracks."""
        n = len(self.tracks)
        means = [round(float(column.mean()), 4) if n else None for column in (self.auc, self.rank1)]
        return {"tracks": n, "auc": means[0], "rank1": means[1]}


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
        {'tracks': 2, 'auc': 1.0, 'rank1': 1.0}
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
        below = [np.searchsorted(w, r, side) for side in ("left", "right") for w, r in zip(wrong, right, strict=True)]
        auc = float(np.mean(below)) / wrong.shape[1]
        scores.append((number, auc, float((right.max(axis=1) > wrong[:, -1]).mean())))
    columns = np.array(scores, np.float64).reshape(-1, 3)
    return TrackSeparation(columns[:, 0].astype(np.int64), columns[:, 1], columns[:, 2])


def gain_interval(before: TrackSeparation, after: TrackSeparation, seed: int = 0) -> tuple[float, float] | None:
    """Return the 90 % interval of the gain in (AUC + rank-1) / 2, by resampling the tracks (paired bootstrap).

    Returns:
        Lowest and highest mean gain; None with fewer than 20 tracks.

    Raises:
        DataError: the two are of different tracks.
    """
    if not np.array_equal(before.tracks, after.tracks):
        raise DataError("The two models were scored on different tracks. Score both on the same crops.")
    n = len(before.tracks)
    if n < FEWEST_TRACKS:
        return None
    gain = (after.auc - before.auc + after.rank1 - before.rank1) / 2
    drawn = gain[np.random.default_rng(seed).integers(0, n, (_DRAWS, n))].mean(axis=1)
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(low), float(high)
