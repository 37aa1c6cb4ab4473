"""Calibration without labels, from the tracks of single cameras."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from reid.core.arrays import UNKNOWN, column_codes, float_column, integer_column
from reid.core.errors import DataError
from reid.evaluation.calibration import Calibration
from reid.evaluation.curves import CameraPair, Floats, TooFew, fit_curve, overall_curve, quantiles
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric
from reid.evaluation.pairs import BINS, LabelledPairs, histogram
from reid.evaluation.protocol import Integers

NO_TRACK = -1

_CROPS_PER_TRACK = 16
_MOST_CROPS = 30_000
_FEWEST_ACROSS = 1000


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
    show one person: they are genuine pairs, of which the half with the larger time difference is used. Both kinds are
    nearer than pairs across cameras, because they have light, background and view in common. Therefore their distances
    are first mapped by a line `a + b · distance`, fitted by least squares so that the quartiles (¼, ½, ¾) of the
    impostor pairs become those of all pairs across cameras. Nearly all pairs across cameras are impostors, and a few
    genuine ones hardly move quartiles. Each pair of cameras has its own line.

    Corner cases:
    1. One camera only: no line; the calibration is for pairs within that camera.
    2. Of each track at most 16 crops, evenly spaced, are used, and fewer if there would be more than 30,000 crops.
    3. Rows of track -1 or camera -1 (unknown) are ignored; `notes` has their number. If more than 1 in 100 crops has
       another crop of its track at the same time, an error is raised: the numbers then do not identify tracks (in
       Market-1501's file names they identify videos).
    4. A person with two overlapping tracks (two boxes at once) becomes a false impostor pair. This makes distances
       look less reliable, and thresholds too strict.

    In the result, `identities` counts tracks and `identity_pairs` pairs of tracks that overlap. The prior is ½.

    Args:
        features: `[N, D]` numbers, as in `count_pairs`.
        camids: `[N]` integers; -1 means unknown.
        tracks: `[N]` integers, the number of a track within its camera.
        times: `[N]` numbers: frames or seconds, compared within a camera only.
        metric, fmr, model, memory_limit: as in `calibrate`.

    Raises:
        DataError: shapes that do not fit; a time that is not finite; a feature that is NaN, infinite or (cosine) zero;
            too few pairs, as in `calibrate`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> tracks = np.repeat(np.arange(40), 5)  # everyone in view at the same time
        >>> features = rng.normal(size=(40, 16))[tracks] + 0.3 * rng.normal(size=(200, 16))
        >>> calibration = calibrate_tracks(features, np.ones(200, int), tracks, np.tile(range(5), 40), fmr=0.01)
        >>> calibration.source, calibration.identities
        ('tracks', 40)
    """
    cameras = integer_column("camids", camids)
    local, clock = integer_column("tracks", tracks, len(cameras)), float_column("times", times, len(cameras))
    if not np.isfinite(clock).all():
        first_bad = int(np.argmin(np.isfinite(clock)))
        raise DataError(f"The time of row {first_bad} is {clock[first_bad]}. Pass finite numbers.")
    tracklet, start, end = _tracklets(cameras, np.where(cameras == UNKNOWN, NO_TRACK, local), clock)
    n_tracks = len(start)
    chosen = np.where(_spread(tracklet, clock), tracklet, -1)
    pairs = LabelledPairs(features, chosen, cameras, metric, cross_camera=False, distractor=None)
    times_of_pairs, of = clock[pairs.order], pairs.pids
    least_gap = _median_gap(of, times_of_pairs)
    genuine, impostor = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    across: dict[CameraPair, Integers] = {}
    overlapping: set[int] = set()
    for first, second, blocks in pairs.blocks(memory_limit):
        if first != second:
            counts = across[first, second] = np.zeros(BINS, dtype=np.int64)
            for block in blocks:
                counts += histogram(block.bins.reshape(-1), BINS)
            continue
        for block in blocks:
            flat = block.bins.reshape(-1)
            rows, columns = of[block.rows], of[block.columns]
            gaps = np.abs(times_of_pairs[block.rows][:, None] - times_of_pairs[block.columns][None])
            distant = gaps.reshape(-1)[block.genuine.cpu().numpy()] >= least_gap
            genuine += histogram(flat[block.genuine[torch.from_numpy(distant).to(flat.device)]], BINS)
            overlap = (start[rows][:, None] <= end[columns]) & (start[columns] <= end[rows][:, None])
            overlap &= rows[:, None] != columns
            overlap.reshape(-1)[block.ignored.cpu().numpy()] = False
            different = np.flatnonzero(overlap)
            impostor += histogram(flat[torch.from_numpy(different).to(flat.device)], BINS)
            row, column = np.divmod(different, len(columns))
            overlapping.update(np.unique(rows[row] * n_tracks + columns[column]).tolist())
    if not genuine.any() or not impostor.any():
        problem = "no two tracks of one camera overlap" if genuine.any() else "no track has two crops at two times"
        raise DataError(
            f"Calibration without labels is not possible: {problem} ({n_tracks:,} tracks in "
            f"{len(np.unique(pairs.camids))} cameras). Add longer or more tracks, or labels (a pid column)."
        )
    edges = pairs.edges
    line = _fit_line(edges, impostor, np.sum(list(across.values()), axis=0)) if across else (0.0, 1.0)
    mapped = ", their distances mapped by a line to those across cameras" if across else "; one camera only"
    overall = overall_curve(_mapped(edges, line), genuine, impostor, fmr, len(overlapping))
    histograms = (genuine.astype(np.float64), impostor.astype(np.float64), overall.genuine, overall.impostor)
    totals = {cameras: int(counts.sum()) for cameras, counts in across.items()}
    return Calibration(
        metric=metric,
        chosen_fmr=fmr,
        overall=overall,
        by_cameras={
            cameras: fit_curve(_mapped(edges, _fit_line(edges, impostor, counts)), *histograms)
            for cameras, counts in across.items()
            if totals[cameras] >= _FEWEST_ACROSS
        },
        too_few={cameras: TooFew(0, total) for cameras, total in totals.items() if total < _FEWEST_ACROSS},
        identities=n_tracks,
        identity_pairs=len(overlapping),
        model=model,
        source="tracks",
        notes={
            "pairs": f"crops of tracks of one camera that overlap in time, against crops of one track{mapped}",
            "images": len(of),
            "rows without a track or camera": int((tracklet < 0).sum()),
            "least time between genuine pairs": least_gap,
            "line": [float(f"{value:.6g}") for value in line],
        },
    )


def _tracklets(cameras: Integers, local: Integers, clock: Floats) -> tuple[Integers, Floats, Floats]:
    """Return the number of each row's track over all cameras `[N]` (−1: none), and the start and end of each track."""
    known = np.flatnonzero(local != NO_TRACK)
    if len(known) < 2:
        raise DataError(
            f"Calibration without labels is not possible: {len(known)} rows have a track and a camera (-1: none). "
            "Add a track column, or labels (a pid column)."
        )
    tracklet = np.full(len(local), -1, dtype=np.int64)
    tracklet[known] = column_codes([cameras[known], local[known]])
    distinct = np.unique(np.stack([tracklet[known], clock[known]]), axis=1).shape[1]
    if distinct < 0.99 * len(known):
        raise DataError(
            f"{len(known) - distinct:,} of {len(known):,} crops have another crop of their track at the same time, but "
            "a track is one person with one box at a time. Give each track of a camera its own number; the numbers of "
            "videos or sequences are not track numbers."
        )
    start, end = np.full(int(tracklet.max()) + 1, np.inf), np.full(int(tracklet.max()) + 1, -np.inf)
    np.minimum.at(start, tracklet[known], clock[known])
    np.maximum.at(end, tracklet[known], clock[known])
    return tracklet, start, end


def _spread(tracklet: Integers, clock: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the rows to use: a limited number of each track, evenly spaced in order of time."""
    order = np.lexsort((clock, tracklet))
    order = order[tracklet[order] >= 0]
    used = np.zeros(len(tracklet), dtype=bool)
    _, first, length = np.unique(tracklet[order], return_index=True, return_counts=True)
    most = int(np.clip(_MOST_CROPS // len(length), 2, _CROPS_PER_TRACK))
    for begin, n in zip(first, length, strict=True):
        used[order[begin + np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))]] = True
    return used


def _median_gap(of: Integers, times: Floats) -> float:
    """Return the median time between two crops of one track that differ in time; inf if there are none."""
    order = np.lexsort((times, of))
    of, times = of[order], times[order]
    gaps = [
        (times[step:] - times[:-step])[of[step:] == of[:-step]] for step in range(1, min(_CROPS_PER_TRACK, len(of)))
    ]
    positive = np.concatenate([gap[gap > 0] for gap in gaps]) if gaps else np.zeros(0)
    return float(np.median(positive)) if len(positive) else float("inf")


def _fit_line(edges: Floats, source: Integers, target: Integers) -> tuple[float, float]:
    """Return the line (a, b) that maps the quartiles of `source` to those of `target` by least squares."""
    quartiles = np.array([0.25, 0.5, 0.75])
    x, y = (quantiles(edges, counts.astype(np.float64), quartiles)[0] for counts in (source, target))
    if len(x) < 3 or len(y) < 3:
        raise DataError("The distances are almost all equal: these features do not separate people. Check the model.")
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return float(y.mean() - slope * x.mean()), slope


def _mapped(edges: Floats, line: tuple[float, float]) -> Floats:
    return np.asarray(np.maximum(line[0] + line[1] * edges, 0))
