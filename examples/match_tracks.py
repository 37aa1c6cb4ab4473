"""Match the tracks of several cameras: python examples/match_tracks.py [TRACKS FEATURES.parquet [CAMERAS.yaml]]

Without arguments, a small scene is generated: eight people walk through three cameras.
"""

import sys

import numpy as np

import reid
from reid.data.tracks import Tracks
from reid.mtmc import Tracklets, read_cameras, read_tracks

if len(sys.argv) > 2:
    tracks = read_tracks(sys.argv[1])
    cameras = read_cameras(sys.argv[3], tracks.camera_names) if len(sys.argv) > 3 else None
    features = reid.Embeddings.load(sys.argv[2])
    truth = None
else:
    rng = np.random.default_rng(0)
    looks = rng.standard_normal((8, 64))
    columns = np.array(
        [
            (camera, person, 400 * camera + 40 * person + step, 6.0 * step, 50.0, 40.0, 100.0)
            for person in range(8)
            for camera in range(3)
            for step in range(0, 100, 5)
        ]
    )
    camera, person, frame = columns[:, :3].astype(int).T
    names = ["entrance", "hall", "exit"]
    truth = Tracks.from_columns(names, camera, person, frame, columns[:, 3:])
    tracks = Tracks.from_columns(names, camera, (person + 3 * camera) % 8, frame, columns[:, 3:])  # local ids
    cameras = None  # 25 frames per second, equal clocks, nothing known about overlaps
    person_of = {(c, t): (t - 3 * c) % 8 for c in range(3) for t in range(8)}
    people = [person_of[key] for key in zip(tracks.camera.tolist(), tracks.track.tolist(), strict=True)]
    noisy = looks[people] + 0.8 * rng.standard_normal((len(tracks), 64))
    features = reid.Embeddings(noisy, camids=tracks.camera, tracks=tracks.track, frames=tracks.frame)

tracklets = Tracklets.from_tracks(tracks, features, cameras, camera_names=dict(enumerate(tracks.camera_names)))
matches = reid.match(tracklets, cameras=cameras)
print(f"{len(tracklets)} tracklets, {len(np.unique(matches.identity))} identities, threshold {matches.threshold:.2f}")

if truth is not None:
    from reid.mtmc.results import global_tracks

    scores = reid.score_tracks(truth, global_tracks(matches, tracks))
    print(f"IDF1 {scores.overall.IDF1:.1%}, HOTA {scores.overall.HOTA:.1%}")
