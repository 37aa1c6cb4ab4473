from __future__ import annotations

import itertools

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.data.box_selection import box_quality, choose_boxes, stretches
from reid.data.tracks import Tracks

SIZE = (640, 480)


def make_tracks(camera, frame, boxes, confidence=None, track=None):
    """Tracks in which, unless ids are given, every box has its own id; the rows must be sorted."""
    names = [f"cam{number}" for number in range(max([*camera, 0]) + 1)]
    tracks = Tracks.from_columns(names, camera, range(len(boxes)) if track is None else track, frame, boxes, confidence)
    if track is None:
        assert tracks.track.tolist() == list(range(len(boxes)))
    return tracks


def quality_of(box, others=(), confidence=1.0, size=SIZE):
    """The quality of a box among 21 separate 40×100 boxes, and `others` in its image."""
    separate = [[300, 200, 40, 100]] * 21
    boxes = [box, *others, *separate]
    frame = [1] * (1 + len(others)) + list(range(2, 23))
    tracks = make_tracks([0] * len(boxes), frame, boxes, [confidence] + [1] * (len(boxes) - 1))
    return box_quality(tracks, size)[0]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param([100, 100, 40, 100], 1, id="as all others"),
        pytest.param([100, 100, 20, 50], 0.5, id="half as large"),
        pytest.param([100, 100, 80, 200], 1, id="larger is no better"),
        pytest.param([-20, 100, 40, 100], np.sqrt(0.5) * 0.5, id="half outside at the left, half a shape left"),
        pytest.param([0, 100, 20, 100], np.sqrt(0.5) * 0.5, id="clipped to half by the tracker at the left"),
        pytest.param([620, 100, 20, 100], np.sqrt(0.5) * 0.5, id="at the right"),
        pytest.param([100, 0, 40, 50], np.sqrt(0.5) * 0.5, id="at the top"),
        pytest.param([100, 430, 40, 50], np.sqrt(0.5) * 0.5, id="at the bottom"),
        pytest.param([100, 380, 40, 100], 1, id="touches the bottom but has a whole shape"),
        pytest.param([-50, 100, 40, 100], 0, id="outside"),
        pytest.param([700, 100, 40, 100], 0, id="beyond the right"),
    ],
)
def test_quality_depends_on_size_and_border(box, expected):
    assert quality_of(box) == pytest.approx(expected)


def test_without_a_frame_size_no_box_is_outside():
    assert quality_of([-20, 100, 40, 100], size=None) == 1
    tracks = make_tracks([0, 1], [1, 1], [[-20, 100, 40, 100]] * 2)
    assert box_quality(tracks, {"cam1": (640, 480)}).tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([[120, 110, 40, 100]], 1 - 20 * 90 / 4000, id="one in front, lower"),
        pytest.param([[120, 90, 40, 100]], 1, id="one behind, higher"),
        pytest.param([[120, 100, 40, 100]], 0.5, id="equal lower edges count as in front"),
        pytest.param([[100, 100, 40, 100]], 0, id="a double"),
        pytest.param([[120, 110, 40, 100], [80, 110, 40, 100]], (1 - 0.45) ** 2, id="two in front"),
        pytest.param([[200, 110, 40, 100]], 1, id="one aside"),
    ],
)
def test_boxes_in_front_lower_the_quality(others, expected):
    assert quality_of([100, 100, 40, 100], others) == pytest.approx(expected)


def test_boxes_of_other_frames_and_cameras_cover_nothing():
    tracks = make_tracks([0, 0, 1], [1, 2, 1], [[100, 100, 40, 100]] * 3)
    assert box_quality(tracks).tolist() == [1, 1, 1]


def test_confidence_changes_quality_by_half_and_is_scaled_per_camera():
    assert quality_of([100, 100, 40, 100], confidence=0.4) == pytest.approx(0.7)
    boxes = [[0, 0, 40, 100]] * 4
    by_camera = box_quality(make_tracks([0, 0, 1, 1], [1, 2, 3, 4], boxes, [-1, 3, 0.5, 1]))
    assert by_camera.tolist() == pytest.approx([0.5, 1, 0.75, 1])
    assert box_quality(make_tracks([0, 0], [1, 2], boxes[:2], [90, 90])).tolist() == [1, 1]


def naive_covered(frame, boxes):
    covered = []
    for i, (x, y, w, h) in enumerate(boxes):
        clear = 1.0
        for j, (x2, y2, w2, h2) in enumerate(boxes):
            if i != j and frame[i] == frame[j] and y2 + h2 >= y + h:
                wide = max(0, min(x + w, x2 + w2) - max(x, x2))
                high = max(0, min(y + h, y2 + h2) - max(y, y2))
                clear *= 1 - wide * high / (w * h)
        covered.append(1 - clear)
    return np.array(covered)


@pytest.mark.parametrize("seed", range(5))
def test_covered_fraction_equals_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    n = 120
    frame = np.sort(rng.integers(1, 12, n))
    boxes = np.c_[rng.integers(0, 100, (n, 2)), np.full((n, 2), 40)].astype(float)  # equal sizes: only covering counts
    quality = box_quality(make_tracks([0] * n, frame, boxes))
    np.testing.assert_allclose(quality, 1 - naive_covered(frame, boxes), atol=1e-12)
    order = np.lexsort((rng.permutation(n), frame))
    shuffled = box_quality(make_tracks([0] * n, frame[order], boxes[order]))
    np.testing.assert_allclose(shuffled, quality[order], atol=1e-12)


def test_the_best_box_of_each_interval_is_chosen():
    quality = [0.1, 0.9, 0.5, 0.5, 0.3, 0.2, 0.1, 0.4]
    tracks = make_tracks([0] * 8, range(8), np.tile([0.0, 0, 10, 10], (8, 1)), track=[7] * 8)
    assert choose_boxes(tracks, quality, per_track=4).tolist() == [1, 2, 4, 7]  # of 2 and 3 the earlier


@pytest.mark.parametrize("seed", range(3))
def test_choice_equals_a_naive_loop_over_tracks(seed):
    rng = np.random.default_rng(seed)
    n = 500
    boxes = np.tile([0.0, 0, 10, 10], (n, 1))
    tracks = Tracks.from_columns(
        ["a", "b", "c"], rng.integers(0, 3, n), rng.integers(1, 12, n), rng.choice(10**6, n, replace=False), boxes
    )
    quality = rng.random(n).round(1)
    chosen = choose_boxes(tracks, quality, per_track=5)
    assert len(np.unique(chosen)) == len(chosen)
    assert (np.diff(chosen) > 0).all()
    for camera, track in {*zip(tracks.camera.tolist(), tracks.track.tolist(), strict=True)}:
        candidates = np.flatnonzero((tracks.camera == camera) & (tracks.track == track) & (quality > 0))
        kept = chosen[(tracks.camera[chosen] == camera) & (tracks.track[chosen] == track)]
        assert len(kept) == min(5, len(candidates))
        assert set(kept) <= set(candidates)
        for interval in range(len(kept)):
            rows = [row for place, row in enumerate(candidates) if place * len(kept) // len(candidates) == interval]
            assert max(rows, key=lambda row: (quality[row], -rows.index(row))) in kept


@pytest.mark.parametrize(
    ("quality", "count"),
    [
        pytest.param([1, 1, 1], 3, id="fewer than per_track"),
        pytest.param([0, 0, 0], 0, id="none of quality above 0"),
        pytest.param([], 0, id="no box"),
    ],
)
def test_short_tracks_keep_all_usable_boxes(quality, count):
    n = len(quality)
    tracks = make_tracks([0] * n, range(1, n + 1), [[0, 0, 10, 10]] * n, track=[1] * n)
    assert len(box_quality(tracks)) == n
    chosen = choose_boxes(tracks, quality, per_track=8)
    assert chosen.dtype == np.int64
    assert len(chosen) == count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda tracks: choose_boxes(tracks, [1], per_track=0), "per_track must be 1 or more; got 0", id="per_track"
        ),
        pytest.param(lambda tracks: choose_boxes(tracks, [1, 1]), "quality must be one column of 1 rows", id="quality"),
        pytest.param(lambda tracks: box_quality(tracks, [9]), r"\(9,\)|\[9\] of camera 'cam0'", id="frame size"),
        pytest.param(lambda tracks: box_quality(tracks, {"cam0": [9]}), "of camera 'cam0' must be two", id="mapping"),
    ],
)
def test_bad_arguments_raise_errors(call, message):
    with pytest.raises(ReidError, match=message):
        call(make_tracks([0], [1], [[0, 0, 1, 1]]))


def naive_stretches(tracks):
    """The stretch of each box, box by box."""
    result, number = np.full(len(tracks), -1), -1
    camera, track, frame, boxes = tracks.camera, tracks.track, tracks.frame, tracks.boxes

    def meets(a):
        for b in np.flatnonzero((camera == camera[a]) & (frame == frame[a])):
            low = np.maximum(boxes[a, :2], boxes[b, :2])
            high = np.minimum(boxes[a, :2] + boxes[a, 2:], boxes[b, :2] + boxes[b, 2:])
            least = min(boxes[a, 2:].prod(), boxes[b, 2:].prod())
            if a != b and (high > low).all() and (high - low).prod() >= 0.3 * least:
                return True
        return False

    for key in sorted({*zip(camera.tolist(), track.tolist(), strict=True)}):
        rows = [row for row in np.argsort(frame) if (camera[row], track[row]) == key]
        frames = sorted({*frame[camera == key[0]].tolist()})
        gap = 6 * np.median(np.diff(frames)) if len(frames) > 1 else 6
        groups = [[rows[0]]]
        for before, row in itertools.pairwise(rows):
            if frame[row] - frame[before] > gap:
                groups.append([])
            groups[-1].append(row)
        for group in groups:
            number += 1
            for place, row in enumerate(group):
                clear = [not meets(other) for other in group[place : place + 6]]
                if place and meets(group[place - 1]) and len(clear) == 6 and all(clear):
                    number += 1
                result[row] = number
    return result


@pytest.mark.parametrize("seed", range(4))
def test_stretches_equal_a_naive_loop_over_boxes(seed):
    rng = np.random.default_rng(seed)
    rows = [(c, t, f) for c in range(2) for t in range(4) for f in range(1, 90, 1 + c) if rng.random() < 0.93]
    rows = [row for row in rows if not (row[1] == 2 and 30 < row[2] < 50)]
    camera, track, frame = np.array(rows).T
    x = 40 * track + 60 * np.sin(frame / 9 + track)
    boxes = np.c_[x, rng.integers(0, 9, len(rows)), np.full(len(rows), 40), np.full(len(rows), 90)]
    tracks = Tracks.from_columns(["a", "b"], camera, track, frame, boxes)
    found = stretches(tracks)
    assert found.tolist() == naive_stretches(tracks).tolist()
    assert found.max() > 8, "tracks are divided"
    chosen = choose_boxes(tracks, np.ones(len(tracks)), per_track=3, stretch=found)
    assert np.bincount(found[chosen]).tolist() == np.minimum(np.bincount(found), 3).tolist()


def test_no_boxes_have_no_stretches():
    assert stretches(make_tracks([], [], np.zeros((0, 4)))).tolist() == []
