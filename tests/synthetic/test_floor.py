"""Cameras that share one floor: homographies, overlaps, meetings, corridors, and recordings without pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from reid.core.errors import ConfigError
from reid.mtmc.cameras import Camera as GroundCamera
from reid.mtmc.cameras import read_cameras
from reid.mtmc.track_files import read_tracks
from reid.synthetic import Recording, SyntheticSettings, record, simulate_embeddings, synthesize
from reid.synthetic.camera_models import scene_background
from reid.synthetic.world import TEST, World, plan_world
from tests.synthetic.rendering import rendered_people


def scene(people: int = 6, cameras: int = 2, **settings: Any) -> SyntheticSettings:
    given: dict[str, Any] = {"site": "floor", "train_fraction": 0, "difficulty": {"crowd": 3}, **settings}
    return SyntheticSettings(ids=people + 2, cameras=cameras, **given)


def shared_moments(recording: Recording) -> float:
    """Return the fraction of a person's half seconds in view during which two or more cameras see the person."""
    truth = recording.truth
    offsets = np.array([camera["offset"] for camera in recording.cameras["cameras"].values()])
    moment = np.round(2 * (offsets[truth.camera] + (truth.frame - 1) / recording.settings.fps)).astype(int)
    seen = np.unique(np.stack([truth.track, moment, truth.camera]), axis=1)
    return float((np.unique(seen[:2], axis=1, return_counts=True)[1] > 1).mean())


def floor_passes(world: World) -> list[Any]:
    return [sighting.walk for seen in world.sightings[TEST] for sighting in seen]


@pytest.mark.parametrize("distortion", [0.0, -0.15], ids=["no distortion", "barrel distortion"])
def test_homographies_map_true_feet_to_where_people_walk(distortion: float) -> None:
    settings = scene(cameras=3, floor={"distortion": distortion})
    world, recording = plan_world(settings), record(settings)
    errors = []
    for c, camera in enumerate(world.cameras):
        entry = recording.cameras["cameras"][camera.name]
        ground = GroundCamera(**{key: value for key, value in entry.items() if key not in ("position", "azimuth")})
        for sighting in world.sightings[TEST][c]:
            boxes = sighting.boxes[sighting.inside > 0.999]
            feet = np.stack([boxes[:, 0] + boxes[:, 2] / 2, boxes[:, 1] + boxes[:, 3]], axis=1)
            times = sighting.times[sighting.inside > 0.999]
            walk = sighting.walk.walk
            true = np.stack([np.interp(times, walk.times, axis) for axis in walk.points.T], axis=1)
            # `Camera.ground` reads the middle of a box's lower edge.
            found = ground.ground(np.concatenate([feet, np.zeros_like(feet)], axis=1))
            errors += np.hypot(*(found - true).T).tolist()
    assert len(errors) > 500
    assert np.median(errors) < 0.13, "feet are drawn 0.1 m in front of the ground point"
    assert np.quantile(errors, 0.95) < 0.5


def test_overlap_sets_how_often_two_cameras_see_a_person_simultaneously() -> None:
    none, half, full = (shared_moments(record(scene(8, floor={"overlap": overlap}))) for overlap in (0.0, 0.5, 1.0))
    assert none == 0
    assert 0.2 < half < full
    assert full > 0.6


def test_cameras_without_overlap_are_listed_as_not_overlapping() -> None:
    assert record(scene(floor={"overlap": 0})).cameras["overlapping"] == []
    assert record(scene(floor={"overlap": 0.5})).cameras["overlapping"] == [["cam01", "cam02"]]


def test_some_people_stop_together_only_if_meetings_are_set() -> None:
    def meetings(fraction: float) -> int:
        walks = {id(one.walk): one.walk for one in floor_passes(plan_world(scene(12, floor={"meetings": fraction})))}
        pauses = [(walk.person, *pause) for walk in walks.values() for pause in walk.pauses]
        return sum(
            a[0] < b[0] and np.hypot(*(a[1] - b[1])) < 1.5 and min(a[3], b[3]) - max(a[2], b[2]) > 1
            for a in pauses
            for b in pauses
        )

    assert meetings(1.0) > meetings(0.0) + 3


def test_everyone_walks_the_same_way_in_a_corridor() -> None:
    for one in floor_passes(plan_world(scene(8, site="corridor"))):
        assert (np.diff(one.walk.points[:, 0]) >= -1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize(("people", "cameras"), [(3, 1), (3, 4), (15, 1), (15, 4)])
def test_small_scenes_contain_every_person(people: int, cameras: int) -> None:
    recording = record(scene(people, cameras))
    assert recording.truth.camera_names == tuple(f"cam{number:02d}" for number in range(1, cameras + 1))
    assert np.unique(recording.truth.track).tolist() == list(range(3, people + 3))


def test_a_recording_depends_on_its_settings_only() -> None:
    first, other = record(scene(seed=1)), record(scene(seed=2))
    plan_world.cache_clear()
    again = record(scene(seed=1))
    assert (first.tracks.boxes == again.tracks.boxes).all()
    assert len(first.tracks) != len(other.tracks)
    assert (simulate_embeddings(first, noise=1).features == simulate_embeddings(again, noise=1).features).all()


def test_true_people_of_tracked_boxes_agree_with_the_truth() -> None:
    recording = record(scene(8, tracker={"switch": 1.0, "split": 0.5, "jitter": 0.0}))
    truth, tracks = recording.truth, recording.tracks
    box_of = {key: row for row, key in enumerate(zip(truth.camera, truth.frame, truth.track, strict=True))}
    real = recording.person >= 0
    keys = zip(tracks.camera[real], tracks.frame[real], recording.person[real] + 1, strict=True)
    rows = [box_of[key] for key in keys]
    assert np.abs(truth.boxes[rows] - tracks.boxes[real]).max() < 0.011
    people_per_track = {
        key: len(np.unique(recording.person[(tracks.camera == key[0]) & (tracks.track == key[1]) & real]))
        for key in set(zip(tracks.camera.tolist(), tracks.track.tolist(), strict=True))
    }
    assert max(people_per_track.values()) > 1, "ids are switched"


def test_less_noise_separates_people_better() -> None:
    recording = record(scene(10))

    def gap(noise: float) -> float:
        """Return the mean cosine of one person in two cameras minus that of two people, in standard deviations."""
        table = simulate_embeddings(recording, noise=noise, lookalikes=0)
        cosine = table.features @ table.features.T
        across = table.camids[:, None] != table.camids
        same = table.pids[:, None] == table.pids
        return float((cosine[across & same].mean() - cosine[across & ~same].mean()) / cosine[across & ~same].std())

    assert gap(0.5) > 1.5 * gap(1.0) > 2 * gap(1.5) > 0


def test_one_camera_needs_a_floor() -> None:
    with pytest.raises(ConfigError, match="cameras=1 needs site=floor"):
        SyntheticSettings(cameras=1)


@pytest.mark.slow
def test_distorted_backgrounds_bend_straight_lines_and_keep_the_centre() -> None:
    world = plan_world(scene(floor={"distortion": -0.2}))
    straight = plan_world(scene()).cameras[0]
    bent, plain = scene_background(world.cameras[0]).astype(int), scene_background(straight).astype(int)
    height, width = plain.shape[:2]
    change = np.abs(bent - plain).sum(-1)
    assert change[height // 2 - 8 : height // 2 + 8, width // 2 - 8 : width // 2 + 8].mean() < 3
    assert change[:40].mean() > 1


@pytest.mark.slow
def test_a_floor_is_rendered_and_written_with_homographies(tmp_path: Path) -> None:
    root = synthesize(tmp_path / "floor", scene(4, 2, floor={"distortion": -0.1}, track_seconds=20, seed=1), stills=2)
    tracks = read_tracks(root / "tracks")
    cameras = read_cameras(root / "cameras.yaml", tracks.camera_names)
    assert all(camera.homography is not None for camera in cameras.cameras.values())
    assert yaml.safe_load((root / "cameras.yaml").read_text())["overlapping"] == [["cam01", "cam02"]]
    assert list((root / "query").glob("*.jpg"))
    assert list((root / "stills").rglob("*.jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("distortion", [0.0, -0.2], ids=["no distortion", "barrel distortion"])
def test_true_boxes_on_a_floor_contain_the_rendered_people(distortion: float) -> None:
    world = plan_world(scene(6, 2, floor={"distortion": distortion}, difficulty={"crowd": 1, "occluders": 0}))
    overlaps = []
    for (x, y, w, h), changed in rendered_people(world):
        inside = changed[max(0, int(y) - 3) : int(y + h) + 4, max(0, int(x) - 6) : int(x + w) + 7].sum()
        overlaps.append(inside / changed.sum())
    assert len(overlaps) > 3
    assert np.median(overlaps) > 0.97
