"""The files that a match writes."""

from __future__ import annotations

import csv

import numpy as np

from reid.embedding.table import Embeddings
from reid.mtmc import Camera, Cameras, Constraints, Tracklets, Tracks, match
from reid.mtmc.results import global_tracks, write_matches


def overlapping_tracks():
    """One person in two tracks of a camera that share frames 11 to 15; the second is the more confident."""
    frame = np.concatenate([np.arange(1, 16), np.arange(11, 31)])
    track = np.repeat([1, 2], [15, 20])
    boxes = np.tile([10.0, 10.0, 20.0, 60.0], (35, 1))
    tracks = Tracks.from_columns(["cam01"], np.zeros(35, int), track, frame, boxes, np.where(track == 1, 0.5, 0.9))
    embeddings = Embeddings(np.ones((35, 4)), camids=np.zeros(35, int), tracks=tracks.track, frames=tracks.frame)
    cameras = Cameras({"cam01": Camera(fps=10)})
    tracklets = Tracklets.from_tracks(tracks, embeddings, cameras, camera_names={0: "cam01"})
    return tracks, match(tracklets, cameras=cameras, constraints=Constraints(tolerance=1.0))


def test_with_a_tolerance_the_more_confident_of_two_boxes_of_one_identity_stays_and_the_other_is_listed(tmp_path):
    tracks, matches = overlapping_tracks()
    assert matches.identity.tolist() == [1, 1]
    found = global_tracks(matches, tracks)
    assert len(found) == 30
    assert found.confidence[(found.frame >= 11) & (found.frame <= 15)].tolist() == [0.9] * 5
    written = write_matches(matches, tracks, tmp_path)
    rows = list(csv.DictReader(written["repeated_boxes.csv"].read_text().splitlines()))
    assert [(row["identity"], row["camera"], row["track"], row["frame"]) for row in rows] == [
        ("1", "cam01", "1", str(frame)) for frame in range(11, 16)
    ]
