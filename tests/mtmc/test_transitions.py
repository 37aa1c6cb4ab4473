"""Transition times and clock offsets from known identities."""

from __future__ import annotations

import numpy as np
import pytest

from reid.mtmc import Camera, Cameras
from reid.mtmc.transitions import clock_offsets, consecutive_sightings, fit_transitions
from tests.mtmc.synthetic_tracklets import make_tracklets, tracklets_of, with_moved_clocks


def all_pairs(n):
    return np.triu_indices(n, 1)


TIMES = [[30, 20, 45], [20, 30, 25], [45, 25, 30]]


def test_consecutive_sightings():
    tracklets = tracklets_of([0, 1, 0, 1], [0, 10, 20, 5], [1, 11, 21, 6])
    before, after = consecutive_sightings(tracklets, np.array([1, 1, 1, 2]))
    assert list(zip(before.tolist(), after.tolist(), strict=True)) == [(0, 1), (1, 2)]


def test_transition_times_are_learned():
    tracklets, person = make_tracklets(people=60, cameras=3, visits=8, travel=TIMES, speed=0.1)
    model = fit_transitions(tracklets, person + 1, *all_pairs(len(tracklets)))
    assert len(model) == 9
    for (a, b), transition in model.transitions.items():
        assert transition.median == pytest.approx(TIMES[a][b], rel=0.15)
        assert transition.spread == pytest.approx(0.1 * TIMES[a][b], rel=0.6)
        assert transition.links >= 20
    # A gap of a usual transition against a gap of an hour.
    pair = tracklets_of([0, 1, 1], [0, 20, 3600], [0, 21, 3601], names=tracklets.camera_names)
    usual, unusual = model.log_ratios(pair, np.array([0, 0]), np.array([1, 2]))
    assert usual > 0.5
    assert unusual < -0.5
    assert model.log_ratios(pair, np.array([1]), np.array([0])) == pytest.approx(usual), (
        "the order within a pair does not matter"
    )


def test_random_times_give_little_evidence():
    rng = np.random.default_rng(0)
    n = 300
    start = rng.uniform(0, 5000, n)
    tracklets = tracklets_of(rng.integers(0, 2, n), start, start + 1)
    identity = rng.integers(1, 60, n)
    model = fit_transitions(tracklets, identity, *all_pairs(n))
    evidence = model.log_ratios(tracklets, *all_pairs(n))
    assert model
    assert np.abs(evidence).mean() < 0.35


def test_too_few_links_give_no_transitions():
    tracklets, person = make_tracklets(people=4, cameras=3, visits=3, travel=TIMES)
    assert len(fit_transitions(tracklets, person + 1, *all_pairs(len(tracklets)))) == 0
    assert clock_offsets(tracklets, person + 1) == {}


def test_clock_offsets_from_transitions_in_both_directions():
    tracklets, person = make_tracklets(people=120, cameras=3, visits=8, travel=TIMES, speed=0.1)
    assert clock_offsets(tracklets, person + 1) == {}, "clocks that agree"
    moved = with_moved_clocks(tracklets, {"cam02": 4.0, "cam03": -3.0})
    got = clock_offsets(moved, person + 1)
    assert got["cam01"] == 0
    assert got["cam02"] == pytest.approx(4, abs=0.8)
    assert got["cam03"] == pytest.approx(-3, abs=1.2)


def test_clock_offsets_of_overlapping_cameras():
    rng = np.random.default_rng(0)
    start = np.repeat(np.arange(40) * 50.0, 2)
    start[1::2] += 7 + rng.normal(0, 0.2, 40)
    tracklets = tracklets_of([0, 1] * 40, start, start + 20)
    cameras = Cameras(
        {name: Camera() for name in ("cam01", "cam02")}, overlapping=frozenset([frozenset(("cam01", "cam02"))])
    )
    got = clock_offsets(tracklets, np.repeat(np.arange(1, 41), 2), cameras)
    assert got == pytest.approx({"cam01": 0.0, "cam02": 7.0}, abs=0.2)
    assert clock_offsets(tracklets, np.repeat(np.arange(1, 41), 2)) == {}, "one direction says nothing about clocks"
