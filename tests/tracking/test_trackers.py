from __future__ import annotations

import sys

import numpy as np
import pytest

from reid.core.errors import ConfigError, ModelError
from reid.tracking import TRACKERS, Detections, link_boxes


def walkers(frames: np.ndarray, times: np.ndarray | None, people: int = 3) -> Detections:
    """People who walk to the right at different heights, one of them hardly confident."""
    frame = np.repeat(frames, people)
    person = np.tile(np.arange(people), len(frames))
    boxes = np.column_stack([10 + 3.0 * frame, 100.0 * person, 0 * frame + 30, 0 * frame + 80])
    confidence = np.where(person == people - 1, 0.05, 0.95)
    return Detections.from_columns(frames, times, frame, boxes, confidence)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_tracker_follows_people_who_walk_steadily(tracker: str) -> None:
    frames = np.arange(1, 21)
    tracks = link_boxes(walkers(frames, (frames - 1) / 10), "door", tracker)
    assert tracks.camera_names == ("door",)
    assert set(tracks.track.tolist()) == {1, 2}
    for track in (1, 2):
        assert len(set(tracks.boxes[tracks.track == track, 1].tolist())) == 1
    assert len(tracks) >= 2 * 17
    assert tracks.first_frame == 1


def test_one_frame_after_the_other_is_linked_as_the_package_does_it() -> None:
    import supervision
    from trackers import CBIoUTracker

    rng = np.random.default_rng(0)
    frames = np.flatnonzero(rng.random(60) < 0.8) + 1
    found = walkers(frames, frames / 10.0)
    found = Detections.from_columns(
        found.frames,
        found.times,
        found.frames[found.row],
        found.boxes + rng.normal(0, 2, found.boxes.shape),
        rng.random(len(found)),
    )
    engine, expected = CBIoUTracker(frame_rate=10), []
    for place, number in enumerate(found.frames):
        rows = [row for row in range(len(found)) if found.row[row] == place and found.confidence[row] >= 0.1]
        x, y, w, h = found.boxes[rows].T
        boxes = supervision.Detections(np.stack([x, y, x + w, y + h], axis=1), confidence=found.confidence[rows])
        for box, track in zip(
            *((r := engine.update(boxes, timestamp=found.times[place])).xyxy, r.tracker_id), strict=True
        ):
            if track >= 0:
                expected.append((int(number), int(track) + 1, *box[:2].tolist()))
    tracks = link_boxes(found, "door")
    columns = (tracks.frame.tolist(), tracks.track.tolist(), tracks.boxes[:, 0].tolist(), tracks.boxes[:, 1].tolist())
    assert sorted(zip(*columns, strict=True)) == sorted(expected)


def test_a_person_who_is_away_for_long_gets_a_new_id() -> None:
    frames = np.arange(1, 21)
    times = frames / 10 + np.where(frames > 10, 5, 0)
    assert set(link_boxes(walkers(frames, times, 2), "a").track.tolist()) == {1, 2}
    assert set(link_boxes(walkers(frames, None, 2), "a").track.tolist()) == {1}


def test_no_boxes_give_no_tracks() -> None:
    nothing = Detections.from_columns([1, 2], [0.0, 0.1], [], np.zeros((0, 4)))
    assert len(link_boxes(nothing, "a")) == 0
    assert len(link_boxes(Detections.from_columns([], None, [], np.zeros((0, 4))), "a")) == 0


def test_boxes_below_the_floor_are_not_passed_on() -> None:
    frames = np.arange(1, 21)
    assert len(link_boxes(walkers(frames, frames / 10, 1), "a", floor=0.1)) == 0


def test_unknown_trackers_and_missing_packages_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Detections.from_columns([], None, [], np.zeros((0, 4)))
    with pytest.raises(ConfigError, match=r"Unknown tracker 'cbio'.*'cbiou'"):
        link_boxes(nothing, "a", "cbio")
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ModelError, match=r"reid-toolkit\[video\]"):
        link_boxes(nothing, "a")
