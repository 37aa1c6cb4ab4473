"""Pairs of true and predicted boxes that overlap, over common cameras and frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from reid.core.errors import DataError, check_type
from reid.data.tracks import Floats, Integers, Tracks, same_cameras
from reid.mtmc.pooling import Mask

EPS = np.finfo(np.float64).eps

MAX_CELLS = 2_000_000
"""Box pairs compared in one block: about 250 MB."""


@dataclass(frozen=True, eq=False)
class BoxPairs:
    """True and predicted boxes over common timesteps (camera, frame), and the pairs that overlap (IoU above 0).

    Rows are sorted by timestep on both sides, pairs by (truth row, predicted row). Ids are numbered from 0.

    Attributes:
        truth_step, truth_id: `[N]`.
        truth_ids: The ids as given, by number.
        predicted_step, predicted_id: `[M]`.
        step_camera: `[S]` camera of each timestep.
        truth_row, predicted_row, iou: `[K]` of each pair.
        potential: `[K]` IoU / (sum of the IoUs of both boxes with all others − IoU): how unambiguous a pair is.
    """

    truth_step: Integers
    truth_id: Integers
    truth_ids: Integers
    predicted_step: Integers
    predicted_id: Integers
    step_camera: Integers
    truth_row: Integers
    predicted_row: Integers
    iou: Floats
    potential: Floats

    def matched_ids(self, iou: float) -> tuple[Integers, Integers]:
        """True and predicted id of every pair with at least this IoU."""
        pairs = self.iou >= iou
        return self.truth_id[self.truth_row[pairs]], self.predicted_id[self.predicted_row[pairs]]

    def majority(self, group: Integers, groups: int, iou: float, preferred: Mask | None = None) -> Integers:
        """True id that most boxes of each group of predicted boxes match, `[groups]`; −1 for none.

        Each box counts for the one true box that it overlaps most. In a tie, ids that are `preferred` come first, then
        the lower id.
        """
        pairs = np.flatnonzero(self.iou >= iou)
        most = np.zeros(len(self.predicted_id))
        np.maximum.at(most, self.predicted_row[pairs], self.iou[pairs])
        pairs = pairs[self.iou[pairs] == most[self.predicted_row[pairs]]]
        lowest = np.full(len(self.predicted_id), len(self.truth_id))
        np.minimum.at(lowest, self.predicted_row[pairs], self.truth_row[pairs])
        pairs = pairs[self.truth_row[pairs] == lowest[self.predicted_row[pairs]]]
        label = np.full(groups, -1, dtype=np.int64)
        people = max(1, count_ids(self.truth_id))
        cells, cell = unique_codes(group[self.predicted_row[pairs]] * people + self.truth_id[self.truth_row[pairs]])
        where, person = np.divmod(cells, people)
        later = np.zeros(len(cells), dtype=bool) if preferred is None else ~preferred[person]
        order = np.lexsort((person, later, -np.bincount(cell), where))
        best = order[np.diff(where[order], prepend=-1) != 0]
        label[where[best]] = person[best]
        return label

    def tracklets(self, iou: float) -> tuple[Integers, Integers]:
        """First row of each predicted (camera, id), in that order, and the true id that most of its boxes match."""
        code = self.step_camera[self.predicted_step] * max(1, count_ids(self.predicted_id)) + self.predicted_id
        _, first, group = np.unique(code, return_index=True, return_inverse=True)
        return first, self.majority(group, len(first), iou)


def unique_codes(values: Integers) -> tuple[Integers, Integers]:
    """`np.unique(values, return_inverse=True)` for integers from 0, without sorting where they are dense."""
    size = count_ids(values)
    if size > 4 * len(values) + 1_000_000:
        different, number = np.unique(values, return_inverse=True)
        return different, number
    present = np.zeros(size, dtype=bool)
    present[values] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[values]


def count_ids(ids: Integers) -> int:
    """Number of ids that are numbered from 0."""
    return int(ids.max()) + 1 if len(ids) else 0


def common_cameras(truth: Tracks, predicted: Tracks) -> tuple[list[str], list[Integers], tuple[str, ...]]:
    """Names of all cameras, the number of each camera of each side among them, and warnings about differences."""
    for name, tracks in (("truth", truth), ("predicted", predicted)):
        check_type(name, tracks, Tracks, "Read a file or folder with reid.mtmc.read_tracks.")
    same = same_cameras(truth.camera_names, predicted.camera_names)
    warnings = []
    if not same and len(truth.camera_names) == len(predicted.camera_names) == 1:
        same = {predicted.camera_names[0]: truth.camera_names[0]}
        warnings.append(f"Assumed to be one camera: {truth.camera_names[0]} (truth) and {predicted.camera_names[0]}.")
    if not same and len(truth) and len(predicted):
        raise DataError(
            f"The cameras of the truth ({', '.join(truth.camera_names)}) and of the predicted tracks "
            f"({', '.join(predicted.camera_names)}) have no name or number in common. Use the same names."
        )
    only_predicted = [name for name in predicted.camera_names if name not in same]
    only_truth = [name for name in truth.camera_names if name not in same.values()]
    names = [*truth.camera_names, *only_predicted]
    if len(set(names)) < len(names):
        raise DataError("A camera's name is used for another camera on the other side. Use the same names.")
    if only_predicted:
        warnings.append(f"The truth has no camera {', '.join(only_predicted)}: all its boxes count as false.")
    if only_truth:
        warnings.append(f"The predicted tracks have no camera {', '.join(only_truth)}: all its boxes count as missed.")
    place = {name: number for number, name in enumerate(names)}
    cameras = [
        np.array([place[name] for name in truth.camera_names], dtype=np.int64),
        np.array([place[same.get(name, name)] for name in predicted.camera_names], dtype=np.int64),
    ]
    return names, cameras, tuple(warnings)


def pair_boxes(truth: Tracks, predicted: Tracks, cameras: list[Integers], camera: int | None = None) -> BoxPairs:
    """Pair the boxes of both sides, whose cameras have these common numbers; of one camera only, if given."""
    frames = 1 + max((int(side.frame.max()) for side in (truth, predicted) if len(side)), default=0)
    keys, ids, boxes = [], [], []
    for side, numbers in zip((truth, predicted), cameras, strict=True):
        key = numbers[side.camera] * frames + side.frame if len(side) else side.frame
        order = np.argsort(key, kind="stable")
        if camera is not None:
            order = order[key[order] // frames == camera]
        keys.append(key[order])
        ids.append(np.unique(side.track[order], return_inverse=True))
        boxes.append(side.boxes[order])
    steps = np.union1d(*(key[np.diff(key, prepend=-1) != 0] for key in keys))
    truth_step, predicted_step = (np.searchsorted(steps, key) for key in keys)
    overlaps = _overlaps(truth_step, predicted_step, boxes[0], boxes[1], len(steps))
    return BoxPairs(truth_step, ids[0][1], ids[0][0], predicted_step, ids[1][1], steps // frames, *overlaps)


def _overlaps(
    truth_step: Integers, predicted_step: Integers, truth_boxes: Floats, predicted_boxes: Floats, steps: int
) -> tuple[Integers, Integers, Floats, Floats]:
    """Truth row, predicted row, IoU and potential of all pairs with IoU above 0, sorted by rows.

    Timesteps with equal numbers of boxes on both sides are computed together, so there is no loop over timesteps, and
    sums run over the same numbers in the same order as for a single timestep.
    """
    n, m = np.bincount(truth_step, minlength=steps), np.bincount(predicted_step, minlength=steps)
    truth_start, predicted_start = np.cumsum(n) - n, np.cumsum(m) - m
    both = np.flatnonzero((n > 0) & (m > 0))
    both = both[np.lexsort((m[both], n[both]))]
    cuts = np.flatnonzero((np.diff(n[both]) != 0) | (np.diff(m[both]) != 0)) + 1
    found: list[tuple[NDArray[Any], ...]] = []
    for equal in np.split(both, cuts) if len(both) else []:
        a, b = int(n[equal[0]]), int(m[equal[0]])
        block = max(1, MAX_CELLS // (a * b))
        for begin in range(0, len(equal), block):
            part = equal[begin : begin + block]
            rows = truth_start[part][:, None] + np.arange(a)
            columns = predicted_start[part][:, None] + np.arange(b)
            iou = box_iou(truth_boxes[rows], predicted_boxes[columns])
            total = iou.sum(1)[:, None, :] + iou.sum(2)[:, :, None] - iou
            where = np.nonzero(iou)
            value, whole = iou[where], total[where]
            potential = np.divide(value, whole, out=np.zeros_like(value), where=whole > EPS)
            found.append((rows[where[0], where[1]], columns[where[0], where[2]], value, potential))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    row, column, value, potential = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((column, row))
    return row[order], column[order], value[order], potential[order]


def box_iou(a: Floats, b: Floats) -> Floats:
    """IoU `[n, A, B]` of boxes `[n, A, 4]` with boxes `[n, B, 4]` (x, y, width, height)."""
    a_high, b_high = a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]
    width = np.minimum(a_high[:, :, None, 0], b_high[:, None, :, 0]) - np.maximum(a[:, :, None, 0], b[:, None, :, 0])
    height = np.minimum(a_high[:, :, None, 1], b_high[:, None, :, 1]) - np.maximum(a[:, :, None, 1], b[:, None, :, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    a_area = (a_high[..., 0] - a[..., 0]) * (a_high[..., 1] - a[..., 1])
    b_area = (b_high[..., 0] - b[..., 0]) * (b_high[..., 1] - b[..., 1])
    union = a_area[:, :, None] + b_area[:, None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > EPS))


class StepMatcher:
    """One-to-one matching within timesteps. Uncontested candidates are matched directly; the rest is solved."""

    def __init__(self, boxes: BoxPairs) -> None:
        steps = np.arange(len(boxes.step_camera) + 1)
        self.boxes = boxes
        self.truth_start = np.searchsorted(boxes.truth_step, steps)
        self.predicted_start = np.searchsorted(boxes.predicted_step, steps)
        self.step = boxes.truth_step[boxes.truth_row]
        self.pair_start = np.searchsorted(self.step, steps)

    def pairs(self, step: int) -> slice:
        """Pairs of a timestep."""
        return slice(self.pair_start[step], self.pair_start[step + 1])

    def contested(self, candidate: Mask) -> Integers:
        """Timesteps in which a box is in two candidate pairs, in order."""
        row, column = self.boxes.truth_row[candidate], self.boxes.predicted_row[candidate]
        several = (np.bincount(row, minlength=1)[row] > 1) | (np.bincount(column, minlength=1)[column] > 1)
        return np.unique(self.step[candidate][several])

    def solve(self, step: int, value: Floats) -> Integers:
        """Pairs of a timestep with the largest total value; pairs of value 0 are not matched.

        `value` is given for the timestep's pairs, in order.
        """
        pairs = self.pairs(step)
        row = self.boxes.truth_row[pairs] - self.truth_start[step]
        column = self.boxes.predicted_row[pairs] - self.predicted_start[step]
        shape = [start[step + 1] - start[step] for start in (self.truth_start, self.predicted_start)]
        matrix = np.zeros(shape)
        matrix[row, column] = value
        rows, columns = linear_sum_assignment(-matrix)
        chosen = np.full(shape[0], -1)
        chosen[rows] = columns
        return pairs.start + np.flatnonzero((chosen[row] == column) & (value > EPS))
