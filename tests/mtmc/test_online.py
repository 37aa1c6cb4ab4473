from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.mtmc import Camera, Cameras, Constraints, MatchSettings, Tracklets, cluster_scores, find_violations, match
from reid.mtmc.online import OnlineMatcher, StreamSettings, match_online

NAMES = ("cam01", "cam02", "cam03")


def walks(people=30, cameras=3, noise=0.25, seed=0, dim=32, gap=20.0):
    """People pass the cameras in order, a tracklet of four crops in each, some seconds apart; (tracklets, who)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, dim))
    camera, track, frame, features, who = [], [], [], [], []
    for c in range(cameras):
        for person in range(people):
            first = int(25 * (4 * person + gap * c))
            for step in range(4):
                camera.append(c)
                track.append(100 * c + (7 * person) % people)
                frame.append(first + 10 * step)
                features.append(centres[person] + noise * np.sqrt(dim) * rng.normal(size=dim) / 4)
            who.append((c, 100 * c + (7 * person) % people, person))
    tracklets = Tracklets.from_features(
        NAMES[:cameras], np.array(camera), np.array(track), np.array(frame), np.array(features, np.float32)
    )
    person_of = {(c, t): person for c, t, person in who}
    keys = zip(tracklets.camera.tolist(), tracklets.track.tolist(), strict=True)
    return tracklets, np.array([person_of[key] for key in keys])


@pytest.mark.slow
def test_online_matching_of_distinct_people_is_nearly_as_good_as_offline():
    """In the first minutes nobody was seen twice, so some joins are wrong."""
    found = []
    for gap in (3.0, 6.0, 12.0):
        tracklets, who = walks(gap=gap)
        online = match_online(tracklets)
        assert cluster_scores(who, match(tracklets).identity).pair_f1 == 1
        found.append(cluster_scores(who, online.identity).pair_f1)
    assert np.mean(found) > 0.85
    assert online.delay == 62


@pytest.mark.slow
def test_no_online_decision_uses_later_data():
    tracklets, _ = walks(noise=1.5, seed=1)
    stream = StreamSettings(period=20)
    whole = match_online(tracklets, stream=stream).identity
    tick = np.ceil((tracklets.end + stream.close_after) / stream.period)
    for until in np.quantile(tick, [0.2, 0.5, 0.8]):
        early = tick <= until
        part = match_online(tracklets.take(np.flatnonzero(early)), stream=stream).identity
        np.testing.assert_array_equal(part, whole[early])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.3, 1.5, 6.0], ids=["clear", "unclear", "hopeless"])
def test_online_matching_breaks_no_rule(seed, noise):
    tracklets, _ = walks(people=20, noise=noise, seed=seed, gap=3.0)
    rng = np.random.default_rng(seed)
    keys = [(NAMES[c], int(t), -1) for c, t in zip(tracklets.camera, tracklets.track, strict=True)]
    pairs = [tuple(keys[i] for i in rng.choice(len(keys), 2, replace=False)) for _ in range(40)]
    constraints = Constraints(cannot_link=tuple(pairs))
    cameras = Cameras({name: Camera() for name in NAMES})
    stream = StreamSettings(period=10, memory=30, max_per_identity=2, max_tracklets=15)
    online = match_online(tracklets, cameras=cameras, constraints=constraints, stream=stream)
    assert find_violations(tracklets, online.identity, cameras, constraints) == []
    assert (online.identity > 0).all()
    assert sorted(set(online.identity.tolist())) == list(range(1, online.identity.max() + 1))


@pytest.mark.slow
@pytest.mark.parametrize("memory", [1e9, 25.0], ids=["remembered", "forgotten"])
def test_online_must_links_hold_for_forgotten_tracklets(memory):
    tracklets, who = walks(people=12, noise=0.3)
    first = np.flatnonzero((who == 0) & (tracklets.camera == 0))[0]
    last = np.flatnonzero((who == 5) & (tracklets.camera == 2))[0]
    key = [(NAMES[tracklets.camera[row]], int(tracklets.track[row]), -1) for row in (first, last)]
    free = match_online(tracklets, stream=StreamSettings(period=10, memory=memory))
    assert free.identity[first] != free.identity[last]
    bound = match_online(
        tracklets,
        constraints=Constraints(must_link=((key[0], key[1]),)),
        stream=StreamSettings(period=10, memory=memory),
    )
    assert bound.identity[first] == bound.identity[last]


def test_contradicting_online_constraints_are_errors():
    tracklets, who = walks(people=12, noise=0.3)
    rows = [np.flatnonzero((who == person) & (tracklets.camera == camera))[0] for person, camera in ((0, 0), (0, 2))]
    a, b = ((NAMES[tracklets.camera[row]], int(tracklets.track[row]), -1) for row in rows)
    with pytest.raises(ReidError, match="constraint"):
        match_online(
            tracklets,
            constraints=Constraints(must_link=((a, b),), cannot_link=((a, b),)),
            stream=StreamSettings(period=10),
        )


@pytest.mark.slow
def test_online_memory_is_bounded():
    tracklets, _ = walks(people=40, noise=0.3)
    stream = StreamSettings(period=20, max_per_identity=2, max_tracklets=30)
    matcher = OnlineMatcher(stream=stream)
    tick = np.ceil((tracklets.end + stream.close_after) / stream.period)
    for now in np.unique(tick):
        matcher.push(tracklets.take(np.flatnonzero(tick == now)))
        assert len(matcher) <= 30
        assert np.bincount(matcher._identity).max() <= 2
    assert match_online(tracklets, stream=stream).max_remembered <= 30
    short = match_online(tracklets, stream=StreamSettings(period=20, memory=5))
    assert short.max_remembered < 20


def test_a_person_who_returns_after_the_memory_is_new():
    """Also if nothing was pushed in between."""
    tracklets, _ = walks(people=4, cameras=1)
    matcher = OnlineMatcher(stream=StreamSettings(memory=100))
    first = matcher.push(tracklets)
    later = replace(tracklets, start=tracklets.start + 1000, end=tracklets.end + 1000)
    assert matcher.push(later).min() > first.max()
    assert matcher.push(replace(tracklets.take(np.zeros(0, np.int64)))).shape == (0,)
    assert len(matcher) == 4


def test_online_tracklets_without_features_get_identities():
    tracklets, _ = walks(people=4)
    blind = Tracklets.from_features(
        NAMES,
        tracklets.camera,
        tracklets.track,
        tracklets.first_frame,
        np.zeros_like(tracklets.features),
    )
    online = match_online(blind)
    assert sorted(online.identity.tolist()) == list(range(1, len(blind) + 1))


def test_cameras_may_be_added_and_may_be_missing_in_a_push():
    tracklets, _ = walks(people=6)
    parts = [tracklets.take(np.flatnonzero(tracklets.camera == camera)) for camera in range(3)]
    renamed = [replace(part, camera_names=(NAMES[c],), camera=0 * part.camera) for c, part in enumerate(parts)]
    expected, found = OnlineMatcher(), OnlineMatcher()
    for part, other in zip(parts, renamed, strict=True):
        np.testing.assert_array_equal(found.push(other), expected.push(part))


@pytest.mark.parametrize("name", ["period", "memory", "max_per_identity", "max_tracklets"])
def test_stream_settings_of_zero_are_errors(name):
    with pytest.raises(ReidError, match=f"{name}=0"):
        StreamSettings(**{name: 0})


def test_online_matching_uses_a_given_threshold():
    tracklets, who = walks()
    never = match_online(tracklets, settings=MatchSettings(threshold=0.0))
    assert never.identity.max() == len(who)
