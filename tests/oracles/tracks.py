"""Track scores. The truth and the predictions are `Tracks` with the same cameras."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest


def trackeval_scores(truth, predicted, iou=0.5):
    """{metric: {field: value}} of trackeval over (camera, frame) timesteps; skips the test where it is absent."""
    pytest.importorskip("trackeval", reason="trackeval is not installed (pip install -e .[dev])")
    from trackeval.datasets._base_dataset import _BaseDataset
    from trackeval.metrics import CLEAR, HOTA, Identity

    sides = (truth, predicted)
    steps = sorted({(c, f) for side in sides for c, f in zip(side.camera.tolist(), side.frame.tolist(), strict=True)})
    numbers = [{name: i for i, name in enumerate(np.unique(side.track).tolist())} for side in sides]
    ids, similarity = ([], []), []
    for camera, frame in steps:
        boxes = []
        for side, number, out in zip(sides, numbers, ids, strict=True):
            here = (side.camera == camera) & (side.frame == frame)
            out.append(np.array([number[name] for name in side.track[here].tolist()], dtype=int))
            boxes.append(side.boxes[here])
        similarity.append(_BaseDataset._calculate_box_ious(*boxes))
    data = {
        "num_timesteps": len(steps),
        "gt_ids": ids[0],
        "tracker_ids": ids[1],
        "similarity_scores": similarity,
        "num_gt_ids": len(numbers[0]),
        "num_tracker_ids": len(numbers[1]),
        "num_gt_dets": len(truth),
        "num_tracker_dets": len(predicted),
    }
    settings = {"THRESHOLD": iou, "PRINT_CONFIG": False}
    metrics = {"HOTA": HOTA(), "CLEAR": CLEAR(settings), "Identity": Identity(settings)}
    return {name: metric.eval_sequence(data) for name, metric in metrics.items()}


def cluster_scores_loop(true, found):
    """Pairs and B³ one pair and one item at a time: {name: value}."""
    n = len(true)
    pairs = [(true[i] == true[j], found[i] == found[j]) for i in range(n) for j in range(i)]
    right = sum(a and b for a, b in pairs)
    claimed, there = sum(b for _, b in pairs), sum(a for a, _ in pairs)
    precisions, recalls = [], []
    for i in range(n):
        cluster = {j for j in range(n) if found[j] == found[i]}
        person = {j for j in range(n) if true[j] == true[i]}
        precisions.append(len(cluster & person) / len(cluster))
        recalls.append(len(cluster & person) / len(person))
    p, r = sum(precisions) / n, sum(recalls) / n
    people = {frozenset(j for j in range(n) if true[j] == t) for t in set(true)}
    clusters = {frozenset(j for j in range(n) if found[j] == f) for f in set(found)}
    return {
        "items": n,
        "true_identities": len(people),
        "found_identities": len(clusters),
        "exact_identities": len(people & clusters),
        "pair_precision": right / claimed if claimed else 1,
        "pair_recall": right / there if there else 1,
        "pair_f1": 2 * right / (claimed + there) if claimed + there else 1,
        "b3_precision": p,
        "b3_recall": r,
        "b3_f1": 2 * p * r / (p + r),
    }


def box_iou_loop(a, b):
    """IoU of two boxes x, y, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def identity_true_positives_loop(truth, predicted, iou):
    """IDTP by trying every pairing of a few identities; rows are (camera, frame, id, box)."""
    people, ids = sorted({row[2] for row in truth}), sorted({row[2] for row in predicted})
    shared = {(t, p): 0 for t in people for p in ids}
    for a in truth:
        for b in predicted:
            if a[:2] == b[:2] and box_iou_loop(a[3], b[3]) >= iou:
                shared[a[2], b[2]] += 1
    alone = [None] * len(people)
    return max(
        sum(shared[t, p] for t, p in zip(people, chosen, strict=False) if p is not None)
        for chosen in set(itertools.permutations([*ids, *alone], len(people)))
    )


def multi_camera_loop(truth, predicted, iou):
    """(IDTP, true boxes, predicted boxes, people) over people in two or more cameras; rows as above.

    A predicted identity is assigned to the person that most of its boxes overlap; in a tie, to one who is kept.
    """
    kept = {t for t in {row[2] for row in truth} if len({row[0] for row in truth if row[2] == t}) > 1}
    stays = set()
    for identity in {row[2] for row in predicted}:
        votes = {}
        for b in predicted:
            if b[2] == identity:
                near = [(box_iou_loop(a[3], b[3]), -a[2]) for a in truth if a[:2] == b[:2]]
                if near and max(near)[0] >= iou:
                    person = -max(near)[1]
                    votes[person] = votes.get(person, 0) + 1
        best = [t for t in votes if votes[t] == max(votes.values())]
        if not votes or kept & set(best):
            stays.add(identity)
    a, b = [row for row in truth if row[2] in kept], [row for row in predicted if row[2] in stays]
    return (identity_true_positives_loop(a, b, iou) if a and b else 0), len(a), len(b), len(kept)


def compare_paths_loop(path, other):
    """Median distance / error, error and distance of two paths at common times, their number, and seconds shared."""
    if len(other) < len(path):
        path, other = other, path
    reach = float(np.median(np.diff(other[:, 0]))) / 2 + 1e-6 if len(other) > 1 else 0.05 + 1e-6
    z, errors, distances, times = [], [], [], []
    for seconds, x, y, error in path:
        if np.abs(other[:, 0] - seconds).min() > reach:
            continue
        u, v, their_error = (np.interp(seconds, other[:, 0], other[:, column]) for column in (1, 2, 3))
        distances.append(float(np.hypot(u - x, v - y)))
        errors.append(float(np.hypot(error, their_error)))
        z.append(distances[-1] / errors[-1])
        times.append(seconds)
    if not z:
        return 0.0, 0.0, 0.0, 0, 0.0
    return float(np.median(z)), float(np.median(errors)), float(np.median(distances)), len(z), times[-1] - times[0]


def path_end_loop(path, end, seconds, fewest, fastest):
    """Time, position, velocity and error of one end of a path, by weighted least squares."""
    moment = path[:, 0].max() if end else path[:, 0].min()
    part = path[np.abs(path[:, 0] - moment) <= seconds]
    time, weight = part[:, 0] - moment, 1 / part[:, 3]
    position, velocity = np.average(part[:, 1:3], axis=0, weights=weight), np.zeros(2)
    if len(np.unique(time)) >= fewest:
        design = np.stack([np.ones(len(time)), time], axis=1) * weight[:, None]
        position, velocity = np.linalg.lstsq(design, part[:, 1:3] * weight[:, None], rcond=None)[0]
        velocity = velocity * min(1.0, fastest / max(float(np.hypot(*velocity)), 1e-9))
    return moment, position, velocity, float(np.median(part[:, 3]))


def slow_violations(tracklets, identity, cameras, constraints):
    """Messages of `find_violations` without must-links and cannot-links, pair by pair."""
    tolerance = constraints.tolerance
    found = []
    people = {}
    for row, number in enumerate(identity):
        if number > 0:
            people.setdefault(int(number), []).append(row)
    names = tracklets.camera_names
    where = {
        row: (names[int(camera)], float(start), float(end))
        for row, (camera, start, end) in enumerate(zip(tracklets.camera, tracklets.start, tracklets.end, strict=True))
    }
    for number, members in sorted(people.items()):
        in_time = sorted(members, key=lambda row: (where[row][1], row))
        for place, earlier in enumerate(in_time):
            camera, start, end = where[earlier]
            for later in in_time[place + 1 :]:
                other, other_start, other_end = where[later]
                broken = []
                shared = min(end, other_end) - max(start, other_start)
                gap = other_start - end
                if camera == other and shared >= tolerance:
                    broken.append(f" are in one camera simultaneously (for {shared:.2f} s)")
                elif camera != other and cameras is not None and {camera, other} <= set(cameras.cameras):
                    if cameras.non_overlapping(camera, other) and shared >= tolerance:
                        broken.append(f" are in non-overlapping cameras simultaneously (for {shared:.2f} s)")
                    min_time = cameras.min_transition_time(camera, other)
                    if math.isinf(min_time) and min_time > 0:
                        broken.append(f": there is no transition from {camera} to {other}")
                    elif gap < min_time - tolerance:
                        broken.append(f": the gap is {gap:.2f} s; the transition takes at least {min_time:.2f} s")
                if constraints.max_speed is not None:
                    (x, y), (u, v) = tracklets.exit[earlier], tracklets.entry[later]
                    distance = math.hypot(u - x, v - y)
                    if distance > constraints.max_speed * (max(gap, 0.0) + tolerance):
                        broken.append(f": {distance:.1f} m in {gap:.2f} s exceeds the maximum speed")
                for rule in broken:
                    pair = f"{tracklets.describe(earlier)} and {tracklets.describe(later)}"
                    found.append(f"identity {number}: {pair}{rule}")
    return found
