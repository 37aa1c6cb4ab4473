"""People who leave one camera where they enter another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reid.mtmc import Constraints, Tracklets, Tracks, match
from reid.mtmc.constraints import compile_rules
from reid.mtmc.handovers import find_handovers
from tests.oracles.handovers import handovers_loop

NAMES = ["left", "right"]


def everything(first, second):
    return np.ones(np.broadcast(first, second).shape, bool)


def walkers(people=24, pause=0, seed=0):
    """Tracks of people who walk through two images side by side, to the right or to the left; the id is the person.

    They enter the second image `pause` frames after they left the first.
    """
    rng = np.random.default_rng(seed)
    columns = []
    for person in range(people):
        begin, y, speed = int(rng.integers(40 * people)), rng.uniform(150, 400), rng.uniform(9, 14)
        steps, right = int(400 / speed), rng.random() < 0.5
        for number, camera in enumerate((0, 1) if right else (1, 0)):
            x = 10 + speed * np.arange(steps) if right else 410 - speed * np.arange(steps)
            frame = 1 + begin + number * (steps + pause) + np.arange(steps)
            box = np.column_stack([x, np.full(steps, y) + rng.normal(0, 1, steps)])
            columns.append((np.full(steps, camera), np.full(steps, person), frame, box))
    camera, track, frame, box = (np.concatenate(column) for column in zip(*columns, strict=True))
    boxes = np.column_stack([box, np.full(len(box), 30), 60 + box[:, 1] / 10])
    return Tracks.from_columns(NAMES, camera, track, frame, boxes)


def test_people_who_cross_a_common_border_are_found_without_appearance():
    tracklets = Tracklets.from_tracks(walkers(), None)
    found = find_handovers(tracklets, everything)
    (border, (expected, lag)), *others = found.borders.items()
    assert border == ("left", "right")
    assert not others
    assert 20 < expected < 32
    assert abs(lag) < 0.2
    assert (tracklets.track[found.earlier] == tracklets.track[found.later]).sum() >= 20
    assert len(np.unique(found.earlier)) == len(np.unique(found.later)) == len(found)
    assert found.as_dict() == {"left and right": {"expected": round(expected, 1), "lag_s": round(lag, 2)}}


@pytest.mark.parametrize("pause", [45, 200], ids=["1.8 seconds later", "8 seconds later"])
def test_cameras_that_people_reach_later_have_no_common_border(pause):
    assert len(find_handovers(Tracklets.from_tracks(walkers(pause=pause), None), everything)) == 0


def test_cameras_of_different_people_have_no_common_border():
    tracks, others = walkers(40), walkers(40, seed=9)
    parts = [np.flatnonzero(one.camera == camera) for camera, one in enumerate((tracks, others))]
    columns = [
        np.concatenate([getattr(one, name)[part] for one, part in zip((tracks, others), parts, strict=True)])
        for name in ("camera", "track", "frame", "boxes")
    ]
    assert len(find_handovers(Tracklets.from_tracks(Tracks.from_columns(NAMES, *columns), None), everything)) == 0


def test_handovers_need_boxes_and_obey_rules():
    tracks = walkers()
    assert len(find_handovers(Tracklets.from_tracks(tracks, None, stitch=False), everything)) == 0
    tracklets = Tracklets.from_tracks(tracks, None)
    free = find_handovers(tracklets, everything)
    rows = int(free.earlier[0]), int(free.later[0])
    keys = [(NAMES[tracklets.camera[row]], int(tracklets.track[row]), -1) for row in rows]
    rules = compile_rules(tracklets, None, Constraints(cannot_link=((keys[0], keys[1]),)))
    found = find_handovers(tracklets, lambda first, second: rules.violations(first, second) == 0)
    assert len(found) >= len(free) - 2
    assert rows not in zip(found.earlier.tolist(), found.later.tolist(), strict=True)


def test_handovers_show_how_many_tracklets_an_identity_has():
    """Noisy features look like 48 people; the border shows that there are 24, so that the threshold joins them."""
    tracks, rng = walkers(), np.random.default_rng(1)
    centres = rng.normal(size=(24, 16))
    tracklets = Tracklets.from_tracks(tracks, None)
    features = centres[tracklets.track] + 1.2 * rng.normal(size=(len(tracklets), 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    known = replace(tracklets, features=features.astype(np.float32), has_feature=np.ones(len(tracklets), bool))
    with_borders, without = match(known), match(replace(known, edges=np.full_like(known.edges, np.nan)))
    assert list(with_borders.protocol["handovers"]) == ["left and right"]
    assert without.protocol["handovers"] == {}
    assert with_borders.identity.max() < without.identity.max()


def random_tracklets(seed):
    """Tracklets of three cameras with ugly edges: unknown, equal, of no spread; missing features, equal times."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 45))
    camera, people = np.sort(rng.integers(0, 3, n)), rng.integers(0, 12, n)
    columns = (camera, np.arange(n), np.ones(n, np.int64), np.ones((n, 4), np.float32))
    tracklets = Tracklets.from_features(["a", "b", "c"], *columns)
    start = np.round(rng.uniform(0, 40, n), 1)
    features = rng.normal(size=(12, 4))[people] + 0.3 * rng.normal(size=(n, 4))
    edges = rng.normal(size=(12, 2, 5))[people] + 0.3 * rng.normal(size=(n, 2, 5))
    edges[rng.random((n, 2)) < 0.1] = np.nan
    edges[..., 4] = 1.0
    return replace(
        tracklets,
        start=start,
        end=start + np.round(rng.exponential(3, n), 1),
        features=(features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32),
        has_feature=rng.random(n) < 0.9,
        edges=edges,
    )


@pytest.mark.slow
@pytest.mark.parametrize("tracklets", [*map(random_tracklets, range(3)), None])
def test_handovers_equal_a_loop_over_pairs(tracklets):
    tracklets = tracklets or Tracklets.from_tracks(walkers(12, seed=1), None)
    forbidden = np.random.default_rng(0).random((len(tracklets), len(tracklets))) < 0.1
    found = find_handovers(tracklets, lambda first, second: ~forbidden[first, second])
    expected, borders = handovers_loop(tracklets, lambda first, second: not forbidden[first, second])
    pairs = dict(zip(zip(found.earlier.tolist(), found.later.tolist(), strict=True), found.log_odds, strict=True))
    assert pairs == pytest.approx(expected, rel=1e-4)
    assert found.borders.keys() == borders.keys()
    for border, (number, lag) in borders.items():
        assert found.borders[border] == pytest.approx((number, lag), rel=1e-4, abs=1e-6)
