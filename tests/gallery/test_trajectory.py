"""Trajectories against all subsets of hits, and as text and files."""

from __future__ import annotations

import numpy as np
import pytest

from reid import ConfigError
from reid.gallery import Hit, find_trajectory
from reid.gallery import trajectory as module
from reid.mtmc import Camera, Cameras
from tests.oracles.gallery import best_chain, broken_rule

NAMES = ("door", "hall", "出口", "roof")


def make_hit(camera, start, end, distance=0.1, strangers=0.01, name=None):
    times = [None if second is None else round(1000 * second) for second in (start, end)]
    return Hit(distance, strangers, None, None, "g", name or f"{camera}-{start}", "s", camera, 1, None, *times, 1)


def make_cameras(rng):
    """Cameras of which some overlap, with minimum times between most."""
    overlap = {frozenset(NAMES[:2])} if rng.random() < 0.5 else set()
    times = {}
    for a in NAMES[:3]:
        for b in NAMES[:3]:
            if a != b and rng.random() < 0.8:
                low = rng.choice([-5.0, 0.0]) if frozenset((a, b)) in overlap else rng.choice([0.0, 8.0, 30.0, np.inf])
                times[a, b] = (float(low), np.inf)
    return Cameras({name: Camera() for name in NAMES[:3]}, frozenset(overlap), times, bool(rng.random() < 0.5))


@pytest.mark.slow
def test_a_trajectory_is_the_best_of_all_subsets() -> None:
    rng = np.random.default_rng(0)
    for trial in range(120):
        cameras = make_cameras(rng) if trial % 4 else None
        tolerance = float(rng.choice([0.0, 3.0]))
        hits = []
        for number, start in enumerate(rng.permutation(60)[: rng.integers(0, 9)].tolist()):
            camera = [*NAMES, None][rng.integers(0, 5)]
            strangers = None if trial % 3 == 0 else float(10 ** rng.uniform(-6, -1))
            hits.append(
                make_hit(camera, start, start + rng.integers(0, 15), rng.uniform(0, 0.5), strangers, str(number))
            )
        certain = [index for index in range(len(hits)) if rng.random() < 0.15]
        weights = [1 - hit.distance if hit.strangers is None else -np.log(hit.strangers) for hit in hits]
        found = find_trajectory(hits, cameras, confirmed=[hits[i].tracklet for i in certain], tolerance=tolerance)
        expected, _ = best_chain(hits, weights, cameras, tolerance, certain)
        steps = [step.hit for step in found.steps]
        assert sum(weights[hits.index(hit)] for hit in steps) == pytest.approx(max(expected, 0), rel=1e-5)
        assert {hits.index(hit) for hit in steps} >= set(certain)
        assert [step.confirmed for step in found.steps] == [hits.index(hit) in certain for hit in steps]
        assert [hit.start for hit in steps] == sorted(hit.start for hit in steps)
        assert len(steps) + len(found.dropped) == len(hits)
        for before, step in zip(steps, found.steps[1:], strict=False):
            assert step.gap == (step.hit.start - before.end) / 1000
        for one in found.dropped:
            assert one.reason == broken_rule(one.hit, steps[one.step], cameras, tolerance)


def test_hits_without_a_time_or_beyond_the_limit_are_listed(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_HITS", 2)
    near, far, farther = (make_hit("door", 10 * n, 10 * n + 1, n / 10) for n in (1, 3, 2))
    unknown = make_hit("door", None, None, 0.0)
    found = find_trajectory([far, unknown, near, farther], None)
    assert [step.hit for step in found.steps] == [near, farther]
    assert [(one.hit, one.reason) for one in found.dropped] == [(far, module.NOT_CHAINED), (unknown, "time unknown")]
    assert found.describe() == "Trajectory of 2 sightings by 1 camera; 2 hits dropped."
    assert find_trajectory([unknown]).describe() == "No trajectory: none of 1 hits has a time."
    assert find_trajectory([]).steps == []
    with pytest.raises(ConfigError, match="tolerance"):
        find_trajectory([], tolerance=-1)


def test_a_gap_longer_than_the_largest_time_is_late() -> None:
    cameras = Cameras({"a": Camera(), "b": Camera()}, transition_times={("a", "b"): (5.0, 20.0)})
    found = find_trajectory([make_hit("a", 0, 1), make_hit("b", 10, 11), make_hit("b", 90, 95)], cameras)
    assert [(step.gap, step.expected, step.is_late) for step in found.steps] == [
        (None, None, False), (9.0, (5.0, 20.0), False), (79.0, (-np.inf, np.inf), False),
    ]  # fmt: skip
    late = find_trajectory([make_hit("a", 0, 1), make_hit("b", 90, 95)], cameras)
    assert late.steps[1].is_late
    hits = [step.hit for step in late.steps]
    assert late.as_dict(hits) == {
        "steps": [
            {"hit": 0, "confirmed": False, "gap_s": None, "expected_s": None, "late": False},
            {"hit": 1, "confirmed": False, "gap_s": 89.0, "expected_s": [5.0, 20.0], "late": True},
        ],
        "dropped": [],
    }
