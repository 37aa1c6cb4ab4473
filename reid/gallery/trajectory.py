"""Trajectories: hits of one person in time order, without hits that one person cannot have made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from reid.core.errors import check_number
from reid.gallery.times import describe_seconds, show_time
from reid.mtmc.constraints import REASONS, Constraints, compile_rules
from reid.mtmc.ground import FAR_APART, FASTEST
from reid.mtmc.tracklets import Tracklets

if TYPE_CHECKING:
    from reid.gallery.answers import Hit
    from reid.mtmc.cameras import Cameras

MAX_HITS = 100
"""Most hits that are chained, the nearest first."""

MAX_ERROR = 10.0
"""Standard deviation in metres above which a position on the ground is not used."""

TIME_UNKNOWN, NOT_CHAINED = "time unknown", f"not among the {MAX_HITS} nearest hits"
"""Reasons without another hit."""


@dataclass(frozen=True, eq=False)
class Step:
    """One sighting of a trajectory.

    Attributes:
        hit: of a search.
        confirmed: a person has confirmed it.
        gap: seconds from the end of the step before to the start of this one; negative while both cameras see the
            person; None for the first step.
        expected: least and largest seconds from the camera before to this one (`Cameras.transition_times`, else those
            that `reid match` learned), infinite where unknown; None for the first step and where nothing is known.
        learned: whether `expected` was learned. Such times are usual ones, and no rule.
    """

    hit: Hit
    confirmed: bool
    gap: float | None
    expected: tuple[float, float] | None
    learned: bool = False

    @property
    def is_late(self) -> bool:
        """Whether the gap is longer than the largest expected one: a sighting in between may be missing."""
        return self.gap is not None and self.expected is not None and self.gap > self.expected[1]

    @property
    def is_early(self) -> bool:
        """Whether the gap is shorter than the smallest expected one. One of the two hits may be another person."""
        return self.gap is not None and self.expected is not None and self.gap < self.expected[0]

    def describe_gap(self) -> str:
        """Return the time since the step before as text; empty for the first step."""
        if self.gap is None:
            return ""
        note = " (late)" if self.is_late else " (early)" if self.is_early else ""
        return ("at the same time" if self.gap < 0 else describe_seconds(self.gap)) + note

    def describe_duration(self) -> str:
        """Return how long the person was seen as text."""
        return describe_seconds(((self.hit.end or 0) - _start(self.hit)) / 1000)


@dataclass(frozen=True, eq=False)
class Dropped:
    """A hit that is not part of the trajectory.

    Attributes:
        hit: of a search.
        reason: the rule (`constraints.REASONS`) that it breaks together with a step, or why it was not compared.
        step: index of that step in `Trajectory.steps`; None if there is none.
        gap: seconds between the two, from the end of the earlier one to the start of the later one.
    """

    hit: Hit
    reason: str
    step: int | None = None
    gap: float | None = None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Where a person was, and when.

    Attributes:
        steps: by start; ties: by end.
        dropped: the other hits, the nearest first.
    """

    steps: list[Step]
    dropped: list[Dropped]

    def describe(self) -> str:
        """Return the numbers of steps, cameras and dropped hits in one sentence."""
        if not self.steps:
            return f"No trajectory: none of {len(self.dropped)} hits has a time."
        cameras = {step.hit.camera for step in self.steps}
        dropped = f"; {_count(len(self.dropped), 'hit')} dropped" if self.dropped else ""
        return f"Trajectory of {_count(len(self.steps), 'sighting')} by {_count(len(cameras), 'camera')}{dropped}."

    def columns(self, zone: str = "UTC") -> dict[str, list[Any]]:
        """Return the steps as columns of text and numbers, with times in a time zone."""
        return {
            "step": list(range(1, len(self.steps) + 1)),
            "camera": [step.hit.camera or "unknown" for step in self.steps],
            "from": [show_time(step.hit.start, zone) for step in self.steps],
            "seen for": [step.describe_duration() for step in self.steps],
            "after": [step.describe_gap() for step in self.steps],
            "distance": [round(step.hit.distance, 4) for step in self.steps],
        }

    def describe_dropped(self, zone: str = "UTC") -> list[str]:
        """Return a line for each dropped hit: camera, time in a time zone, and the reason."""
        lines = []
        for one in self.dropped:
            when = "" if one.hit.start is None else f", {show_time(one.hit.start, zone)}"
            line = f"{one.hit.camera or 'unknown camera'}{when}: {one.reason}"
            if one.step is not None and one.gap is not None:
                gap = "at the same time" if one.gap < 0 else f"{describe_seconds(one.gap)} apart"
                line += f" (with step {one.step + 1}, {self.steps[one.step].hit.camera or 'unknown camera'}, {gap})"
            lines.append(line)
        return lines

    def as_dict(self, hits: Sequence[Hit]) -> dict[str, Any]:
        """Return plain Python, ready for JSON: hits are indices into `hits`, infinite seconds None."""
        number = {id(hit): index for index, hit in enumerate(hits)}

        def finite(seconds: float | None) -> float | None:
            return None if seconds is None or np.isinf(seconds) else round(seconds, 3)

        return {
            "steps": [
                {
                    "hit": number[id(step.hit)],
                    "confirmed": step.confirmed,
                    "gap_s": finite(step.gap),
                    "expected_s": None if step.expected is None else [finite(bound) for bound in step.expected],
                    "expected_is_learned": step.learned,
                    "late": step.is_late,
                    "early": step.is_early,
                }
                for step in self.steps
            ],
            "dropped": [
                {"hit": number[id(one.hit)], "reason": one.reason, "step": one.step, "gap_s": finite(one.gap)}
                for one in self.dropped
            ],
        }


def find_trajectory(
    hits: Sequence[Hit],
    cameras: Cameras | None = None,
    *,
    confirmed: Collection[str] = (),
    tolerance: float = 0.0,
    learned: Mapping[tuple[str, str], tuple[float, float]] | None = None,
) -> Trajectory:
    """Chain hits over cameras, and drop hits that are impossible together with better ones.

    Rules of pairs are those of `reid.match`: a person is not twice in one camera, nor in two cameras that do not
    overlap, at one time, and needs at least the transition time from one camera to another; and where positions on the
    ground are known (`ground_positions`), does not walk faster than 3 m/s (`ground.FASTEST`). Of all sets of hits
    without a forbidden pair, the one with the largest sum of −log(strangers) is kept, where `strangers` is the expected
    number of strangers (`Hit.strangers`): the product of these numbers is smallest. Hits without this number weigh
    1 − distance. The set is exact (mixed-integer programming); ties go to nearer hits.

    Args:
        hits: of one person, such as `Answer.accepted`; pass no hits that chance explains. Those without a time are
            dropped, and of more than `MAX_HITS` only the nearest are used.
        cameras: transition times and overlaps. Without them only the rule of one camera is known.
        confirmed: ids of tracklets that are this person for certain. They are never dropped, even if two of them break
            a rule.
        tolerance: seconds by which clocks may be wrong (`Constraints.tolerance`).
        learned: usual least and largest seconds from one camera to another (`learned_times`). They drop no hit: steps
            outside are late or early. For pairs that `cameras` has times of, those count.

    Raises:
        ConfigError: `tolerance` is negative.

    Example:
        >>> from reid.gallery import Hit
        >>> from reid.mtmc.cameras import Camera, Cameras
        >>> cameras = Cameras({"a": Camera(), "b": Camera()}, transition_times={("a", "b"): (12.0, 60.0)})
        >>> def hit(camera, start, end, strangers):
        ...     times = {"start": 1000 * start, "end": 1000 * end, "crops": 1}
        ...     known = {"probability": None, "accepted": True, "gallery": "g", "source": "s", "identity": None}
        ...     return Hit(0.1, strangers, tracklet=f"{camera}{start}", camera=camera, track=1, **times, **known)
        >>> found = find_trajectory([hit("a", 0, 5, 1e-4), hit("b", 20, 30, 1e-2), hit("b", 8, 9, 0.05)], cameras)
        >>> [(step.hit.tracklet, step.gap) for step in found.steps]
        [('a0', None), ('b20', 15.0)]
        >>> [(one.hit.tracklet, one.reason, one.gap) for one in found.dropped]
        [('b8', 'shorter than the transition time', 3.0)]
    """
    check_number("tolerance (seconds)", tolerance)
    ranked = sorted(hits, key=lambda hit: (hit.tracklet not in confirmed, hit.distance, hit.tracklet))
    timed = [hit for hit in ranked if hit.start is not None and hit.end is not None]
    used, extra = timed[:MAX_HITS], timed[MAX_HITS:]
    certain = np.array([hit.tracklet in confirmed for hit in used], bool)
    reason = _forbidden(used, cameras, tolerance)
    reason[np.ix_(certain, certain)] = 0
    kept = np.flatnonzero(_heaviest(np.array([_weight(hit) for hit in used]), reason > 0, certain))
    kept = np.array(sorted(kept.tolist(), key=lambda row: (used[row].start, used[row].end, row)), np.int64)
    steps: list[Step] = []
    usual = learned or {}
    for row in kept.tolist():
        hit, before = used[row], steps[-1].hit if steps else None
        gap = None if before is None else _gap(before, hit)
        expected = None
        names = ("", "") if before is None else (str(before.camera), str(hit.camera))
        known = {} if cameras is None or before is None else cameras.transition_times
        is_learned = before is not None and names not in known and names in usual
        if is_learned:
            expected = usual[names]
        elif before is not None and cameras is not None:
            expected = known.get(names, (-np.inf, np.inf))
        steps.append(Step(hit, bool(certain[row]), gap, expected, is_learned))
    dropped = []
    for row in np.setdiff1d(np.arange(len(used)), kept).tolist():
        gaps = {
            step: _gap(*sorted((used[row], steps[step].hit), key=_start))
            for step in np.flatnonzero(reason[row, kept]).tolist()
        }
        step = min(gaps, key=lambda step: abs(gaps[step]))
        dropped.append(Dropped(used[row], REASONS[reason[row, kept[step]]], step, gaps[step]))
    dropped += [Dropped(hit, NOT_CHAINED) for hit in extra]
    dropped += [Dropped(hit, TIME_UNKNOWN) for hit in ranked if hit.start is None or hit.end is None]
    return Trajectory(steps, dropped)


def ground_positions(hit: Hit, cameras: Cameras | None) -> NDArray[np.float64]:
    """Return where a hit was on the ground, `[K, 4]`: seconds since 1970, x, y and the standard deviation in metres.

    One row for each stored crop whose time and box are known, if its camera has a homography, by time. Positions with
    an error above `MAX_ERROR`, such as those at the horizon, are left out.
    """
    camera = None if cameras is None or hit.camera is None else cameras.cameras.get(hit.camera)
    seen = [(one.time, one.box) for one in hit.seen if one.time is not None and one.box is not None]
    if camera is None or camera.homography is None or not seen:
        return np.zeros((0, 4))
    boxes = np.array([box for _, box in seen], np.float64)
    seconds = np.array([time / 1000 for time, _ in seen])
    found = np.column_stack([seconds, camera.ground(boxes), camera.ground_error(boxes)])
    found = found[np.isfinite(found).all(axis=1) & (found[:, 3] <= MAX_ERROR)]
    return found[np.argsort(found[:, 0], kind="stable")]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _start(hit: Hit) -> int:
    return hit.start or 0


def _gap(earlier: Hit, later: Hit) -> float:
    return (_start(later) - (earlier.end or 0)) / 1000


def _weight(hit: Hit) -> float:
    evidence = 1 - hit.distance if hit.strangers is None else -np.log(max(hit.strangers, 1e-300))
    return max(float(evidence), 0.0)


def _forbidden(hits: Sequence[Hit], cameras: Cameras | None, tolerance: float) -> NDArray[np.int8]:
    """Return which rule forbids each pair of hits `[n, n]`, as an index into `REASONS`; 0: none."""
    n = len(hits)
    reason = np.zeros((n, n), np.int8)
    if n < 2:
        return reason
    # An unknown camera is not the same as another one, so each of them has a name that no camera has.
    names = [f"\0{row}" if hit.camera is None else hit.camera for row, hit in enumerate(hits)]
    known = sorted(set(names))
    first = min(map(_start, hits))
    rows = np.repeat(np.arange(n), 2)
    seconds = np.array([(time - first) / 1000 for hit in hits for time in (_start(hit), hit.end or 0)])
    camera = np.array([known.index(name) for name in names])[rows]
    frames = np.tile([1, 2], n)
    tracklets = Tracklets.from_features(known, camera, rows, frames, np.zeros((2 * n, 1), np.float32), seconds)
    rules = compile_rules(tracklets, cameras, Constraints(tolerance=tolerance))
    i, j = (pair.ravel() for pair in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    found = rules.violations(i, j)
    found[i == j] = 0
    reason[tracklets.track[i], tracklets.track[j]] = found
    reason[(reason == 0) & _too_fast(hits, cameras, tolerance)] = REASONS.index("faster than the maximum speed")
    return reason


def _too_fast(hits: Sequence[Hit], cameras: Cameras | None, tolerance: float) -> NDArray[np.bool_]:
    """Return `[n, n]` whether hits are farther from each other than a person walks meanwhile (`FAR_APART` errors)."""
    fast = np.zeros((len(hits), len(hits)), bool)
    paths = {row: ground_positions(hit, cameras) for row, hit in enumerate(hits)}
    known = [row for row, path in paths.items() if len(path)]
    if not known:
        return fast
    last, first = (np.array([paths[row][end] for row in known]) for end in (-1, 0))
    seconds = first[None, :, 0] - last[:, None, 0]
    distance = np.linalg.norm(first[None, :, 1:3] - last[:, None, 1:3], axis=2)
    reach = FASTEST * (seconds + tolerance) + FAR_APART * np.hypot(first[None, :, 3], last[:, None, 3])
    wrong = (seconds >= 0) & (distance > reach)
    fast[np.ix_(known, known)] = wrong | wrong.T
    return fast


def _heaviest(weights: NDArray[np.float64], conflict: NDArray[np.bool_], certain: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the set `[n]` without a conflict that has the largest sum of weights; `certain` ones are in it."""
    n = len(weights)
    i, j = np.nonzero(np.triu(conflict))
    if not len(i):
        return np.ones(n, bool)
    scaled = 1e6 * weights / max(float(weights.max()), 1e-9) + 1 - np.arange(n) / (n * n)  # ties: more, then nearer
    pairs = np.tile(np.arange(len(i)), 2)
    matrix = coo_array((np.ones(2 * len(i)), (pairs, np.concatenate([i, j]))), shape=(len(i), n)).tocsr()
    limits = LinearConstraint(matrix, -np.inf, 1)
    bounds = Bounds(certain.astype(float), np.ones(n))
    found = milp(-scaled, integrality=np.ones(n), bounds=bounds, constraints=limits, options={"mip_rel_gap": 0.0})
    return np.asarray(found.x) > 0.5
