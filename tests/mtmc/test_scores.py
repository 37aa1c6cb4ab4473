from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.mtmc import Tracks, box_pairs, cluster_scores, score_tracks, true_ids
from reid.mtmc.track_files import read_tracks
from tests.oracles import box_iou_loop, cluster_scores_loop, multi_camera_loop, trackeval_scores

TRACKEVAL_FIELDS = {
    "HOTA": ("HOTA", "HOTA"), "DetA": ("HOTA", "DetA"), "AssA": ("HOTA", "AssA"), "LocA": ("HOTA", "LocA"),
    "DetRe": ("HOTA", "DetRe"), "DetPr": ("HOTA", "DetPr"), "AssRe": ("HOTA", "AssRe"), "AssPr": ("HOTA", "AssPr"),
    "MOTA": ("CLEAR", "MOTA"), "MOTP": ("CLEAR", "MOTP"), "TP": ("CLEAR", "CLR_TP"), "FP": ("CLEAR", "CLR_FP"),
    "FN": ("CLEAR", "CLR_FN"), "IDSW": ("CLEAR", "IDSW"), "MT": ("CLEAR", "MT"), "PT": ("CLEAR", "PT"),
    "ML": ("CLEAR", "ML"), "Frag": ("CLEAR", "Frag"),
    "IDF1": ("Identity", "IDF1"), "IDP": ("Identity", "IDP"), "IDR": ("Identity", "IDR"),
    "IDTP": ("Identity", "IDTP"), "IDFP": ("Identity", "IDFP"), "IDFN": ("Identity", "IDFN"),
}  # fmt: skip
"""Our name: trackeval's metric and field."""


def agrees(scores, expected_scores):
    for name, (metric, field) in TRACKEVAL_FIELDS.items():
        expected = expected_scores[metric][field]
        assert getattr(scores, name) == pytest.approx(np.mean(expected), abs=1e-9), name
        if metric == "HOTA":
            assert scores.per_alpha[name] == pytest.approx(expected, abs=1e-9), name


def crowd(rng, cameras=2, frames=12, people=5, *, present=0.7, noise=4.0, miss=0.2, swap=0.2, false=0.3, grid=None):
    """Truth and predictions with misses, false boxes and ids that change; `grid` rounds boxes so that IoUs tie."""
    rows = {"truth": [], "predicted": []}
    for camera in range(cameras):
        places = rng.uniform(0, 60, (people, 2))
        names = rng.permutation(people) if rng.random() < 0.5 else np.arange(people)
        for frame in rng.choice(np.arange(1, 3 * frames), frames, replace=False):
            taken = set()
            if rng.random() < swap:
                names = rng.permutation(names)
            for person in np.flatnonzero(rng.random(people) < present):
                box = [*(places[person] + rng.normal(0, noise, 2)), 20.0, 40.0]
                if rng.random() > 0.05:
                    rows["truth"].append((camera, 10 + person, frame, box))
                if rng.random() > miss:
                    near = [*(np.array(box[:2]) + rng.normal(0, noise, 2)), *rng.uniform(15, 45, 2)]
                    rows["predicted"].append((camera, 3 * int(names[person]), frame, near))
                    taken.add(3 * int(names[person]))
            if rng.random() < false:
                box = [*rng.uniform(0, 60, 2), 20.0, 40.0]
                rows["predicted"].append((camera, 1000 + int(rng.integers(3)), frame, box))
    sides = []
    for side in rows.values():
        boxes = np.array([row[3] for row in side]).reshape(-1, 4)
        if grid:
            boxes = np.maximum(np.round(boxes / grid), 1) * grid
        ids = [np.array([row[i] for row in side], dtype=np.int64) for i in range(3)]
        sides.append(Tracks.from_columns([f"cam{i + 1}" for i in range(cameras)], *ids, boxes))
    return sides


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_equals_trackeval_on_random_tracks(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = crowd(
        rng,
        cameras=int(rng.integers(1, 4)),
        frames=int(rng.integers(1, 16)),
        people=int(rng.integers(1, 15)),
        noise=float(rng.choice([0, 2, 6])),
        grid=[None, 5, 20][seed % 3],
    )
    iou = float(rng.choice([0.5, 0.3, 0.75]))
    result = score_tracks(truth, predicted, iou=iou)
    agrees(result.overall, trackeval_scores(truth, predicted, iou))
    for number, name in enumerate(truth.camera_names):
        expected_scores = trackeval_scores(
            truth.take(truth.camera == number), predicted.take(predicted.camera == number), iou
        )
        agrees(result.per_camera[name], expected_scores)


def tracks(*rows, cameras=2):
    """Rows (camera from 0, id, frame, x): boxes of 10 × 20."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    boxes = [[x, 0, 10, 20] for x in columns[3]]
    return Tracks.from_columns([f"cam{i + 1}" for i in range(cameras)], *columns[:3], boxes)


EMPTY = tracks()
ONE = tracks((0, 1, 1, 0))


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        pytest.param(EMPTY, EMPTY, id="no boxes at all"),
        pytest.param(ONE, EMPTY, id="nothing predicted"),
        pytest.param(EMPTY, ONE, id="nothing true"),
        pytest.param(ONE, ONE, id="one box, found"),
        pytest.param(ONE, tracks((0, 1, 1, 100)), id="one box each, no overlap"),
        pytest.param(ONE, tracks((0, 1, 2, 0)), id="one box each, in other frames"),
        pytest.param(ONE, tracks((1, 1, 1, 0)), id="one box each, in other cameras"),
        pytest.param(ONE, tracks((0, 1, 1, 0), (0, 2, 1, 0)), id="two equal boxes on one"),
        pytest.param(
            tracks((0, 1, 1, 0), (0, 2, 1, 0), (0, 1, 2, 0), (0, 2, 2, 0)),
            tracks((0, 5, 1, 0), (0, 4, 1, 0), (0, 6, 2, 0), (0, 4, 2, 0)),
            id="all in one place: all IoUs tie",
        ),
        pytest.param(
            tracks((0, 1, 1, 0), (0, 1, 3, 0), (0, 1, 9, 0)),
            tracks((0, 1, 1, 0), (0, 2, 3, 0), (0, 1, 9, 0)),
            id="an id that changes and comes back",
        ),
        pytest.param(
            tracks(*((0, 1, f, 0) for f in range(10))),
            tracks(*((0, 1, f, 0) for f in range(8))),
            id="8 of 10 boxes: partly tracked, not mostly",
        ),
        pytest.param(
            tracks(*((0, 1, f, 0) for f in range(10))),
            tracks(*((0, 1, f, 0) for f in range(2))),
            id="2 of 10 boxes: partly tracked, not lost",
        ),
        pytest.param(
            ONE, Tracks.from_columns(["cam1"], [0], [1], [1], [[0, 0, 5, 20]]), id="IoU exactly at the threshold"
        ),
        pytest.param(
            ONE, Tracks.from_columns(["cam1"], [0], [1], [1], [[0, 0, 10, 1]]), id="IoU exactly .05, HOTA's first"
        ),
    ],
)
def test_equals_trackeval_on_corner_cases(truth, predicted):
    result = score_tracks(truth, predicted)
    agrees(result.overall, trackeval_scores(truth, predicted))
    json.dumps(result.as_dict(), allow_nan=False)


def test_equals_trackeval_where_blocks_are_cut(monkeypatch):
    truth, predicted = crowd(np.random.default_rng(3), frames=30)
    whole = score_tracks(truth, predicted)
    monkeypatch.setattr(box_pairs, "MAX_CELLS", 7)
    agrees(score_tracks(truth, predicted).overall, trackeval_scores(truth, predicted))
    assert score_tracks(truth, predicted).as_dict() == whole.as_dict()


def test_ids_swapped_in_the_second_camera_cost_half():
    def world(in_second):
        names = np.repeat([1, 2, *in_second], 50)
        columns = [np.repeat([0, 1], 100), names, np.tile(np.arange(1, 51), 4)]
        return Tracks.from_columns(
            ["cam1", "cam2"], *columns, [[400 * i, 0, 30, 60] for i in np.repeat([0, 1, 0, 1], 50)]
        )

    result = score_tracks(world((1, 2)), world((2, 1)))
    assert result.overall.IDF1 == result.multi_camera.IDF1 == 0.5
    assert [row.IDF1 for row in result.per_camera.values()] == [1, 1]
    hota = result.overall.HOTA
    assert hota == pytest.approx(1 / 3**0.5, abs=1e-12)  # 57.7 %
    assert [row.HOTA for row in result.per_camera.values()] == [1, 1]
    assert (result.overall.MOTA, result.overall.IDSW) == (1 - 2 / 200, 2)
    assert (result.tracklets.pair_f1, result.tracklets.exact_identities) == (0, 0)


@pytest.mark.parametrize(
    ("name", "idf1", "mota"),
    [pytest.param("TUD-Campus", 55.8, 52.6, id="Campus"), pytest.param("TUD-Stadtmitte", 64.5, 56.4, id="Stadtmitte")],
)
def test_published_numbers_of_the_mot_fixtures(name, idf1, mota):
    found = importlib.util.find_spec("motmetrics")
    if found is None or found.origin is None:
        pytest.skip("motmetrics, whose files these are, is not installed (pip install -e .[dev])")
    folder = Path(found.origin).parent / "data" / name
    result = score_tracks(read_tracks(folder / "gt.txt"), read_tracks(folder / "test.txt"))
    assert round(100 * result.overall.IDF1, 1) == idf1
    assert round(100 * result.overall.MOTA, 1) == mota
    assert result.warnings == ("Assumed to be one camera: gt (truth) and test.",)


@pytest.mark.parametrize("seed", range(12))
def test_multi_camera_scores_equal_the_loop(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = crowd(rng, cameras=3, frames=3, people=4, present=0.35, false=0.1)
    sides = [
        list(zip(t.camera.tolist(), t.frame.tolist(), t.track.tolist(), t.boxes.tolist(), strict=True))
        for t in (truth, predicted)
    ]
    right, true, found, people = multi_camera_loop(*sides, 0.5)
    result = score_tracks(truth, predicted)
    assert result.multi_camera_people == people
    several = result.multi_camera
    counts = (several.IDTP, several.IDTP + several.IDFN, several.IDTP + several.IDFP)
    assert counts == (right, true, found)
    idf1 = several.IDF1
    assert idf1 == pytest.approx(2 * right / max(1, true + found))


def test_multi_camera_scores_leave_out_people_seen_in_one_camera():
    passer_by = [(0, 9, f, 50) for f in range(5)]
    truth = tracks((0, 1, 1, 0), (1, 1, 1, 0), *passer_by)
    right = tracks((0, 4, 1, 0), (1, 4, 1, 0), *((0, 7, f, 50) for f in range(5)))
    assert score_tracks(truth, right).multi_camera.IDF1 == 1  # the passer-by's identity is neither right nor wrong
    false = tracks((0, 4, 1, 0), (1, 4, 1, 0), (0, 8, 1, 200))
    assert score_tracks(truth, false).multi_camera.IDFP == 1  # an identity that matches no one is false
    merged = tracks((0, 4, 1, 0), (1, 4, 1, 0), (0, 4, 2, 50), (0, 4, 3, 50))
    assert score_tracks(truth, merged).multi_camera.IDFP == 2  # a passer-by within someone's identity is false


@pytest.mark.parametrize("seed", range(10))
def test_cluster_scores_equal_the_loop(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    true, found = rng.integers(0, rng.integers(1, 12), (2, n)) * [[7], [3]]
    result = cluster_scores(true, [f"id {label}" for label in found])
    expected = cluster_scores_loop(true.tolist(), found.tolist())
    assert vars(result) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("true", "found", "expected"),
    [
        pytest.param([1, 1, 2, 2], [5, 5, 6, 6], (1, 1, 1, 1, 2), id="all right under other names"),
        pytest.param([1, 1, 2, 2], [1, 2, 3, 4], (1, 0, 1, 0.5, 0), id="nothing joined: no claim is wrong"),
        pytest.param([1, 1, 2, 2], [1, 1, 1, 1], (1 / 3, 1, 0.5, 1, 0), id="all in one"),
        pytest.param([1, 2, 3], [1, 2, 3], (1, 1, 1, 1, 3), id="everyone seen once"),
        pytest.param([1], [1], (1, 1, 1, 1, 1), id="one item"),
    ],
)
def test_cluster_scores_equal_hand_computed_values(true, found, expected):
    result = cluster_scores(true, found)
    got = (result.pair_precision, result.pair_recall, result.b3_precision, result.b3_recall, result.exact_identities)
    assert got == pytest.approx(expected)


def test_cluster_scores_without_items_are_none_and_unequal_lengths_are_errors():
    assert cluster_scores([], []).b3_f1 is None
    with pytest.raises(ReidError, match=r"shapes \[2\] and \[3\]"):
        cluster_scores([1, 2], [1, 2, 3])


def test_true_ids_of_local_tracks():
    truth = tracks((0, 70, 1, 0), (0, 70, 2, 0), (1, 70, 1, 0), (1, 80, 1, 50), (1, 80, 2, 50))
    local = tracks(
        (0, 1, 1, 0), (0, 1, 2, 0),  # on 70
        (0, 2, 1, 300),  # matches no one
        (1, 1, 1, 50), (1, 1, 2, 50), (1, 1, 3, 50),  # on 80
        (1, 5, 1, 0),  # on 70
    )  # fmt: skip
    other_order = Tracks.from_columns(["cam2", "cam1"], 1 - local.camera, local.track, local.frame, local.boxes)
    assert np.stack(true_ids(truth, local)).T.tolist() == [[0, 1, 70], [0, 2, -1], [1, 1, 80], [1, 5, 70]]
    assert np.stack(true_ids(truth, other_order)).T.tolist() == [[0, 1, 80], [0, 5, 70], [1, 1, 70], [1, 2, -1]]
    assert np.stack(true_ids(EMPTY, ONE)).T.tolist() == [[0, 1, -1]]
    assert score_tracks(truth, local).false_tracklets == 1


def test_iou_of_boxes():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 10, (2, 3, 4, 4)) + np.array([0, 0, 1e-3, 1e-3])
    got = box_pairs.box_iou(a, b)
    for n, i, j in np.ndindex(got.shape):
        assert got[n, i, j] == pytest.approx(box_iou_loop(a[n, i], b[n, j]), abs=1e-12)


def test_scored_cameras_correspond_by_name_or_number():
    truth, predicted = crowd(np.random.default_rng(1))
    same = score_tracks(truth, predicted)
    numbered = replace(predicted, camera_names=("1", "2"))
    assert score_tracks(truth, numbered).as_dict() == same.as_dict()
    turned = Tracks.from_columns(["2", "1"], 1 - predicted.camera, predicted.track, predicted.frame, predicted.boxes)
    assert score_tracks(truth, turned).as_dict() == same.as_dict()


def test_cameras_of_one_side_are_reported_and_counted():
    truth, predicted = crowd(np.random.default_rng(1))
    other = replace(predicted, camera_names=("cam1", "cam3"))
    result = score_tracks(truth, other)
    assert [text.split(":")[0] for text in result.warnings] == [
        "The truth has no camera cam3",
        "The predicted tracks have no camera cam2",
    ]
    false, missed = result.per_camera["cam3"].FP, result.per_camera["cam2"].FN
    assert false == (predicted.camera == 1).sum()
    assert missed == (truth.camera == 1).sum()
    agrees(result.overall, trackeval_scores(replace(truth, camera_names=("cam1", "cam2")), _shifted(predicted)))
    with pytest.raises(ReidError, match="no name or number in common"):
        score_tracks(truth, replace(predicted, camera_names=("cam7", "cam8")))


def _shifted(predicted):
    return Tracks.from_columns(
        ["cam1", "cam2", "cam3"], 2 * predicted.camera, predicted.track, predicted.frame, predicted.boxes
    )


@pytest.mark.parametrize("iou", [0, -0.5, 1.5, float("nan")])
def test_an_iou_outside_its_range_is_an_error(iou):
    with pytest.raises(ReidError, match="above 0 and at most 1"):
        score_tracks(ONE, ONE, iou=iou)
