"""Find what would explain a low score: frame numbers, box corners, another resolution, frames without truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.spatial.distance import cdist

from reid.core.arrays import boxes_of_corners
from reid.data.tracks import MIN_SIDE, Floats, Integers, Tracks
from reid.mtmc.box_pairs import common_cameras
from reid.mtmc.scores import ScoreCause, TrackScores, id_scores, score_tracks

MIN_GAIN = 0.01
"""Smallest gain in IDF1 that makes a cause worth reporting."""

_SAMPLE = 200  # timesteps that the scale of another resolution is estimated from


def find_score_causes(truth: Tracks, predicted: Tracks, idf1: float, *, iou: float = 0.5) -> list[ScoreCause]:
    """Try common mistakes of track files; return those that would raise IDF1 by `MIN_GAIN` or more, the best first.

    Tried are: frame numbers that differ by 1; corners (x2, y2) or centres in place of sizes and upper left corners;
    boxes in pixels of another resolution; and frames that only one side has.

    Args:
        truth, predicted: As given to `score_tracks`.
        idf1: Their IDF1 over all cameras, 0..1.
        iou: Smallest IoU of a match.

    Example:
        >>> truth = Tracks.from_columns(["a"], [0, 0], [1, 1], [1, 2], [[0, 0, 10, 20], [30, 0, 10, 20]])
        >>> print(find_score_causes(truth, truth.shift_frames(1), 0.0)[0].describe())
        IDF1 would be 100.0 if 1 were subtracted from the frame numbers of the predicted tracks. \
Pass --truth-first-frame 0 --predicted-first-frame 1.
    """
    if not len(truth) or not len(predicted):
        return []
    causes = []
    for change, fix, other_truth, other_predicted in _changes(truth, predicted):
        changed = id_scores(other_truth, other_predicted, iou=iou).IDF1
        if changed >= idf1 + MIN_GAIN:
            causes.append(ScoreCause(change, fix, changed))
    return sorted(causes, key=lambda cause: -cause.IDF1)


def score_with_causes(truth: Tracks, predicted: Tracks, *, iou: float = 0.5) -> TrackScores:
    """Return `score_tracks` with its `causes`."""
    scores = score_tracks(truth, predicted, iou=iou)
    return replace(scores, causes=tuple(find_score_causes(truth, predicted, scores.overall.IDF1, iou=iou)))


def _changes(truth: Tracks, predicted: Tracks) -> Iterator[tuple[str, str, Tracks, Tracks]]:
    """What is tried, the fix, and both sides after the change."""
    for offset, verb, options in (
        (1, "1 were added to", "--truth-first-frame 1 --predicted-first-frame 0"),
        (-1, "1 were subtracted from", "--truth-first-frame 0 --predicted-first-frame 1"),
    ):
        # Where the earliest frame has number 0, the truth is shifted the other way.
        sides = (truth, replace(predicted, frame=predicted.frame + offset))
        if offset < 0:
            sides = (replace(truth, frame=truth.frame + 1), predicted)
        yield f"{verb} the frame numbers of the predicted tracks", f"Pass {options}.", *sides
    for name, side in (("truth", truth), ("predicted tracks", predicted)):
        for change, boxes, fix in (
            (
                "had corners x2, y2 in place of width and height",
                boxes_of_corners(side.boxes),
                "Subtract x and y from them",
            ),
            ("had box centres in place of upper left corners", _from_centres(side.boxes), "Subtract half the size"),
        ):
            if (boxes[:, 2:] >= MIN_SIDE).all():
                changed = replace(side, boxes=boxes)
                sides = (changed, predicted) if side is truth else (truth, changed)
                yield f"the {name} {change}", f"{fix}, and score again.", *sides
    _, cameras, _ = common_cameras(truth, predicted)
    scale = _scale(truth, predicted, cameras)
    if scale is not None and np.abs(scale - 1).max() > 0.02:
        shown = f"{scale[0]:.3g} (x) and {scale[1]:.3g} (y)"
        change = f"the predicted boxes were multiplied by {shown}, as pixels of another resolution"
        yield change, "Give both sides in pixels of one frame size.", truth, _scaled(predicted, scale)
    steps = [_steps(side, numbers) for side, numbers in zip((truth, predicted), cameras, strict=True)]
    for number, (name, other) in enumerate((("truth", "predicted tracks"), ("predicted tracks", "truth"))):
        common = np.isin(steps[1 - number], steps[number])
        if not common.all():
            every = _interval((truth, predicted)[number].frame)
            sides = (truth, predicted.take(common)) if number == 0 else (truth.take(common), predicted)
            rest = f"frames in which the {name} has boxes" if number == 0 else f"frames of the {name}"
            change = f"only the {rest} counted ({every}{int(common.sum()):,} of {len(common):,} boxes of the {other})"
            yield change, f"Remove the other frames from the {other} if the {name} leaves them out on purpose.", *sides


def _from_centres(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def _scaled(tracks: Tracks, scale: Floats) -> Tracks:
    return replace(tracks, boxes=tracks.boxes * np.tile(scale, 2))


def _steps(side: Tracks, numbers: Integers) -> Integers:
    """Number of the timestep (common camera, frame) of each box."""
    return numbers[side.camera] * 2**32 + side.frame


def _interval(frames: Integers) -> str:
    steps = np.diff(np.unique(frames))
    most = int(np.median(steps)) if len(steps) else 1
    return f"every {most}th frame, " if most > 1 else ""


def _scale(truth: Tracks, predicted: Tracks, cameras: list[Integers]) -> Floats | None:
    """Factors for x and y that move predicted boxes onto true ones, `[2]`; None if no frame is common.

    Starts with the ratio of the median sizes, then pairs each predicted foot with the closest true one of its frame and
    fits the factors to the pairs, five times.
    """
    steps = [_steps(side, numbers) for side, numbers in zip((truth, predicted), cameras, strict=True)]
    common = np.intersect1d(steps[0], steps[1])
    if not len(common):
        return None
    common = common[np.linspace(0, len(common) - 1, min(len(common), _SAMPLE)).astype(np.int64)]
    rows = [[np.flatnonzero(side == step) for step in common] for side in steps]
    feet = [side.boxes[:, :2] + side.boxes[:, 2:] * [0.5, 1] for side in (truth, predicted)]
    sizes = [
        np.median(side.boxes[np.concatenate(chosen), 2:], axis=0)
        for side, chosen in zip((truth, predicted), rows, strict=True)
    ]
    scale: Floats = sizes[0] / sizes[1]
    for _ in range(5):
        pairs = [
            (feet[0][a[cdist(feet[1][b] * scale, feet[0][a]).argmin(axis=1)]], feet[1][b])
            for a, b in zip(*rows, strict=True)
        ]
        target, source = (np.concatenate(points) for points in zip(*pairs, strict=True))
        usable = (np.abs(source) > MIN_SIDE).all(axis=1)
        if not usable.any():
            return None
        scale = np.median(target[usable] / source[usable], axis=0)
    return scale if (scale > 0).all() else None
