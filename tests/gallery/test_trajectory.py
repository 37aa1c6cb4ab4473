"""Trajectories against all subsets of hits, and as text and files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from reid import ConfigError, DataError
from reid.gallery import Hit, Seen, find_trajectory
from reid.gallery import trajectory as module
from reid.gallery.learned_times import learned_times, store_learned_times
from reid.gallery.trajectory import ground_positions
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
    usual = {"expected_is_learned": False, "early": False}
    assert late.as_dict(hits) == {
        "steps": [
            {"hit": 0, "confirmed": False, "gap_s": None, "expected_s": None, **usual, "late": False},
            {"hit": 1, "confirmed": False, "gap_s": 89.0, "expected_s": [5.0, 20.0], **usual, "late": True},
        ],
        "dropped": [],
    }


def test_hits_faster_than_a_person_are_dropped() -> None:
    camera = Camera(homography=[[0.1, 0, 0], [0, 0.1, 0], [0, 0, 1]])
    cameras = Cameras({"a": camera, "b": camera, "door": Camera()})
    rng = np.random.default_rng(1)
    for trial in range(40):
        hits = []
        for name, start in (("a", 0), ("b", int(rng.integers(-3, 20)))):
            seen = [
                Seen(n, 1000 * (start + n) if rng.random() < 0.9 else None, (rng.uniform(0, 900), 0.0, 10.0, 20.0))
                for n in range(3)
            ]
            hits.append(replace(make_hit(name, start, start + 3), seen=tuple(seen)))
        ordered = sorted(hits, key=lambda hit: hit.start)
        paths = [ground_positions(hit, cameras) for hit in ordered]
        for path, hit in zip(paths, ordered, strict=True):
            known = [one for one in hit.seen if one.time is not None]
            assert path[:, 0].tolist() == [one.time / 1000 for one in known]
            feet = [[one.box[0] / 10 + 0.5, 2.0] for one in known]
            assert path[:, 1:3] == pytest.approx(np.array(feet).reshape(-1, 2))
        impossible = False
        if len(paths[0]) and len(paths[1]) and paths[1][0, 0] >= paths[0][-1, 0]:
            (t, x, y, error), (u, v, w, other) = paths[0][-1], paths[1][0]
            impossible = np.hypot(v - x, w - y) > 3 * (u - t) + 4 * np.hypot(error, other)
        found = find_trajectory(hits, cameras)
        assert [one.reason for one in found.dropped] == ["faster than the maximum speed"] * int(impossible), trial
        assert len(find_trajectory(hits, cameras, tolerance=40).dropped) == 0
    far = replace(make_hit("a", 0, 1), seen=(Seen(1, 0, (0.0, 0.0, 10.0, 5000.0)), Seen(2, 5, None)))
    assert len(ground_positions(far, cameras)) == 0  # its error is above the limit
    assert len(ground_positions(make_hit(None, 0, 1), cameras)) == 0


def test_learned_times_mark_steps_and_drop_none(tmp_path) -> None:
    match = tmp_path / "match"
    match.mkdir()
    times = {"from": "door", "to": "hall", "median_s": 20.0, "spread_s": 4.0, "links": 30}
    for source, changed in (("monday", {}), ("tuesday", {"median_s": 99.0, "links": 29}), ("monday", {"spread_s": 5})):
        (match / "match.json").write_text(json.dumps({"transition_times": [{**times, **changed}]}))
        store_learned_times(tmp_path, source, match)
    usual = learned_times([tmp_path, tmp_path / "none"])
    assert usual == {("door", "hall"): (10.0, 30.0)}
    hits = [make_hit("door", 0, 5), make_hit("hall", 7, 9), make_hit("door", 20, 30), make_hit("hall", 61, 62)]
    known = Cameras({name: Camera() for name in NAMES}, frozenset(), {("door", "hall"): (1.0, 35.0)}, True)
    for cameras, expected, learned, gaps in (
        (None, (10.0, 30.0), True, ["", "2.0 s (early)", "11.0 s", "31.0 s (late)"]),
        (known, (1.0, 35.0), False, ["", "2.0 s", "11.0 s", "31.0 s"]),
    ):
        found = find_trajectory(hits, cameras, learned=usual)
        assert [step.describe_gap() for step in found.steps] == gaps
        assert (found.steps[1].expected, found.steps[1].learned, found.dropped) == (expected, learned, [])
    (tmp_path / "transitions.json").write_text('{"monday": [{"from": 1}]}')
    with pytest.raises(DataError, match="no valid transition times"):
        learned_times([tmp_path])
