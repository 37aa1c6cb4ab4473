"""The test recording of a synthetic world without pictures: truth, simulated tracks, cameras, simulated embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import column_codes
from reid.data.box_selection import box_quality, choose_boxes
from reid.data.tracks import Tracks
from reid.embedding.table import Embeddings
from reid.synthetic.floor import floor_limits, overlapping_pairs
from reid.synthetic.settings import SyntheticSettings
from reid.synthetic.simulated_tracks import make_tracks, tracked_boxes, true_boxes
from reid.synthetic.trajectories import travel_table
from reid.synthetic.world import TEST, World, plan_world

DIMENSION = 64
"""Length of a simulated embedding."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What the cameras of a synthetic world record, as boxes.

    Attributes:
        settings: what it was made from.
        truth: true boxes; the id is the pid and the same in every camera.
        tracks: boxes of the simulated single-camera tracker, with local ids and errors.
        person: `[N]` int64, index of the person in each box of `tracks`; −1 in false tracks.
        cameras: content of `cameras.yaml`.
    """

    settings: SyntheticSettings
    truth: Tracks
    tracks: Tracks
    person: NDArray[np.int64]
    cameras: dict[str, Any]


def record(settings: SyntheticSettings) -> Recording:
    """Simulate the test recording of a synthetic world; draws no picture.

    Example:
        >>> recording = record(SyntheticSettings(ids=6, train_fraction=0, cameras=2, site="floor"))
        >>> recording.truth.camera_names, len(recording.person) == len(recording.tracks)
        (('cam01', 'cam02'), True)
    """
    world = plan_world(settings)
    truth, tracked = [], []
    for c, camera in enumerate(world.cameras):
        last = last_frame(world, c)
        seen = [sighting.until(last) for sighting in world.sightings[TEST][c] if (sighting.frames[:1] <= last).any()]
        truth.append(true_boxes(camera, seen))
        rng = np.random.default_rng((settings.seed, 15, c))
        tracked.append(tracked_boxes(camera, seen, settings.tracker, rng))
    tracks, person = make_tracks(world.cameras, tracked)
    return Recording(settings, make_tracks(world.cameras, truth)[0], tracks, person, _describe_cameras(world))


def last_frame(world: World, camera: int) -> int:
    """Return the last frame of a camera in tracks and videos; all cameras stop at the same time."""
    one, settings = world.cameras[camera], world.settings
    end = max(s.times[-1] for seen in world.sightings[TEST] for s in seen if len(s.times))
    if settings.track_seconds is not None:
        end = min(end, settings.track_seconds)
    return max(1, math.floor((end - one.offset) * settings.fps + 1e-6) + 1)


def _describe_cameras(world: World) -> dict[str, Any]:
    """Return the content of `cameras.yaml`.

    Clocks, frame sizes and positions; for separate cameras the travel times of each ordered pair, otherwise
    homographies and overlapping pairs.
    """
    cameras, settings = world.cameras, world.settings
    by_name: dict[str, dict[str, Any]] = {
        one.name: {
            "fps": settings.fps,
            "offset": one.offset,
            "size": list(one.size),
            "position": [round(v, 2) for v in one.position],
            "azimuth": round(one.azimuth, 4),
        }
        for one in cameras
    }
    if settings.site != "separate":
        for one in cameras:
            by_name[one.name]["homography"] = [[float(f"{v:.9g}") for v in row] for row in one.homography()]
            if one.distortion:
                by_name[one.name] |= {"distortion": [one.distortion, 0.0, 0.0, 0.0], "focal": round(one.focal, 3)}
        pairs = overlapping_pairs(cameras, floor_limits(cameras, settings))
        return {"cameras": by_name, "overlapping": [list(pair) for pair in pairs]}
    travels = [
        {
            "from": cameras[t.source].name,
            "to": cameras[t.target].name,
            "min": round(t.least - 0.01, 2),
            "max": None if t.most is None else round(t.most + 0.01, 2),
        }
        for t in travel_table(cameras)
    ]
    return {"cameras": by_name, "pairs": travels}


def simulate_embeddings(
    recording: Recording, *, noise: float, lookalikes: float = 0.25, per_track: int = 8, seed: int = 0
) -> Embeddings:
    """Return embeddings of a controlled quality for up to `per_track` boxes of each track, without pictures.

    An embedding is the L2-normalised sum of Gaussian vectors of `DIMENSION` numbers and these lengths: the person, 1;
    the camera, 0.5 · noise; one walk of the person in one camera, noise; the crop, 0.7 · noise, more where the
    detector is less confident. A fraction `lookalikes` of the people has a cosine of 0.8 with another person. False
    tracks show background, each its own person. Pids are those of the truth; −1: a false track.

    Args:
        recording: of `record`.
        noise: 0.5 is a strong model, 1 a usual one, 1.5 a weak one.
        lookalikes: fraction of people who resemble another person, 0..1.
        per_track: largest number of boxes of each track, those that `reid match` selects.
        seed: of the vectors.
    """
    tracks = recording.tracks
    sizes = {name: tuple(camera["size"]) for name, camera in recording.cameras["cameras"].items()}
    rows = choose_boxes(tracks, box_quality(tracks, sizes), per_track=per_track)
    rng = np.random.default_rng((recording.settings.seed, 20, seed))

    def vectors(n: int) -> NDArray[np.float64]:
        return rng.normal(0, DIMENSION**-0.5, (n, DIMENSION))

    person, camera, track = recording.person[rows], tracks.camera[rows], tracks.track[rows]
    people = vectors(int(recording.person.max(initial=-1)) + 2)
    for i in range(1, len(people)):
        if rng.random() < lookalikes:
            people[i] = 0.8 * people[int(rng.integers(i))] + 0.6 * people[i]
    walk = column_codes([camera, track, person])
    walks, background = vectors(int(walk.max(initial=-1)) + 1), vectors(len(rows))
    hidden = np.clip(0.92 - tracks.confidence[rows], 0, 0.5)[:, None]
    features = np.where(person[:, None] >= 0, people[person], walks[walk] + 0.5 * background)
    features = features + 0.5 * noise * vectors(len(tracks.camera_names))[camera] + noise * walks[walk]
    features += 0.7 * noise * (1 + 2 * hidden) * vectors(len(rows))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pids = np.where(person < 0, -1, person + 1)
    return Embeddings(
        features.astype(np.float32), pids=pids, camids=camera + 1, tracks=track, frames=tracks.frame[rows]
    )
