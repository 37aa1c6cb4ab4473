"""Pooling, prototypes, splitting and laying crops to tracks."""

from __future__ import annotations

import numpy as np
import pytest

from reid import Embeddings
from reid.errors import ReidError
from reid.tracks import Camera, Cameras, Tracklets, Tracks
from reid.tracks.tracklets import change_points, pool, simultaneous_pairs


def unit(x):
    return x / np.linalg.norm(x)


@pytest.mark.parametrize("seed", range(5))
def test_pooling_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    n, tracklets = 60, 9
    features = rng.normal(size=(n, 5)).astype(np.float32) * rng.uniform(0.1, 9, (n, 1)).astype(np.float32)
    of = rng.integers(0, tracklets - 1, n)  # the last one has no crop
    weights = rng.uniform(0.05, 1, n)
    features[3], features[4], features[5] = np.nan, 0, np.inf
    got = pool(features, of, tracklets, weights)
    assert (~got.usable).nonzero()[0].tolist() == [3, 4, 5]
    for t in range(tracklets):
        rows = [row for row in range(n) if of[row] == t and row not in (3, 4, 5)]
        if not rows:
            assert not got.has_feature[t]
            assert (got.features[t] == 0).all()
            continue
        want = unit(sum(weights[row] * unit(features[row]) for row in rows))
        assert got.features[t] == pytest.approx(want, abs=1e-5)
        assert got.quality[t] == pytest.approx(np.mean(weights[rows]))


def test_prototypes_are_those_that_differ_most():
    angles = np.radians([0, 1, 2, 40, 80, 3, 1])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    zero = np.zeros(7, np.int64)
    made = Tracklets.of_features(["a"], zero, zero, np.arange(7), features, prototypes=3)
    pooled = np.degrees(np.arctan2(*made.features[0][::-1]))
    nearest = np.abs(np.degrees(angles) - pooled).argmin()
    assert nearest in made.prototype_row
    assert 4 in made.prototype_row
    assert len(made.prototype_row) == 3
    assert np.linalg.norm(made.prototypes, axis=1) == pytest.approx(1)


def test_equal_crops_give_one_prototype():
    zero = np.zeros(5, np.int64)
    made = Tracklets.of_features(["a"], zero, zero, np.arange(5), np.ones((5, 3), np.float32), prototypes=4)
    assert made.prototype_row.tolist() == [0]


def test_rows_are_sorted_and_timed():
    made = Tracklets.of_features(
        ["a", "b"],
        np.array([1, 0, 0, 1, 0]),
        np.array([7, 2, 1, 7, 2]),
        np.array([50, 9, 3, 25, 30]),
        np.eye(5, dtype=np.float32),
    )
    assert list(zip(made.camera, made.track, strict=True)) == [(0, 1), (0, 2), (1, 7)]
    assert made.start.tolist() == [3 / 25, 9 / 25, 1]
    assert made.end.tolist() == [3 / 25, 30 / 25, 2]
    assert made.frames.tolist() == [1, 2, 2]
    assert made.first_frame.tolist() == [3, 9, 25]


def test_embeddings_without_the_columns_needed():
    with pytest.raises(ReidError, match="no column tracks, frames"):
        Tracklets.of_embeddings(Embeddings(np.ones((2, 3)), camids=[1, 2]))


def test_embeddings_take_clocks_from_cameras():
    embeddings = Embeddings(np.eye(3), camids=[1, 1, 2], tracks=[5, 5, 5], frames=[1, 11, 1])
    cameras = Cameras({"cam01": Camera("cam01", fps=10, offset=3), "cam02": Camera("cam02")})
    made = Tracklets.of_embeddings(embeddings, cameras)
    assert made.camera_names == ("cam01", "cam02")
    assert made.start.tolist() == [3, 0]
    assert made.end.tolist() == [4, 0]
    with pytest.raises(ReidError, match="Camera 2 of the embeddings has no name"):
        Tracklets.of_embeddings(embeddings, cameras, camera_names={1: "cam01"})


def some_tracks():
    return Tracks.of(
        ("cam01", "cam02", "empty"),
        [0, 0, 0, 1, 1],
        [1, 1, 2, 1, 1],
        [1, 2, 1, 1, 2],
        [[0, 0, 10, 20], [1, 0, 10, 20], [5, 0, 10, 20], [0, 0, 10, 20], [0, 0, 10, 10]],
        [1, 0.5, 1, 1, 1],
    )


def test_tracks_without_embeddings_are_kept():
    embeddings = Embeddings(np.eye(3), camids=[1, 1, 2], tracks=[1, 1, 1], frames=[1, 2, 2])
    made = Tracklets.of_tracks(some_tracks(), embeddings)
    assert made.has_feature.tolist() == [True, False, True]
    assert made.camera_names == ("cam01", "cam02", "empty")
    assert made.frames.tolist() == [2, 1, 2]
    assert made.features[0, 0] != made.features[0, 1], "crops count by the quality of their boxes"
    none = Tracklets.of_tracks(some_tracks(), None)
    assert len(none) == 3
    assert not none.has_feature.any()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        pytest.param({"camids": [1], "tracks": [9]}, "camera cam01, track 9", id="a track that is not there"),
        pytest.param({"camids": [4], "tracks": [1]}, "cameras cam04", id="a camera that is not there"),
        pytest.param({"tracks": [1]}, "no camids", id="no cameras"),
    ],
)
def test_embeddings_that_do_not_fit(columns, words):
    with pytest.raises(ReidError, match=words):
        Tracklets.of_tracks(some_tracks(), Embeddings(np.ones((1, 3)), **columns))


def test_places_on_the_ground():
    cameras = Cameras({"cam01": Camera("cam01", homography=np.diag([2.0, 1.0, 1.0])), "cam02": Camera("cam02")})
    made = Tracklets.of_tracks(some_tracks(), None, cameras)
    assert made.entry[0].tolist() == [10, 20]
    assert made.exit[0].tolist() == [12, 20]
    assert np.isnan(made.entry[2]).all()


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
    made = Tracklets.of_features(["a", "b", "c"], camera, track, frame, features)
    want = {
        (a, b)
        for a in range(n)
        for b in range(a + 1, n)
        if made.has_feature[[a, b]].all()
        and made.camera[a] == made.camera[b]
        and max(made.start[a], made.start[b]) <= min(made.end[a], made.end[b])
    }
    got = {tuple(sorted(pair)) for pair in zip(*(column.tolist() for column in simultaneous_pairs(made)), strict=True)}
    assert got == want


def crowd(swapped, seed=0, noise=0.2):
    """40 tracks of 12 crops, two at a time in one camera; the tracks `swapped` change person at crop 5."""
    rng = np.random.default_rng(seed)
    person = rng.normal(size=(41, 16))
    person /= np.linalg.norm(person, axis=1, keepdims=True)
    rows = []
    for track in range(40):
        for shot in range(12):
            who = track + 1 if track in swapped and shot >= 5 else track
            rows.append((track, 100 * (track // 2) + shot, person[who] + noise * rng.normal(size=16) / 4))
    track, frame, features = (np.array(column) for column in zip(*rows, strict=True))
    return np.zeros(len(track), np.int64), track, frame, features.astype(np.float32)


def test_a_track_of_two_people_is_split():
    camera, track, frame, features = crowd(swapped={7, 20})
    made = Tracklets.of_features(["a"], camera, track, frame, features, split=True)
    assert len(made) == 42
    parts = np.flatnonzero(made.track == 7)
    assert made.first_frame[parts].tolist() == [300, 305]
    assert made.last_frame[parts].tolist() == [304, 311]
    assert made.frames[parts].tolist() == [5, 7]
    assert (made.track[made.prototype_of] == track[made.prototype_row]).all()
    inside = made.first_frame[made.prototype_of] <= frame[made.prototype_row]
    assert (inside & (frame[made.prototype_row] <= made.last_frame[made.prototype_of])).all()
    assert len(Tracklets.of_features(["a"], camera, track, frame, features)) == 40


def test_nothing_is_split_where_nothing_changes_or_nothing_is_known():
    assert len(Tracklets.of_features(["a"], *crowd(swapped=set()), split=True)) == 40
    _, track, frame, features = crowd(swapped={0})
    alone = track == 0
    cut = change_points(features[alone], track[alone], frame[alone], (np.zeros(1, int), np.zeros(1), np.ones(1)))
    assert cut[0] > frame.max(), "no two tracks at once, so nobody knows how far apart two people are"
