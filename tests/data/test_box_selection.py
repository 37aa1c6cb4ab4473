from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.data.box_selection import box_quality, choose_boxes

SIZE = (640, 480)


def one(box, others=(), confidence=1.0, size=SIZE):
    """The quality of a box among plenty of 40×100 boxes far from it, and among `others` in its picture."""
    plenty = [[300, 200, 40, 100]] * 21
    boxes = [box, *others, *plenty]
    frame = [1] * (1 + len(others)) + list(range(2, 23))
    return box_quality([0] * len(boxes), frame, boxes, [confidence] + [1] * (len(boxes) - 1), size)[0]


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
        pytest.param([100, 100, 0, 100], 0, id="no width"),
        pytest.param([100, 100, 40, -5], 0, id="negative height"),
        pytest.param([np.nan, 100, 40, 100], 0, id="NaN"),
        pytest.param([100, 100, np.inf, 100], 0, id="infinite"),
    ],
)
def test_size_and_border(box, expected):
    assert one(box) == pytest.approx(expected)


def test_where_the_picture_ends_is_not_guessed():
    assert one([-20, 100, 40, 100], size=None) == 1
    sizes = [[np.nan, np.nan], [640, 480]]
    boxes = [[-20, 100, 40, 100]] * 2
    assert box_quality([0, 1], [1, 1], boxes, None, sizes).tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([[120, 110, 40, 100]], 1 - 20 * 90 / 4000, id="one in front, lower"),
        pytest.param([[120, 90, 40, 100]], 1, id="one behind, higher"),
        pytest.param([[120, 100, 40, 100]], 0.5, id="one as near counts as in front"),
        pytest.param([[100, 100, 40, 100]], 0, id="a double"),
        pytest.param([[120, 110, 40, 100], [80, 110, 40, 100]], (1 - 0.45) ** 2, id="two in front"),
        pytest.param([[200, 110, 40, 100]], 1, id="one aside"),
    ],
)
def test_what_others_cover(others, expected):
    assert one([100, 100, 40, 100], others) == pytest.approx(expected)


def test_boxes_of_other_pictures_and_cameras_cover_nothing():
    boxes = [[100, 100, 40, 100]] * 3
    assert box_quality([0, 0, 1], [1, 2, 1], boxes).tolist() == [1, 1, 1]


def test_confidence_counts_half_and_odd_scales_are_stretched():
    assert one([100, 100, 40, 100], confidence=0.4) == pytest.approx(0.7)
    boxes = [[0, 0, 40, 100]] * 4
    by_camera = box_quality([0, 0, 1, 1], [1, 2, 3, 4], boxes, [-1, 3, 0.5, 1])
    assert by_camera.tolist() == pytest.approx([0.5, 1, 0.75, 1])
    assert box_quality([0, 0], [1, 2], boxes[:2], [90, 90]).tolist() == [1, 1]
    assert box_quality([0, 0], [1, 2], boxes[:2], [np.nan, 1]).tolist() == [0, 1]


def obvious_covered(frame, boxes):
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
def test_covering_is_that_of_the_obvious_loop(seed):
    rng = np.random.default_rng(seed)
    n = 120
    frame = rng.integers(1, 12, n)
    boxes = np.c_[rng.integers(0, 100, (n, 2)), rng.integers(20, 60, (n, 2))].astype(float)
    same = np.tile([40.0, 40.0], (n, 1))
    boxes[:, 2:] = same  # of one size, or size would count too
    got = box_quality(np.zeros(n, int), frame, boxes)
    np.testing.assert_allclose(got, 1 - obvious_covered(frame, boxes), atol=1e-12)
    order = rng.permutation(n)
    np.testing.assert_allclose(box_quality(np.zeros(n, int), frame[order], boxes[order]), got[order], atol=1e-12)


def test_the_best_of_each_stretch_is_chosen():
    quality = [0.1, 0.9, 0.5, 0.5, 0.3, 0.2, 0.1, 0.4]
    boxes = np.tile([0.0, 0, 10, 10], (8, 1))
    chosen = choose_boxes([0] * 8, [7] * 8, range(8), boxes, quality=quality, per_track=4)
    assert chosen.tolist() == [1, 2, 4, 7]  # of 2 and 3 the earlier
    shuffled = [5, 3, 7, 0, 1, 6, 4, 2]
    again = choose_boxes([0] * 8, [7] * 8, shuffled, boxes, quality=[quality[i] for i in shuffled], per_track=4)
    assert sorted(shuffled[i] for i in again) == [1, 2, 4, 7]
    assert (np.diff(again) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_every_track_of_every_camera_gets_its_share(seed):
    rng = np.random.default_rng(seed)
    n = 500
    camera, track, frame = rng.integers(0, 3, n), rng.integers(1, 12, n), rng.integers(1, 10**6, n)
    quality = rng.random(n).round(1)
    chosen = choose_boxes(camera, track, frame, rng.random((n, 4)), quality=quality, per_track=5)
    assert len(np.unique(chosen)) == len(chosen)
    for key in {*zip(camera.tolist(), track.tolist(), strict=True)}:
        own = np.flatnonzero((camera == key[0]) & (track == key[1]) & (quality > 0))
        mine = chosen[(camera[chosen] == key[0]) & (track[chosen] == key[1])]
        assert len(mine) == min(5, len(own))
        assert set(mine) <= set(own)
        order = own[np.argsort(frame[own], kind="stable")]
        for stretch in range(len(mine)):
            rows = [row for place, row in enumerate(order) if place * len(mine) // len(order) == stretch]
            best = max(rows, key=lambda row: (quality[row], -rows.index(row)))
            assert best in mine


@pytest.mark.parametrize(
    ("boxes", "count"),
    [
        pytest.param([[0, 0, 10, 10]] * 3, 3, id="fewer than asked for"),
        pytest.param([[0, 0, 0, 10]] * 3, 0, id="none with an area"),
        pytest.param(np.zeros((0, 4)), 0, id="no box"),
        pytest.param([], 0, id="an empty list"),
    ],
)
def test_short_and_bad_tracks(boxes, count):
    n = len(boxes)
    chosen = choose_boxes([0] * n, [1] * n, range(1, n + 1), boxes, per_track=8)
    assert chosen.dtype == np.int64
    assert len(chosen) == count


def test_without_quality_it_is_worked_out():
    boxes = [[100, 100, 40, 100], [-30, 100, 40, 100]]
    assert choose_boxes([0, 0], [1, 1], [1, 2], boxes, None, SIZE, per_track=1).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(lambda: choose_boxes([0], [1], [1], [[0, 0, 1, 1]], per_track=0), "per_track is 0", id="none"),
        pytest.param(lambda: choose_boxes([0], [1, 2], [1], [[0, 0, 1, 1]]), "track has shape", id="track"),
        pytest.param(lambda: box_quality([0, 0], [1], [[0, 0, 1, 1]]), "camera has shape", id="camera"),
        pytest.param(lambda: box_quality([0], [1], [[0, 0, 1]]), "Boxes have shape", id="boxes"),
        pytest.param(lambda: box_quality([3], [1], [[0, 0, 1, 1]], None, [[9, 9]]), "has 1 rows", id="sizes"),
        pytest.param(lambda: box_quality([0], [1], [[0, 0, 1, 1]], None, [9]), "frame_size has shape", id="size"),
    ],
)
def test_what_cannot_be_is_named(call, words):
    with pytest.raises(ReidError, match=words):
        call()
