"""Self-calibration: ground planes and clocks of overlapping cameras from tracks; refused where they do not overlap."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from reid.core.errors import ConfigError
from reid.embedding.table import Embeddings
from reid.mtmc import Camera, Cameras, Tracklets, match, read_cameras, write_tracks
from reid.mtmc.self_calibration import (
    SelfCalibration,
    calibrate_from_tracks,
    simultaneous_matches,
    write_estimated_cameras,
)
from reid.mtmc.single_view import MIN_BOXES, estimate_ground_plane
from reid.mtmc.view_alignment import Pair, Similarity, Walks, align, log_ratio
from reid.pipelines.match import match_files
from reid.pipelines.settings import MatchFiles
from reid.synthetic import Recording, SyntheticSettings, record, simulate_embeddings
from tests.oracles.view_alignment import log_ratio as slow_log_ratio

SHIFT = 0.6  # seconds by which the clock of the second camera is set ahead


def scene(overlap: float, site: str = "floor", ids: int = 10) -> Recording:
    settings = {"cameras": 2, "site": site, "floor": {"overlap": overlap}, "difficulty": {"crowd": 3.5}}
    return record(SyntheticSettings(seed=3, ids=ids, train_fraction=0, **settings))


def true_cameras(recording: Recording) -> Cameras:
    entries = recording.cameras["cameras"].items()
    return Cameras({
        name: Camera(fps=10, offset=one["offset"], size=one["size"], homography=one["homography"])
        for name, one in entries
    })  # fmt: skip


def without_geometry(cameras: Cameras, shift: float = 0.0) -> Cameras:
    return Cameras({
        name: Camera(fps=10, offset=camera.offset + shift * (name == "cam02"), size=camera.size)
        for name, camera in cameras.cameras.items()
    })  # fmt: skip


def calibrate(recording: Recording, table: Embeddings | None, shift: float = 0.0) -> SelfCalibration:
    cameras = without_geometry(true_cameras(recording), shift)
    tracklets = Tracklets.from_tracks(recording.tracks, table, cameras)
    likely = np.zeros((0, 2), np.int64)
    if table is not None:
        likely = simultaneous_matches(match(tracklets, cameras=cameras))
    return calibrate_from_tracks(recording.tracks, tracklets, likely, cameras)


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    mapped = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def error(recording: Recording, found: Cameras) -> float:
    """Median error in metres of where the people of the first camera are in the image of the second."""
    true, tracks = true_cameras(recording), recording.tracks
    boxes = tracks.boxes[tracks.camera == 0]
    feet = np.column_stack([boxes[:, 0] + boxes[:, 2] / 2, boxes[:, 1] + boxes[:, 3]])
    first, second = (camera.homography for camera in found.cameras.values())
    ground, back = (camera.homography for camera in true.cameras.values())
    right = project(ground, feet)
    x, y = project(np.linalg.inv(back), right).T
    width, height = true["cam02"].size or (0, 0)
    seen = (x > 0) & (x < width) & (y > 0) & (y < height)
    missed = project(back, project(np.linalg.inv(second), project(first, feet))) - right
    return float(np.median(np.linalg.norm(missed[seen], axis=1)))


@pytest.fixture(scope="module")
def overlapping() -> Recording:
    return scene(0.7)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, None])
def test_overlapping_cameras_are_calibrated(overlapping: Recording, noise: float | None) -> None:
    table = None if noise is None else simulate_embeddings(overlapping, noise=noise)
    found = calibrate(overlapping, table, SHIFT)
    assert found.cameras is not None, found.describe()
    assert error(overlapping, found.cameras) < 0.5
    ahead = found.cameras["cam01"].offset - found.cameras["cam02"].offset
    true = true_cameras(overlapping)
    assert ahead == pytest.approx(true["cam01"].offset - true["cam02"].offset, abs=0.15)
    assert found.residuals["cam01", "cam02"] < 0.5


@pytest.mark.slow
def test_shuffled_features_never_give_a_wrong_calibration(overlapping: Recording) -> None:
    table = simulate_embeddings(overlapping, noise=0.5)
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = Embeddings(table.features[order], camids=table.camids, tracks=table.tracks, frames=table.frames)
    found = calibrate(overlapping, shuffled)
    assert found.cameras is None or error(overlapping, found.cameras) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("appearance", ["good", "all look alike", "none"])
def test_cameras_that_do_not_overlap_are_not_calibrated(appearance: str) -> None:
    recording = scene(0.0, ids=14)
    table = simulate_embeddings(recording, noise=0.5)
    if appearance == "all look alike":
        rng = np.random.default_rng(0)
        features = np.ones_like(table.features) + 0.01 * rng.normal(size=table.features.shape).astype(np.float32)
        table = Embeddings(features, camids=table.camids, tracks=table.tracks, frames=table.frames)
    found = calibrate(recording, None if appearance == "none" else table)
    assert found.cameras is None, found.describe()


@pytest.mark.slow
def test_a_clock_is_not_mistaken_for_a_place_in_a_one_way_corridor() -> None:
    recording = scene(0.5, "corridor")
    found = calibrate(recording, None, SHIFT)
    assert found.cameras is None
    assert "clock and position" in found.describe()[0]


def test_given_geometry_is_left_alone(overlapping: Recording) -> None:
    cameras = true_cameras(overlapping)
    tracklets = Tracklets.from_tracks(overlapping.tracks, None, cameras)
    found = calibrate_from_tracks(overlapping.tracks, tracklets, np.zeros((0, 2), np.int64), cameras)
    assert found.cameras is None
    assert found.alignments == ()


def test_cameras_that_are_known_not_to_overlap_are_not_examined(overlapping: Recording) -> None:
    cameras = replace(without_geometry(true_cameras(overlapping)), overlaps_known=True)
    tracklets = Tracklets.from_tracks(overlapping.tracks, None, cameras)
    found = calibrate_from_tracks(overlapping.tracks, tracklets, np.zeros((0, 2), np.int64), cameras)
    assert found.alignments == ()


@pytest.mark.slow
def test_match_without_appearance_or_geometry_writes_the_cameras(overlapping: Recording, tmp_path: Path) -> None:
    write_tracks(overlapping.tracks, tmp_path / "tracks", "mot")
    (tmp_path / "cameras.yaml").write_text("cameras:\n  cam01: {fps: 10, size: [960, 540]}\n  cam02: {fps: 10}\n")
    files = MatchFiles(tracks=tmp_path / "tracks")
    result = match_files(files, tmp_path / "out")
    found = read_cameras(tmp_path / "out" / "cameras.estimated.yaml", ["cam01", "cam02"])
    assert error(overlapping, found) < 0.5
    assert result.matches.protocol["simultaneous_pairs_on_the_ground"] > 0
    assert "not measured" in (tmp_path / "out" / "report.html").read_text("utf-8")
    with pytest.raises(ConfigError, match="neither appearance nor positions"):
        match_files(files.model_copy(update={"self_calibrate": False}), tmp_path / "other")


def test_estimated_cameras_are_read_back(tmp_path: Path) -> None:
    matrix = np.array([[0.01, 0.002, 3], [-0.001, 0.02, 4], [1e-5, 1e-3, 1]])
    a = Camera(
        fps=10, offset=1.5, size=(640, 480), homography=matrix, drift=0.001, distortion=(0.1, 0, 0, 0), focal=500
    )
    b = Camera(fps=25, clock=((1, 0.0), (26, 1.5)))
    epoch = datetime(2026, 11, 23, 8, tzinfo=timezone.utc)
    cameras = Cameras({"a": a, "b": b}, transition_times={("a", "b"): (-np.inf, 60.0)}, epoch=epoch)
    path = write_estimated_cameras(SelfCalibration(cameras, (), {}), tmp_path / "cameras.estimated.yaml")
    found = read_cameras(path, ["a", "b"])
    assert found["a"].homography == pytest.approx(matrix, rel=1e-6)
    assert (found["a"].offset, found["a"].distortion, found["a"].focal) == (1.5, (0.1, 0, 0, 0), 500)
    assert (found["b"].clock, found.epoch) == (b.clock, epoch)
    assert found.transition_times == cameras.transition_times
    assert not found.overlaps_known


def pinhole_boxes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of people of 1.7 m before a camera 4 m high, tilted by 0.3 with focal length 800, and their places."""
    rng = np.random.default_rng(seed)
    places = np.column_stack([rng.uniform(-4, 4, n), rng.uniform(6, 16, n)])
    s, c = np.sin(0.3), np.cos(0.3)
    rotation = np.array([[1, 0, 0], [0, -s, -c], [0, c, -s]])
    foot, head = ((np.column_stack([places, np.full(n, z)]) - [0, 0, 4]) @ rotation.T for z in (0.0, 1.7))
    foot, head = (800 * side[:, :2] / side[:, 2:] + [400, 300] for side in (foot, head))
    height = foot[:, 1] - head[:, 1]
    return np.column_stack([foot[:, 0] - height / 6, head[:, 1], height / 3, height]), places


def test_the_ground_plane_comes_from_the_heights_of_people() -> None:
    boxes, places = pinhole_boxes(200)
    matrix = estimate_ground_plane(boxes, (800, 600))
    assert matrix is not None
    found = project(matrix, np.column_stack([boxes[:, 0] + boxes[:, 2] / 2, boxes[:, 1] + boxes[:, 3]]))
    assert np.median(np.linalg.norm(found - places, axis=1)) < 0.1
    assert estimate_ground_plane(boxes[: MIN_BOXES - 1], (800, 600)) is None


def random_pair(rng: np.random.Generator) -> Pair:
    def walks() -> Walks:
        n = int(rng.integers(0, 30))
        tick, row = rng.integers(0, 12, n), rng.integers(0, 4, n)
        return Walks(tick, row, rng.normal(0, 3, (n, 2)), rng.uniform(0.1, 1, n), rng.normal(0, 1, (n, 2)))

    s, c = np.sin(0.3), np.cos(0.3)
    to_image = np.array([[800, 0, 400], [0, 800, 300], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, -s, 4 * c], [0, c, 4 * s]]
    )
    view = Camera(size=(800, 600), homography=np.linalg.inv(to_image))
    first, second = walks(), walks()
    ahead = np.array([0.0, 10.0])
    return Pair(replace(first, place=first.place + ahead), replace(second, place=second.place + ahead), view, 50.0)


def test_the_log_ratio_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pair = random_pair(rng)
        similarity = Similarity(complex(*rng.normal(size=2)), complex(*rng.normal(0, 3, 2)), int(rng.integers(-3, 4)))
        assert log_ratio(pair, similarity) == pytest.approx(slow_log_ratio(pair, similarity), abs=1e-9)


def test_too_few_simultaneous_tracklets_are_refused() -> None:
    pair = random_pair(np.random.default_rng(1))
    assert not align(pair, [(0, 0)], ("a", "b")).accepted
