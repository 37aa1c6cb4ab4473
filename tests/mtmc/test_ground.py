"""Matching by positions on the ground, without appearance."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from reid.config import StreamSettings
from reid.core.errors import ReidError
from reid.mtmc import Camera, Cameras, Constraints, Tracklets, Tracks, match, read_cameras
from reid.mtmc.constraints import REASONS, compile_rules
from reid.mtmc.ground import (
    FAR_APART,
    FASTEST,
    MAX_SPEED,
    MIN_SAMPLES,
    MOTION_SECONDS,
    SPEED,
    fit_edges,
    measure_distances,
    walk_variance,
)
from reid.mtmc.matching import forbid_too_fast
from reid.mtmc.online import match_online
from reid.mtmc.thresholds import fit_slope
from tests.oracles.tracks import compare_paths_loop, path_end_loop

PIXELS = 50.0


def floor_cameras(*offsets):
    """Cameras that look straight down, 50 pixels a metre; each image begins at another place of the floor."""
    return Cameras(
        {
            f"cam{number + 1:02d}": Camera(fps=10, homography=[[1 / PIXELS, 0, x], [0, 1 / PIXELS, y], [0, 0, 1]])
            for number, (x, y) in enumerate(offsets)
        }
    )


def tracks_on_floor(cameras, walks, *, seed=0, noise=0.1):
    """Tracks of walks (camera number, first frame, positions `[M, 2]` in metres); the local id is the walk's number."""
    rng = np.random.default_rng(seed)
    camera, track, frame, boxes = [], [], [], []
    for number, (place, first, positions) in enumerate(walks):
        matrix = np.linalg.inv(cameras.cameras[f"cam{place + 1:02d}"].homography)
        feet = np.column_stack([positions + noise * rng.normal(size=2), np.ones(len(positions))]) @ matrix.T
        for step, (x, y, _) in enumerate(feet):
            camera.append(place)
            track.append(number)
            frame.append(first + step)
            boxes.append([x - 12, y - 60, 24, 60])
    return Tracks.from_columns(list(cameras.cameras), camera, track, frame, boxes)


def line(start, end, frames):
    return np.linspace(start, end, frames)


def identities(cameras, walks, constraints=None):
    """Identity of each walk."""
    tracklets = Tracklets.from_tracks(tracks_on_floor(cameras, walks), None, cameras)
    matches = match(tracklets, cameras=cameras, constraints=constraints)
    return matches, dict(zip(tracklets.track.tolist(), matches.identity.tolist(), strict=True))


def test_two_people_who_cross_are_told_apart_in_two_overlapping_cameras():
    cameras = floor_cameras((0, 0), (-3, 5))
    first, second = line((0, 0), (12, 12), 120), line((12, 0), (0, 12), 120)
    matches, found = identities(cameras, [(0, 1, first), (0, 1, second), (1, 1, first), (1, 1, second)])
    assert found[0] == found[2] != found[1] == found[3]
    assert matches.protocol["of_these_too_far_apart"] == 2


def test_a_walk_is_continued_over_a_gap_in_another_camera():
    cameras = floor_cameras((0, 0), (10, 0))
    walks = [(0, 1, line((0, 2), (8, 2), 60)), (1, 81, line((10.7, 2), (18, 2), 60)), (0, 81, line((1, 9), (8, 9), 60))]
    _, found = identities(cameras, walks)
    assert found[0] == found[1] != found[2]


def test_no_one_runs_faster_than_the_limit_between_two_tracklets():
    cameras = floor_cameras((0, 0))
    walks = [(0, 1, line((0, 0), (1, 0), 20)), (0, 31, line((14, 0), (15, 0), 20))]
    tracklets = Tracklets.from_tracks(tracks_on_floor(cameras, walks), None, cameras)
    evidence = measure_distances(tracklets)
    assert evidence.too_fast.tolist() == [[0, 1]]
    rules = forbid_too_fast(compile_rules(tracklets, cameras), evidence)
    assert REASONS[rules.violations(np.array([1]), np.array([0]))[0]] == "too fast on the ground"
    assert tracklets.has_path.tolist() == [True, True]


def test_a_must_link_overrules_feet_that_are_far_apart():
    cameras = floor_cameras((0, 0), (0, 0))
    walks = [(0, 1, line((0, 0), (5, 0), 50)), (1, 1, line((0, 8), (5, 8), 50))]
    assert len(set(identities(cameras, walks)[1].values())) == 2
    must = Constraints(must_link=((("cam01", 0, -1), ("cam02", 1, -1)),))
    assert len(set(identities(cameras, walks, must)[1].values())) == 1


def test_positions_are_not_interpolated_where_a_track_is_interrupted():
    cameras = floor_cameras((0, 0), (0, 0))
    path = line((0, 0), (10, 0), 100)
    tracks = tracks_on_floor(cameras, [(0, 1, path), (1, 1, path)])
    kept = ~((tracks.camera == 1) & (tracks.frame > 20) & (tracks.frame < 81))
    evidence = measure_distances(Tracklets.from_tracks(tracks.take(kept), None, cameras))
    assert evidence.distance[0] < 0.5
    assert evidence.log_ratio[0] > 5


def test_the_variance_of_a_walk_grows_from_zero_and_at_last_with_time():
    assert walk_variance(0) == pytest.approx(0)
    assert walk_variance(0.1) == pytest.approx(2 / 3 * SPEED**2 * 0.1**3 / 2, rel=0.1)
    assert walk_variance(101) - walk_variance(100) == pytest.approx(2 * SPEED**2 * 2)


def test_the_error_on_the_ground_grows_with_distance_and_at_the_border():
    tilted = Camera(size=(640, 480), homography=[[0.01, 0, -3.2], [0, -0.01, 6], [0, 0.004, -0.2]])
    near, far, cut = tilted.ground_error([[300, 300, 40, 120], [300, 60, 20, 40], [300, 400, 40, 120]])
    assert far > 2 * near
    assert cut > 2 * near


def point_lines(matrix, outlier=False):
    image = np.array([[0, 0], [640, 0], [640, 480], [0, 480], [320, 100], [100, 300]], float)
    ground = np.column_stack([image, np.ones(6)]) @ np.array(matrix).T
    ground = ground[:, :2] / ground[:, 2:]
    if outlier:
        ground[5] += 50
    return np.column_stack([image, ground]).round(6).tolist()


def test_a_homography_is_fitted_to_points_without_outliers_and_follows_another_camera(tmp_path):
    matrix = [[0.02, 0.001, 1], [0.0, 0.03, 2], [0.0, 0.0005, 1]]
    shift = [[1, 0, 30], [0, 1, -10], [0, 0, 1]]
    path = tmp_path / "cameras.yaml"
    path.write_text(
        f"cameras:\n  a: {{points: {point_lines(matrix, outlier=True)}}}\n"
        f"  b: {{points: {point_lines(shift)}, points_to: a}}\n"
    )
    cameras = read_cameras(path, ["a", "b"])
    assert cameras["a"].homography / cameras["a"].homography[2, 2] == pytest.approx(np.array(matrix), abs=1e-4)
    expected = np.array(matrix) @ np.array(shift)
    found = cameras["b"].homography
    assert found / found[2, 2] == pytest.approx(expected / expected[2, 2], abs=1e-4)
    assert cameras.fits[0].startswith("a: homography of 5 of 6 points")
    assert "pixels of a" in cameras.fits[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: {points: [[0, 0, 1, 1]]}", "4 pairs", id="one pair"),
        pytest.param("a: {points: [[0,0,0,0],[1,1,1,1],[2,2,2,2],[3,3,3,3]]}", "no homography fits", id="on a line"),
        pytest.param(f"a: {{points: {point_lines(np.eye(3))}, points_to: a}}", "circle", id="leads to itself"),
        pytest.param(f"a: {{points: {point_lines(np.eye(3))}, points_to: x}}", "listed camera", id="unknown camera"),
    ],
)
def test_points_that_give_no_homography_are_an_error(tmp_path, text, message):
    path = tmp_path / "cameras.yaml"
    path.write_text(f"cameras:\n  {text}\n")
    with pytest.raises(ReidError, match=message):
        read_cameras(path, ["a"])


def test_lens_distortion_is_removed_before_projection():
    plain = Camera(size=(640, 480), homography=np.eye(3).tolist())
    bent = Camera(size=(640, 480), homography=np.eye(3).tolist(), distortion=(-0.2, 0.0, 0.0, 0.0))
    middle, corner = [[310, 180, 20, 60]], [[590, 380, 20, 60]]
    assert bent.ground(middle) == pytest.approx(plain.ground(middle))
    assert bent.ground(corner)[0, 0] > plain.ground(corner)[0, 0] + 5


def random_paths(seed):
    """Tracklets of three cameras with ugly paths: interruptions, single positions, none at all, equal times."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 25))
    count = rng.integers(0, 60, n)
    paths = np.empty(n, object)
    for row in range(n):
        frames = np.sort(rng.choice(200, count[row], replace=False)) if seed % 2 else np.arange(count[row])
        place = np.cumsum(rng.normal(0, 0.2, (count[row], 2)), axis=0) + rng.uniform(0, 8, 2)
        seconds = frames / 10 + rng.integers(0, 80) / 10 + rng.choice([0, 0.03])
        paths[row] = np.column_stack([seconds, place, rng.uniform(0.1, 1, count[row])])
    camera = np.sort(rng.integers(0, 3, n))
    features = np.zeros((n, 2), np.float32)
    tracklets = Tracklets.from_features(["a", "b", "c"], camera, np.arange(n), np.ones(n, np.int64), features)
    span = [(path[0, 0], path[-1, 0]) if len(path) else (0.0, 0.0) for path in paths]
    start, end = np.array(span).T
    return replace(tracklets, start=start, end=end, paths=paths)


@pytest.mark.parametrize("seed", range(6))
def test_simultaneous_positions_are_compared_as_in_a_loop(seed):
    tracklets = random_paths(seed)
    evidence = measure_distances(tracklets)
    found = {pair: row for row, pair in enumerate(zip(evidence.first.tolist(), evidence.second.tolist(), strict=True))}
    paths, camera = tracklets.paths, tracklets.camera
    ends = [
        [path_end_loop(path, end, MOTION_SECONDS, MIN_SAMPLES, MAX_SPEED) if len(path) else None for path in paths]
        for end in (False, True)
    ]
    too_fast, pairs = set(), set()
    for a, b in itertools.permutations(range(len(paths)), 2):
        if len(paths[a]) == 0 or len(paths[b]) == 0:
            continue
        (end, place, _, error), (begin, other, _, other_error) = ends[1][a], ends[0][b]
        allowed = FASTEST * (begin - end) + FAR_APART * np.hypot(error, other_error)
        if end < begin <= end + 6 * evidence.spread / FASTEST and np.linalg.norm(other - place) > allowed:
            too_fast.add((min(a, b), max(a, b)))
        if a < b and camera[a] != camera[b]:
            first, second = (a, b) if tracklets.start[a] <= tracklets.start[b] else (b, a)
            _, _, distance, samples, _ = compare_paths_loop(paths[first], paths[second])
            overlap = tracklets.start[second] <= tracklets.end[first]
            assert ((a, b) in found) == bool(samples and overlap)
            if samples and overlap:
                pairs.add((a, b))
                assert evidence.distance[found[a, b]] == pytest.approx(distance)
    assert pairs == set(found)
    assert too_fast == set(map(tuple, evidence.too_fast.tolist()))


@pytest.mark.parametrize("seed", range(4))
def test_ends_of_paths_are_fitted_as_one_by_one(seed):
    paths = [path for path in random_paths(seed).paths if len(path)]
    group = np.repeat(np.arange(len(paths)), [len(path) for path in paths])
    for end in (False, True):
        edges = fit_edges(np.concatenate(paths), group, len(paths), end)
        for row, path in enumerate(paths):
            seconds, position, velocity, error = path_end_loop(path, end, MOTION_SECONDS, MIN_SAMPLES, MAX_SPEED)
            assert edges.seconds[row] == pytest.approx(seconds)
            assert edges.position[row] == pytest.approx(position)
            assert edges.velocity[row] == pytest.approx(velocity, abs=1e-9)
            assert edges.error[row] == pytest.approx(error)


def test_looks_count_as_much_as_they_agree_with_the_ground():
    rng = np.random.default_rng(0)
    one = rng.random(400) < 0.5
    slopes = [
        fit_slope(np.where(one, 1, -1) * strength + 0.2 * rng.normal(size=400), np.where(one, 0.95, 0.05), 5.0)
        for strength in (0.05, 0.3)
    ]
    assert slopes[0] < 5 < slopes[1]
    assert fit_slope(np.zeros(0), np.zeros(0), 5.0) == 5.0
    assert fit_slope(np.array([0.3]), np.array([0.95]), 5.0) == pytest.approx(5.0, rel=0.2)


def test_positions_decide_online_as_they_do_offline():
    cameras = floor_cameras((0, 0), (10, 0), (0, 0))
    walks = [
        (0, 1, line((0, 2), (8, 2), 60)),
        (2, 1, line((0, 2), (8, 2), 60)),
        (1, 81, line((10.7, 2), (18, 2), 60)),
        (0, 81, line((1, 9), (8, 9), 60)),
    ]
    tracklets = Tracklets.from_tracks(tracks_on_floor(cameras, walks), None, cameras)
    online = match_online(tracklets, stream=StreamSettings(period=5), cameras=cameras)
    found = dict(zip(tracklets.track.tolist(), online.identity.tolist(), strict=True))
    assert found[0] == found[1] == found[2] != found[3]
