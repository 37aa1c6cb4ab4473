"""Tracklets of crops: cuts, recordings of Market-1501, unknown cameras and frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reid.core.errors import DataError
from reid.data.crops import Crops
from reid.mtmc import match
from reid.mtmc.constraints import Constraints
from reid.pipelines.tracked_crops import MAX_GAP, tracklets_of


def crops(*rows: tuple[int, int, int, int]) -> Crops:
    """Return crops of (pid, camera, track, frame)."""
    pids, camids, tracks, frames = np.array(rows, np.int64).reshape(-1, 4).T
    return Crops.from_columns([f"{number}.jpg" for number in range(len(rows))], pids, camids, tracks, frames)


def test_a_track_is_one_tracklet_and_crops_of_an_unknown_track_are_cut_where_frames_lack() -> None:
    found = tracklets_of(crops((0, 1, 5, 900), (0, 1, 5, 1), (0, 1, 6, 2), (0, 2, 5, 1)))
    assert found.crops.tracks.tolist() == [0, 0, 1, 2]
    found = tracklets_of(crops((5, 1, -1, 900), (5, 1, -1, 1), (5, 1, -1, 1 + MAX_GAP), (6, 1, -1, 2), (5, 2, -1, 1)))
    assert found.crops.tracks.tolist() == [1, 0, 0, 3, 2]
    assert found.simultaneous().tolist() == [[0, 3]]
    assert len(found) == 4


def test_recordings_of_a_camera_do_not_overlap() -> None:
    """Many crops of one track in one frame: the track is a recording, as in Market-1501."""
    found = tracklets_of(crops((1, 1, 1, 10), (2, 1, 1, 10), (3, 1, 2, 10), (1, 1, 2, 10)))
    assert found.crops.tracks.tolist() == [0, 2, 3, 1]
    assert sorted(map(sorted, found.simultaneous().tolist())) == [[0, 2], [1, 3]]


def test_unknown_cameras_and_frames_are_never_simultaneous() -> None:
    found = tracklets_of(crops((1, -1, 1, 10), (2, -1, 2, 10), (3, 1, 1, -1), (4, 1, 2, -1), (5, 1, 3, 10)))
    assert found.simultaneous().tolist() == []


def test_some_tracklets_and_those_held_out() -> None:
    found = tracklets_of(crops(*((0, camera, track, 10 * track) for camera in (1, 2) for track in range(10))))
    held = found.held_out(0.2)
    assert np.flatnonzero(held).tolist() == [8, 9, 18, 19]
    part = found.take(held)
    assert part.crops.tracks.tolist() == [0, 1, 2, 3]
    assert part.crops.frames.tolist() == [80, 90, 80, 90]
    tracklets = part.tracklets(np.eye(4, dtype=np.float32))
    assert tracklets.track.tolist() == [0, 1, 2, 3]


def test_no_crops_are_an_error() -> None:
    with pytest.raises(DataError, match="no crops"):
        tracklets_of(Crops.from_columns([], []))


def test_answers_of_a_person_name_tracks_of_the_data() -> None:
    given = crops((0, 0, 5, 1), (0, 0, 5, 30), (0, 0, 6, 2), (0, 1, 5, 1))
    found = tracklets_of(replace(given, names={"camids": ("door", "hall")}))
    answers = Constraints(
        must_link=((("door", 5, -1), ("hall", 5, 1)), (("door", 5, 40), ("hall", 5, -1))),
        cannot_link=((("door", 6, -1), ("hall", 5, -1)), (("door", 7, -1), ("hall", 5, -1))),
        tolerance=1,
    )
    constraints, left_out = found.constraints(answers)
    assert constraints.must_link == ((("camera 0", 0, -1), ("camera 1", 2, -1)),)
    assert constraints.cannot_link == ((("camera 0", 1, -1), ("camera 1", 2, -1)),)
    assert (left_out, constraints.tolerance) == (2, 1)
    tracklets = found.tracklets(np.eye(4, dtype=np.float32))
    identity = match(tracklets, constraints=constraints).identity
    assert identity[0] == identity[2] != identity[1]
