"""Place one camera's ground plane on that of another from the paths of the people whom both see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import concatenated_ranges
from reid.data.tracks import Floats, Integers, Tracks
from reid.mtmc.cameras import HIDDEN_FEET, Camera
from reid.mtmc.ground import CORRELATION_SECONDS
from reid.mtmc.pooling import Mask

STEP = 0.25
"""Seconds between two samples of a path."""

MAX_OFFSETS = (2.0, 5.0)
"""Largest difference of two clocks in seconds that is looked for; the second if nothing is found within the first."""

SCALES = (0.7, 1.43)
"""Least and largest ratio of the scales of two ground planes; both come from the heights of people."""

SLACK = 0.5
"""Error in metres of a ground plane from heights, in addition to that of the foot points."""

MISSED = 0.25
"""Probability that a camera does not find a person in its view."""

MIN_SHARED = 1.5
"""Seconds that two paths must overlap, and metres that they lead, to be compared."""

MIN_PAIRS = 3
"""Pairs of tracklets that must coincide in the half of the recording that was not used."""

MIN_LOG_RATIO = 8.0
"""Log-likelihood ratio that is needed in the half of the recording that was not used."""

MIN_CLOCK_MARGIN = 5.0
"""Log-likelihood ratio by which a result must be better than the best one at another clock offset."""

MAX_DISAGREEMENT = 1.5
"""Metres that the results of the two halves may differ by, in the median over all positions."""

_SHIFTS = 19
_MAX_HINTS = 30
_MAX_PICKS = 15  # pairs of hints that are tried together, for each clock offset
_REFINED = 5  # hypotheses that are refined
_THIN = 3  # of every so many samples one is used to compare hypotheses
_MAX_SAMPLES = 4000


@dataclass(frozen=True, eq=False)
class Walks:
    """Samples of the paths in one camera, on its own ground plane, `[N]` each.

    Attributes:
        tick: Time in steps of `STEP`.
        row: Tracklet.
        place: `[N, 2]` metres.
        error: Standard deviation in metres.
        velocity: `[N, 2]` metres per second.
    """

    tick: Integers
    row: Integers
    place: Floats
    error: Floats
    velocity: Floats

    def take(self, rows: NDArray[np.bool_] | Integers) -> Walks:
        """Return some of the samples."""
        return Walks(self.tick[rows], self.row[rows], self.place[rows], self.error[rows], self.velocity[rows])


@dataclass(frozen=True, eq=False)
class Similarity:
    """`place ↦ turn · place + shift` of complex numbers, at a clock offset: first camera → second camera."""

    turn: complex
    shift: complex
    offset: int

    def __call__(self, places: Floats) -> Floats:
        """Map `[N, 2]`."""
        mapped = self.turn * (places[:, 0] + 1j * places[:, 1]) + self.shift
        return np.column_stack([mapped.real, mapped.imag])


@dataclass(frozen=True, eq=False)
class Pair:
    """Two cameras, their samples, and what the second one sees.

    Attributes:
        first, second: Samples.
        view: Camera of the second, with its own ground plane and the size of the frame.
        area: m² of the ground where the second camera sees people.
    """

    first: Walks
    second: Walks
    view: Camera
    area: float
    _meetings: dict[int, tuple[Integers, Integers]] = field(init=False, default_factory=dict)

    def during(self, low: float, high: float) -> Pair:
        """Return the pair in a part of the time, in ticks."""
        first, second = (walks.take((walks.tick >= low) & (walks.tick < high)) for walks in (self.first, self.second))
        return replace(self, first=first, second=second)

    def meet(self, offset: int) -> tuple[Integers, Integers]:
        """Places of all samples of the first and of the second that are simultaneous."""
        if offset in self._meetings:
            return self._meetings[offset]
        order = np.argsort(self.second.tick, kind="stable")
        tick = self.second.tick[order]
        low = np.searchsorted(tick, self.first.tick + offset, "left")
        count = np.searchsorted(tick, self.first.tick + offset, "right") - low
        one = np.repeat(np.arange(len(self.first.tick)), count)
        other = concatenated_ranges(low, count)
        self._meetings[offset] = one, order[other]
        return one, order[other]


def log_ratio(pair: Pair, similarity: Similarity, slack: float = SLACK) -> float:
    """Log-likelihood ratio that the cameras are placed like this, against cameras that see unrelated people.

    Each position of the first camera that is in view of the second has the likelihood
    `MISSED + (1 − MISSED) · A · mean N(d)`, over the people at distances d that the second camera sees then; A is the
    area of its view, in which people are anywhere otherwise. Positions are `STEP` apart and count `STEP` /
    `CORRELATION_SECONDS` each.
    """
    one, other = pair.meet(similarity.offset)
    mapped = similarity(pair.first.place)
    square = ((mapped[one] - pair.second.place[other]) ** 2).sum(axis=1)
    scale = abs(similarity.turn)
    variance = (scale * pair.first.error[one]) ** 2 + pair.second.error[other] ** 2 + slack**2
    density = np.exp(-square / (2 * variance)) / (2 * np.pi * variance)
    n = len(mapped)
    total, count = np.bincount(one, density, minlength=n), np.bincount(one, minlength=n)
    ratio = np.log(MISSED + (1 - MISSED) * pair.area * total / np.maximum(count, 1))
    tick = pair.first.tick + similarity.offset
    recorded = (tick >= pair.second.tick.min(initial=2**62)) & (tick <= pair.second.tick.max(initial=-1))
    return float(ratio[recorded & _in_view(pair.view, mapped)].sum()) * STEP / CORRELATION_SECONDS


def _in_view(camera: Camera, places: Floats) -> NDArray[np.bool_]:
    """Whether a person at each place of the camera's ground plane is in its frame, not at its border."""
    matrix = np.linalg.inv(camera.homography)
    points = np.column_stack([places, np.ones(len(places))]) @ matrix.T
    origin = np.array([0.0, 1.0, 1.0]) @ matrix.T  # A place ahead of the camera has the sign of those in front of it.
    ahead = points[:, 2] * origin[2] > 0
    width, height = camera.size or (0, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (points[:, :2] / points[:, 2:]).T
    margin = 0.05
    inside = (x > margin * width) & (x < (1 - margin) * width) & (y > margin * height) & (y < (1 - margin) * height)
    return np.asarray(ahead & inside)


def coincidences(pair: Pair, similarity: Similarity, tolerance: float) -> list[tuple[int, int, Integers, Integers]]:
    """Pairs of tracklets that are within `tolerance` metres of each other, in the median over `MIN_SHARED` or more.

    Returns:
        For each the two rows, and the places of their simultaneous samples. Each tracklet is in the pairs with others
        that are closest to it only, as far as these overlap in time.
    """
    one, other = pair.meet(similarity.offset)
    if len(one) == 0:
        return []
    distance = np.linalg.norm(similarity(pair.first.place)[one] - pair.second.place[other], axis=1)
    rows, number = np.unique(pair.first.row[one] * 2**31 + pair.second.row[other], return_inverse=True)
    count, close = np.bincount(number), np.bincount(number, distance <= tolerance)
    found = []
    for pick in np.flatnonzero((count * STEP >= MIN_SHARED) & (2 * close >= count)).tolist():
        part = np.flatnonzero(number == pick)
        found.append((float(np.median(distance[part])), *divmod(int(rows[pick]), 2**31), part))
    taken: dict[tuple[int, int], Integers] = {}
    kept = []
    for _, a, b, part in sorted(found, key=lambda item: item[:3]):
        ticks = pair.first.tick[one[part]]
        if all(len(np.intersect1d(ticks, taken.get(key, ticks[:0]))) < len(ticks) / 2 for key in ((0, a), (1, b))):
            kept.append((a, b, one[part], other[part]))
            for key in ((0, a), (1, b)):
                taken[key] = np.append(taken.get(key, ticks[:0]), ticks)
    return kept


def _fit(pair: Pair, one: Integers, other: Integers, offset: int) -> Similarity | None:
    """Similarity of simultaneous samples by RANSAC; None if there is none of a possible scale."""
    cv2.setRNGSeed(0)
    matrix, _ = cv2.estimateAffinePartial2D(
        pair.first.place[one], pair.second.place[other], method=cv2.RANSAC, ransacReprojThreshold=1.0, maxIters=50
    )
    if matrix is None or not np.isfinite(matrix).all():
        return None
    turn = complex(matrix[0, 0], matrix[1, 0])
    if abs(turn) < 1e-6:
        return None
    middle = (np.median(pair.first.place[one], axis=0), np.median(pair.second.place[other], axis=0))
    limited = turn / abs(turn) * float(np.clip(abs(turn), *SCALES))
    shift = complex(matrix[0, 2], matrix[1, 2])
    if limited != turn:
        shift = complex(*middle[1]) - limited * complex(*middle[0])
    return Similarity(limited, shift, offset)


def find_similarity(pair: Pair, hints: Sequence[tuple[int, int]], max_offset: float) -> tuple[Similarity, float] | None:
    """Find the most likely placement of the first camera on the ground plane of the second, and its log ratio.

    Hypotheses are similarities of one or two hinted pairs of tracklets, at clock offsets up to a limit. The best
    ones are fitted to all coinciding pairs, with or without a hint, and evaluated again.

    Args:
        pair: Samples.
        hints: Rows of tracklets that may be one person.
        max_offset: Limit of the clock offset in seconds.
    """
    rng = np.random.default_rng(0)
    steps = round(max_offset / STEP)
    hypotheses: list[tuple[float, int, Similarity]] = []
    coarse = replace(pair, first=pair.first.take(pair.first.tick % _THIN == 0))
    for offset in range(-steps, steps + 1, 2):
        one, other = pair.meet(offset)
        rows = pair.first.row[one], pair.second.row[other]
        shared = []
        for a, b in hints:
            part = np.flatnonzero((rows[0] == a) & (rows[1] == b))
            if len(part) * STEP >= MIN_SHARED and np.ptp(pair.first.place[one[part]], axis=0).max() >= MIN_SHARED:
                shared.append(part)
        picks = [[number] for number in range(len(shared))]
        if len(shared) > 1:
            number = min(_MAX_PICKS, len(shared) * (len(shared) - 1) // 2)
            picks += [rng.choice(len(shared), 2, replace=False).tolist() for _ in range(number)]
        for pick in picks:
            part = np.concatenate([shared[number] for number in pick])
            found = _fit(pair, one[part], other[part], offset)
            if found is not None:
                hypotheses.append((log_ratio(coarse, found, 2 * SLACK), len(hypotheses), found))
    best: tuple[Similarity, float] | None = None
    for _, _, similarity in sorted(hypotheses, reverse=True, key=lambda item: item[:2])[:_REFINED]:
        refined = _refine(pair, similarity)
        value = log_ratio(pair, refined)
        if best is None or value > best[1]:
            best = refined, value
    return best


def _refine(pair: Pair, similarity: Similarity) -> Similarity:
    """Fit a similarity to all pairs of tracklets that coincide, at the best clock offset nearby."""
    value = log_ratio(pair, similarity)
    for tolerance, offsets in ((2.0, (0,)), (1.0, (0, -1, 1)), (1.0, (0,))):
        for offset in offsets:
            moved = replace(similarity, offset=similarity.offset + offset)
            if abs(moved.offset) * STEP > MAX_OFFSETS[-1]:
                continue
            found = coincidences(pair, moved, tolerance)
            if not found:
                continue
            one, other = (np.concatenate([item[side] for item in found]) for side in (2, 3))
            fitted = _fit(pair, one, other, moved.offset)
            if fitted is not None and (better := log_ratio(pair, fitted)) > value:
                similarity, value = fitted, better
    return similarity


@dataclass(frozen=True, eq=False)
class Alignment:
    """Result for a pair of cameras.

    Attributes:
        first, second: Names.
        accepted: Whether each half of the recording supports the result of the other.
        reason: Why not; empty if accepted.
        similarity: From the ground plane of the first to that of the second; None if there is none.
        log_ratio: Of each half, with the result of the other; shorter if it was not needed.
        inliers: Pairs of tracklets that coincide.
        samples: Places of their simultaneous samples in `Pair.first` and `Pair.second`.
    """

    first: str
    second: str
    accepted: bool
    reason: str
    similarity: Similarity | None = None
    log_ratio: tuple[float, ...] = ()
    inliers: int = 0
    samples: tuple[Integers, Integers] = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def simultaneous_pairs(pair: Pair) -> list[tuple[int, int]]:
    """Rows of the tracklets that overlap in time, those with the longest overlap and lead farthest first."""
    one, other = pair.meet(0)
    rows, number = np.unique(pair.first.row[one] * 2**31 + pair.second.row[other], return_inverse=True)
    low, high = np.full((2, len(rows), 2), np.inf)
    np.minimum.at(low, number, pair.first.place[one])
    np.minimum.at(high, number, -pair.first.place[one])
    length = np.minimum(np.bincount(number, minlength=len(rows)) * STEP, np.linalg.norm(-high - low, axis=1))
    order = np.argsort(-length, kind="stable")
    return [divmod(code, 2**31) for code in rows[order].tolist()]


def align(pair: Pair, hints: Sequence[tuple[int, int]], names: tuple[str, str]) -> Alignment:
    """Place the first camera on the ground plane of the second, and test it on trajectories that it was not fitted to.

    Each half of the recording gives a result, which is evaluated on the other half, without appearance. The result of
    the whole recording is accepted if in both halves

    1. the log ratio of the other's result is at least `MIN_LOG_RATIO`, and larger than with the second camera's time
       shifted (19 shifts, p ≤ 0.05 for each half);
    2. `MIN_PAIRS` pairs of tracklets or more coincide by it;
    3. it differs by at most `MAX_DISAGREEMENT` metres from the result of the whole recording.

    Where everyone walks in one direction at one speed, a wrong clock looks like a shift of the ground. So the result is
    also refused if another clock offset, 0.5 s away, is nearly as likely (`MIN_CLOCK_MARGIN`).

    Args:
        pair: Samples.
        hints: Rows of tracklets that may be one person, the best first.
        names: Of the cameras.
    """

    def refuse(reason: str, similarity: Similarity | None = None, values: Sequence[float] = ()) -> Alignment:
        return Alignment(*names, False, reason, similarity, tuple(values))

    hints = list(hints)[:_MAX_HINTS]
    if len(hints) < 2 * MIN_PAIRS:
        return refuse(f"only {len(hints)} simultaneous matches")
    for limit in MAX_OFFSETS:
        whole = find_similarity(pair, hints, limit)
        if whole is not None and whole[1] >= MIN_LOG_RATIO and abs(whole[0].offset) * STEP < limit - 2 * STEP:
            break
    if whole is None:
        return refuse("no simultaneous match is long enough")
    similarity = whole[0]
    if whole[1] < MIN_LOG_RATIO:
        return refuse(f"the paths do not coincide (log ratio {whole[1]:.1f})", similarity)
    if abs(similarity.offset) * STEP >= MAX_OFFSETS[-1]:
        return refuse(f"the clocks seem to differ by {MAX_OFFSETS[-1]:g} s or more", similarity)
    rival = max(_at_other_offset(pair, similarity, steps) for steps in (-2, 2))
    if whole[1] - rival < MIN_CLOCK_MARGIN:
        return refuse("clock and position cannot be told apart, because people walk in one direction", similarity)
    middle = float(np.median(pair.first.tick))
    halves = pair.during(-np.inf, middle), pair.during(middle, np.inf)
    values = []
    for used, held_out in (halves, halves[::-1]):
        found = find_similarity(used, hints, limit)
        if found is None:
            return refuse("half of the recording has no simultaneous match that is long enough")
        gap = np.linalg.norm(found[0](pair.first.place) - similarity(pair.first.place), axis=1)
        gap = gap[_in_view(pair.view, similarity(pair.first.place))]
        value = log_ratio(held_out, found[0])
        values.append(value)
        wrong_times = (log_ratio(_shifted(held_out, number), found[0]) for number in range(1, _SHIFTS + 1))
        if value < MIN_LOG_RATIO or value <= max(wrong_times):
            return refuse(
                f"trajectories that were not used do not support it (log ratio {value:.1f})", similarity, values
            )
        support = coincidences(held_out, found[0], 2 * SLACK)
        if len(support) < MIN_PAIRS:
            return refuse(f"only {len(support)} trajectories that were not used support it", similarity, values)
        if len(gap) == 0 or float(np.median(gap)) > MAX_DISAGREEMENT:
            return refuse(f"the halves of the recording disagree by {np.median(gap):.1f} m", similarity, values)
    found_pairs = coincidences(pair, similarity, 2 * SLACK)
    one, other = (np.concatenate([item[side] for item in found_pairs]) for side in (2, 3))
    return Alignment(*names, True, "", similarity, tuple(values), len(found_pairs), (one, other))


def _at_other_offset(pair: Pair, similarity: Similarity, steps: int) -> float:
    """Log ratio of the best similarity near this one, but `steps` earlier or later."""
    moved = replace(similarity, offset=similarity.offset + steps)
    value = log_ratio(pair, moved)
    for _ in range(3):
        found = coincidences(pair, moved, 2.0)
        if not found:
            break
        one, other = (np.concatenate([item[side] for item in found]) for side in (2, 3))
        fitted = _fit(pair, one, other, moved.offset)
        if fitted is None:
            break
        moved, value = fitted, max(value, log_ratio(pair, fitted))
    return value


def _shifted(pair: Pair, number: int) -> Pair:
    """Return the pair with the second camera's time moved around in a circle, so that no one is simultaneous."""
    tick = pair.second.tick
    if len(tick) == 0:
        return pair
    low, length = int(tick.min()), int(np.ptp(tick)) + 1
    moved = (tick - low + number * length // (_SHIFTS + 1)) % length + low
    return replace(pair, second=replace(pair.second, tick=moved))


def sample_walks(tracks: Tracks, tracklet: Integers, hidden: Mask, camera: int, view: Camera) -> Walks:
    """Sample the paths of a camera's tracklets every `STEP` seconds, on the ground plane of `view`.

    Args:
        tracks: N boxes.
        tracklet: `[N]`, as `tracklet_of_boxes` returns it.
        hidden: `[N]`, as `hidden_feet` returns it.
        camera: number.
        view: its ground plane and clock.
    """
    boxes = np.flatnonzero(tracks.camera == camera)
    row = tracklet[boxes]
    place, error = view.ground(tracks.boxes[boxes]), view.ground_error(tracks.boxes[boxes])
    error = np.where(hidden[boxes], HIDDEN_FEET * error, error)
    seconds = view.seconds(tracks.frame[boxes])
    good = np.isfinite(place).all(axis=1) & np.isfinite(error) & (error < 2.5)
    none = np.zeros((0, 2))
    parts = [Walks(np.zeros(0, np.int64), np.zeros(0, np.int64), none, np.zeros(0), none)]
    for number in np.unique(row[good]).tolist():
        part = np.flatnonzero(good & (row == number))
        part = part[np.argsort(seconds[part], kind="stable")]
        tick = np.arange(np.ceil(seconds[part[0]] / STEP), np.floor(seconds[part[-1]] / STEP) + 1)
        nearest = np.searchsorted(seconds[part], tick * STEP).clip(1, max(len(part) - 1, 1))
        gap = seconds[part][np.minimum(nearest, len(part) - 1)] - seconds[part][nearest - 1]
        columns = (place[part, 0], place[part, 1], error[part])
        x, y, s = (np.interp(tick * STEP, seconds[part], column) for column in columns)
        places = np.column_stack([x, y])
        velocity = np.gradient(places, STEP, axis=0) if len(tick) > 1 else np.zeros_like(places)
        walk = Walks(tick.astype(np.int64), np.full(len(tick), number), places, s, velocity)
        parts.append(walk.take(gap <= 4 * STEP))
    columns_of = [np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])]
    walks = Walks(*columns_of)
    kept = np.unique(walks.tick)
    if len(walks.tick) > _MAX_SAMPLES:  # The beginning of a long recording is enough.
        kept = kept[: max(1, int(len(kept) * _MAX_SAMPLES / len(walks.tick)))]
    return walks.take(np.isin(walks.tick, kept))
