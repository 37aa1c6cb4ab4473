"""Pooling, prototypes, splitting and laying crops to tracks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reid import Embeddings
from reid.core.errors import ReidError
from reid.mtmc import Camera, Cameras, Constraints, MatchSettings, Tracklets, Tracks, match
from reid.mtmc.negatives import Spans, simultaneous_rows
from reid.mtmc.online import match_online
from reid.mtmc.pooling import pool_features, select_prototypes
from reid.mtmc.solvers import SOLVERS
from reid.mtmc.splitting import change_points
from tests.mtmc.synthetic_tracklets import make_tracklets


def unit(x):
    return x / np.linalg.norm(x)


@pytest.mark.parametrize("at_once", [1, 20, 16_384])
@pytest.mark.parametrize("seed", range(5))
def test_pooling_against_a_loop(seed, at_once, monkeypatch):
    monkeypatch.setattr("reid.mtmc.pooling._CROPS_PER_BLOCK", at_once)
    rng = np.random.default_rng(seed)
    n, tracklets = 60, 9
    features = rng.normal(size=(n, 5)).astype(np.float32) * rng.uniform(0.1, 9, (n, 1)).astype(np.float32)
    of = rng.integers(0, tracklets - 1, n)  # the last one has no crop
    weights = rng.uniform(0.05, 1, n)
    features[3], features[4], features[5] = np.nan, 0, np.inf
    got = pool_features(features, of, tracklets, weights)
    assert (~got.usable).nonzero()[0].tolist() == [3, 4, 5]
    alone = pool_features(features, np.arange(n), n, weights)  # one crop each
    assert alone.features[alone.usable] == pytest.approx(np.array([unit(row) for row in features[alone.usable]]))
    assert alone.quality[alone.usable] == pytest.approx(weights[alone.usable])
    for t in range(tracklets):
        rows = [row for row in range(n) if of[row] == t and row not in (3, 4, 5)]
        if not rows:
            assert not got.has_feature[t]
            assert (got.features[t] == 0).all()
            continue
        want = unit(sum(weights[row] * unit(features[row]) for row in rows))
        assert got.features[t] == pytest.approx(want, abs=1e-5)
        assert got.quality[t] == pytest.approx(np.mean(weights[rows]))


@pytest.mark.parametrize("at_once", [1, 20, 16_384])
@pytest.mark.parametrize("most", [1, 3, 50])
@pytest.mark.parametrize("seed", range(4))
def test_prototypes_against_a_loop(seed, most, at_once, monkeypatch):
    monkeypatch.setattr("reid.mtmc.pooling._CROPS_PER_BLOCK", at_once)
    rng = np.random.default_rng(seed)
    n, tracklets = 60, 9
    of = rng.integers(0, tracklets - 1, n)  # the last one has no crop
    of[3:6] = 1
    features = rng.normal(size=(n, 5)).astype(np.float32)
    features[3], features[4], features[5] = np.nan, 0, np.inf
    features[of == 0] = features[of == 0][0] * rng.uniform(1, 2, ((of == 0).sum(), 1))  # equal except for their length
    pooled = pool_features(features, of, tracklets)
    want = []
    for t in range(tracklets):
        rows = [row for row in range(n) if of[row] == t and pooled.usable[row]]
        chosen: list[int] = []
        while rows and len(chosen) < most:
            if chosen:
                near = [min(1 - unit(features[row]) @ unit(features[one]) for one in chosen) for row in rows]
            else:
                near = [unit(features[row]) @ pooled.features[t] + 1 for row in rows]
            best = int(np.argmax(np.round(near, 6)))
            if near[best] <= 1e-6:
                break
            chosen.append(rows[best])
        want += chosen
    got = select_prototypes(features, of, pooled, most)
    assert (of[got] == 0).sum() == 1
    assert len(set(got.tolist())) == len(got)
    assert got.tolist() == want


def test_prototypes_of_nothing():
    none = np.zeros((0, 3), np.float32)
    assert select_prototypes(none, np.zeros(0, np.int64), pool_features(none, np.zeros(0, np.int64), 2)).tolist() == []
    zeros, of = np.zeros((2, 3), np.float32), np.array([0, 1])
    assert select_prototypes(zeros, of, pool_features(zeros, of, 2)).tolist() == []


def test_tracklets_keep_rows_of_the_embeddings_as_prototypes():
    features = np.array([[1, 0], [0, 1], [1, 0.1], [1, 0], [0, 1]], np.float32)
    tracklets = Tracklets.from_features(
        ["a", "b"], np.array([1, 0, 1, 1, 0]), np.array([7, 2, 7, 7, 2]), np.arange(5), features
    )
    assert tracklets.prototype_tracklet.tolist() == [
        0,
        1,
        1,
    ]  # the first is camera a's track 2, whose two crops are equal
    assert tracklets.prototype_row.tolist() == [1, 0, 2]


def test_tracklets_are_sorted_and_timed():
    tracklets = Tracklets.from_features(
        ["a", "b"],
        np.array([1, 0, 0, 1, 0]),
        np.array([7, 2, 1, 7, 2]),
        np.array([50, 9, 3, 25, 30]),
        np.eye(5, dtype=np.float32),
    )
    assert list(zip(tracklets.camera, tracklets.track, strict=True)) == [(0, 1), (0, 2), (1, 7)]
    assert tracklets.start.tolist() == [3 / 25, 9 / 25, 1]
    assert tracklets.end.tolist() == [3 / 25, 30 / 25, 2]
    assert tracklets.frames.tolist() == [1, 2, 2]
    assert tracklets.first_frame.tolist() == [3, 9, 25]


def test_embeddings_without_the_columns_needed():
    with pytest.raises(ReidError, match="no column tracks, frames"):
        Tracklets.from_embeddings(Embeddings(np.ones((2, 3)), camids=[1, 2]))


def test_embeddings_take_clocks_from_cameras():
    embeddings = Embeddings(np.eye(3), camids=[1, 1, 2], tracks=[5, 5, 5], frames=[1, 11, 1])
    cameras = Cameras({"cam01": Camera(fps=10, offset=3), "cam02": Camera()})
    tracklets = Tracklets.from_embeddings(embeddings, cameras)
    assert tracklets.camera_names == ("cam01", "cam02")
    assert tracklets.start.tolist() == [3, 0]
    assert tracklets.end.tolist() == [4, 0]
    with pytest.raises(ReidError, match="Camera 2 of the embeddings has no name"):
        Tracklets.from_embeddings(embeddings, cameras, camera_names={1: "cam01"})


def some_tracks():
    return Tracks.from_columns(
        ("cam01", "cam02", "empty"),
        [0, 0, 0, 1, 1],
        [1, 1, 2, 1, 1],
        [1, 2, 1, 1, 2],
        [[0, 0, 10, 20], [1, 0, 10, 20], [5, 0, 10, 20], [0, 0, 10, 20], [0, 0, 10, 10]],
        [1, 0.5, 1, 1, 1],
    )


def test_tracks_without_embeddings_have_no_feature():
    embeddings = Embeddings(np.eye(3), camids=[1, 1, 2], tracks=[1, 1, 1], frames=[1, 2, 2])
    tracklets = Tracklets.from_tracks(some_tracks(), embeddings)
    assert tracklets.has_feature.tolist() == [True, False, True]
    assert tracklets.camera_names == ("cam01", "cam02", "empty")
    assert tracklets.frames.tolist() == [2, 1, 2]
    assert tracklets.features[0, 0] != tracklets.features[0, 1], "crops count by the quality of their boxes"
    none = Tracklets.from_tracks(some_tracks(), None)
    assert len(none) == 3
    assert not none.has_feature.any()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"camids": [1], "tracks": [9]}, "camera cam01, track 9", id="a track that is not there"),
        pytest.param({"camids": [4], "tracks": [1]}, "cameras cam04", id="a camera that is not there"),
        pytest.param({"tracks": [1]}, "no camids", id="no cameras"),
    ],
)
def test_embeddings_of_unknown_tracks_or_cameras_are_errors(columns, message):
    with pytest.raises(ReidError, match=message):
        Tracklets.from_tracks(some_tracks(), Embeddings(np.ones((1, 3)), **columns))


def test_ground_positions_of_entry_and_exit():
    cameras = Cameras({"cam01": Camera(homography=np.diag([2.0, 1.0, 1.0])), "cam02": Camera()})
    tracklets = Tracklets.from_tracks(some_tracks(), None, cameras)
    assert tracklets.entry[0].tolist() == [10, 20]
    assert tracklets.exit[0].tolist() == [12, 20]
    assert np.isnan(tracklets.entry[2]).all()


@pytest.mark.parametrize("seed", range(5))
def test_simultaneous_pairs_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    n = 30
    track = np.repeat(np.arange(n), 2)
    camera = np.repeat(rng.integers(0, 3, n), 2)
    start = rng.integers(0, 40, n)
    frame = np.stack([start, start + rng.integers(0, 9, n)], axis=1).reshape(-1)
    features = rng.normal(size=(2 * n, 4)).astype(np.float32)
    features[:4] = 0
    tracklets = Tracklets.from_features(["a", "b", "c"], camera, track, frame, features)
    want = {
        (a, b)
        for a in range(n)
        for b in range(a + 1, n)
        if tracklets.has_feature[[a, b]].all()
        and tracklets.camera[a] == tracklets.camera[b]
        and max(tracklets.start[a], tracklets.start[b]) <= min(tracklets.end[a], tracklets.end[b])
    }
    got = {tuple(sorted(pair)) for pair in simultaneous_rows(tracklets, tracklets.has_feature).tolist()}
    assert got == want


def crowd(swapped, seed=0, noise=0.2):
    """40 tracks of 14 crops, two at a time in one camera; the tracks `swapped` change person at crop 6."""
    rng = np.random.default_rng(seed)
    person = rng.normal(size=(41, 16))
    person /= np.linalg.norm(person, axis=1, keepdims=True)
    rows = []
    for track in range(40):
        for shot in range(14):
            who = track + 1 if track in swapped and shot >= 6 else track
            rows.append((track, 100 * (track // 2) + shot, person[who] + noise * rng.normal(size=16) / 4))
    track, frame, features = (np.array(column) for column in zip(*rows, strict=True))
    return np.zeros(len(track), np.int64), track, frame, features.astype(np.float32)


def test_a_track_with_two_people_is_split():
    camera, track, frame, features = crowd(swapped={7, 20})
    tracklets = Tracklets.from_features(["a"], camera, track, frame, features, split=True)
    assert len(tracklets) == 42
    parts = np.flatnonzero(tracklets.track == 7)
    assert tracklets.first_frame[parts].tolist() == [300, 306]
    assert tracklets.last_frame[parts].tolist() == [305, 313]
    assert tracklets.frames[parts].tolist() == [6, 8]
    assert len(Tracklets.from_features(["a"], camera, track, frame, features)) == 40


def test_no_split_without_a_change_or_without_certain_negatives():
    assert len(Tracklets.from_features(["a"], *crowd(swapped=set()), split=True)) == 40
    _, track, frame, features = crowd(swapped={0})
    alone = track == 0
    spans = Spans(np.zeros(1, int), np.zeros(1, int), np.zeros(1), np.ones(1))
    cuts = change_points(features[alone], track[alone], frame[alone], spans)
    assert len(cuts[0]) == 0, "no certain negatives, so the distance of two people is unknown"


@pytest.mark.parametrize(
    ("crops", "begins"),
    [
        pytest.param(24, [1500, 1508, 1516], id="8 of each of three people"),
        pytest.param(18, [1500, 1508], id="2 crops of the third are too few for a part"),
    ],
)
def test_a_track_can_be_split_more_than_once(crops, begins):
    _, track, frame, features = crowd(swapped=set())
    others = track != 30
    rng = np.random.default_rng(1)
    faces = np.eye(16)[np.arange(crops) // 8]
    mixed = faces + 0.05 * rng.normal(size=(crops, 16))
    tracklets = Tracklets.from_features(
        ["a"],
        np.zeros(others.sum() + crops, np.int64),
        np.append(track[others], np.full(crops, 30)),
        np.append(frame[others], 1500 + np.arange(crops)),
        np.concatenate([features[others], mixed.astype(np.float32)]),
        split=True,
    )
    parts = np.flatnonzero(tracklets.track == 30)
    assert tracklets.first_frame[parts].tolist() == begins
    assert tracklets.last_frame[parts].tolist() == [*(begin - 1 for begin in begins[1:]), 1499 + crops]
    assert tracklets.frames[parts].sum() == crops
    assert len(tracklets) == 39 + len(begins)


def walk(track, frames, start, speed, height=100.0):
    """Boxes of one who walks along x, seen in these frames."""
    frames = np.asarray(list(frames))
    x = start + speed * frames / 25
    boxes = np.stack([x, np.full(len(x), 50.0), np.full(len(x), 40.0), np.full(len(x), height)], axis=1)
    return np.full(len(frames), track), frames, boxes


SECOND_HALF = {
    "continues": (walk(2, range(70, 120), 0, 100), True),
    "continues with another appearance": (walk(2, range(70, 120), 0, 100), False),
    "elsewhere": (walk(2, range(70, 120), 300, 100), False),
    "opposite direction": (walk(2, range(70, 120), 560, -100), False),
    "twice as tall": (walk(2, range(70, 120), 0, 100, 200.0), False),
    "after too long": (walk(2, range(130, 180), 0, 100), False),
    "while the first is still there": (walk(2, range(40, 90), 0, 100), False),
    "of one box": (walk(2, [60], 0, 100), True),
}


@pytest.mark.parametrize("case", SECOND_HALF)
def test_stitching_of_lost_and_found_tracks(case):
    second, joined = SECOND_HALF[case]
    first = walk(1, range(1, 51), 0, 100)
    rng = np.random.default_rng(0)
    crowd = [walk(10 + number, range(1, 200), 1000 + 100 * number, 0) for number in range(8)]
    track, frame, boxes = (np.concatenate(column) for column in zip(first, second, *crowd, strict=True))
    looks = {number: unit(rng.normal(size=32)) for number in np.unique(track).tolist()}
    if "appearance" not in case:
        looks[2] = unit(looks[1] + 0.1 * rng.normal(size=32) / 6)
    tracks = Tracks.from_columns(("cam01",), np.zeros(len(track), int), track, frame, boxes)
    rows = np.array([np.flatnonzero(track == number)[0] for number in looks])
    embeddings = Embeddings(
        np.array(list(looks.values())), camids=np.zeros(len(rows), int), tracks=track[rows], frames=frame[rows]
    )
    options = {"camera_names": {0: "cam01"}}
    tracklets = Tracklets.from_tracks(tracks, embeddings, **options)
    want = np.full(len(tracklets), -1)
    want[tracklets.track == 2] = 1 if joined else -1
    assert tracklets.previous_track.tolist() == want.tolist()
    assert (Tracklets.from_tracks(tracks, embeddings, **options, stitch=False).previous_track == -1).all()
    few = tracks.take(np.flatnonzero(tracks.track < 14))
    crops = np.isin(embeddings.tracks, few.track)
    assert (Tracklets.from_tracks(few, embeddings.take(crops), **options).previous_track == -1).all(), (
        "too few certain negatives"
    )


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_stitched_tracks_are_one_identity_unless_a_rule_forbids_it(solver):
    tracklets, _ = make_tracklets(people=10, cameras=3, visits=4)
    key = [(tracklets.camera_names[c], int(t), -1) for c, t in zip(tracklets.camera, tracklets.track, strict=True)]
    settings = MatchSettings(solver=solver, threshold=0.0)
    apart = match(tracklets, settings=settings)
    first = int(np.argmin(tracklets.end))
    later = np.flatnonzero((tracklets.camera == tracklets.camera[first]) & (tracklets.start > tracklets.end[first]))
    second = int(later[apart.identity[later] != apart.identity[first]][0])
    previous_track = tracklets.previous_track.copy()
    previous_track[second] = tracklets.track[first]
    broken = replace(tracklets, previous_track=previous_track)
    joined = match(broken, settings=settings)
    assert joined.identity[first] == joined.identity[second]
    assert joined.protocol["stitched_tracks"] == 1
    split = match(broken, settings=settings, constraints=Constraints(cannot_link=((key[first], key[second]),)))
    assert split.identity[first] != split.identity[second]
    assert match_online(broken, settings=settings).identity[first] > 0


@pytest.mark.parametrize("column", ["camids", "tracks"])
def test_an_unknown_camera_or_track_is_not_taken_for_one_camera_or_track(column):
    columns = {"camids": [1, 1, 1], "tracks": [1, 2, 3], "frames": [1, 2, 3], column: [1, -1, -1]}
    with pytest.raises(ReidError, match=r"2 of 3 embeddings have a? ?(camid -1|track below 0)"):
        Tracklets.from_embeddings(Embeddings(np.eye(3), **columns))
