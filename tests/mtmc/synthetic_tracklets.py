"""Synthetic tracklets for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reid.mtmc import Tracklets


def make_tracklets(
    people=20, cameras=4, visits=6, *, noise=0.25, dimension=32, seed=0, bias=0.5, crops=5, travel=None, speed=0.0
):
    """(tracklets, true person of each). Everyone walks from camera to camera; one tracklet a visit.

    Args:
        noise: length of what differs between crops, for a person's feature of length 1.
        bias: length of what a camera adds.
        travel: `[cameras, cameras]` seconds between, else 5 to 60 at random.
        speed: relative spread of travel times.
    """
    rng = np.random.default_rng(seed)
    face = rng.normal(size=(people, dimension))
    face /= np.linalg.norm(face, axis=1, keepdims=True)
    light = rng.normal(size=(cameras, dimension))
    light *= bias / np.linalg.norm(light, axis=1, keepdims=True)
    camera, track, frame, features, person = [], [], [], [], []
    for who in range(people):
        clock = rng.uniform(0, 300)
        current = int(rng.integers(cameras))
        for _ in range(visits):
            number = len(person)
            for shot in range(crops):
                camera.append(current)
                track.append(number)
                frame.append(1 + round(25 * clock) + 20 * shot)
                change = rng.normal(size=dimension)
                features.append(face[who] + light[current] + noise * change / np.linalg.norm(change))
            person.append(who)
            clock += crops * 0.8
            following = int(rng.integers(cameras))
            seconds = rng.uniform(5, 60) if travel is None else travel[current][following]
            clock += seconds * (1 + speed * rng.normal())
            current = following
    tracklets = Tracklets.from_features(
        [f"cam{number + 1:02d}" for number in range(cameras)],
        np.array(camera),
        np.array(track),
        np.array(frame),
        np.array(features, np.float32),
        (np.array(frame) - 1) / 25.0,
    )
    return tracklets, np.array(person)[tracklets.track]


def tracklets_of(camera, start, end, features=None, *, names=None, entry=None, leave=None, seed=0):
    """Tracklets with these columns; features at random where not given."""
    camera, start, end = np.array(camera, np.int64), np.array(start, float), np.array(end, float)
    n = len(camera)
    if features is None:
        features = np.random.default_rng(seed).normal(size=(n, 8))
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    names = names or tuple(f"cam{number + 1:02d}" for number in range(int(camera.max(initial=0)) + 1))
    unknown = np.full((n, 2), np.nan)
    return Tracklets(
        camera_names=tuple(names),
        camera=camera,
        track=np.arange(n),
        start=start,
        end=end,
        frames=np.ones(n, np.int64),
        features=features / np.where(lengths > 0, lengths, 1),
        has_feature=lengths[:, 0] > 0,
        quality=np.ones(n),
        first_frame=np.round(25 * start).astype(np.int64),
        last_frame=np.round(25 * end).astype(np.int64),
        entry=unknown if entry is None else np.array(entry, float),
        exit=unknown if leave is None else np.array(leave, float),
        previous_track=np.full(n, -1),
    )


def with_moved_clocks(tracklets: Tracklets, offsets: dict[str, float]) -> Tracklets:
    """Return the same tracklets with each camera's clock moved by seconds, by camera name."""
    seconds = np.array([offsets.get(name, 0.0) for name in tracklets.camera_names])[tracklets.camera]
    return replace(tracklets, start=tracklets.start + seconds, end=tracklets.end + seconds)
