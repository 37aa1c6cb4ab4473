"""Rules against plain loops, the independent check, and the file that a person's decisions come in."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.mtmc import Camera, Cameras, Constraints, find_violations, read_constraints
from reid.mtmc.constraints import REASONS, compile_rules
from tests.mtmc.synthetic_tracklets import tracklets_of
from tests.oracles import slow_violations

INF = math.inf


def cameras_with(travel=None, overlapping=(), stated=True, names=("cam01", "cam02", "cam03")):
    return Cameras(
        {name: Camera() for name in names},
        overlapping=frozenset(frozenset(pair) for pair in overlapping),
        transition_times=travel or {},
        overlaps_known=stated,
    )


@pytest.mark.parametrize(
    ("camera", "times", "cameras", "constraints", "reason"),
    [
        pytest.param((0, 0), (0, 5, 3, 9), None, None, "same camera, same time", id="one camera, simultaneous"),
        pytest.param((0, 0), (0, 5, 5, 9), None, None, "same camera, same time", id="one camera, one shared frame"),
        pytest.param((0, 0), (0, 5, 5.04, 9), None, None, "", id="one camera, one after the other: re-entry"),
        pytest.param((0, 0), (0, 5, 4.5, 9), None, Constraints(tolerance=1), "", id="one camera, within tolerance"),
        pytest.param((0, 0), (0, 9, 3, 4), None, None, "same camera, same time", id="one inside the other"),
        pytest.param((0, 1), (0, 5, 3, 9), None, None, "", id="two cameras, overlap unknown"),
        pytest.param(
            (0, 1), (0, 5, 3, 9), cameras_with(), None, "cameras do not overlap", id="non-overlapping, simultaneous"
        ),
        pytest.param(
            (0, 1),
            (0, 5, 3, 9),
            cameras_with(overlapping=[("cam01", "cam02")]),
            None,
            "",
            id="overlapping, simultaneous",
        ),
        pytest.param(
            (0, 1),
            (0, 5, 8, 9),
            cameras_with({("cam01", "cam02"): (4, 20)}),
            None,
            "shorter than the transition time",
            id="3 s where 4 s are needed",
        ),
        pytest.param(
            (0, 1), (8, 9, 0, 5), cameras_with({("cam01", "cam02"): (4, 20)}), None, "", id="opposite direction unknown"
        ),
        pytest.param(
            (0, 1), (0, 5, 99, 100), cameras_with({("cam01", "cam02"): (4, 20)}), None, "", id="a max forbids nothing"
        ),
        pytest.param(
            (0, 1),
            (0, 5, 99, 100),
            cameras_with({("cam01", "cam02"): (INF, INF)}),
            None,
            "no transition",
            id="unreachable",
        ),
        pytest.param(
            (0, 0),
            (0, 5, 6, 9),
            cameras_with({("cam01", "cam01"): (4, 20)}),
            None,
            "",
            id="interrupted track, same camera",
        ),
        pytest.param(
            (0, 1),
            (0, 5, 8.5, 9),
            cameras_with({("cam01", "cam02"): (4, 20)}),
            Constraints(tolerance=1),
            "",
            id="within clock tolerance",
        ),
        pytest.param(
            (0, 1),
            (0, 5, 50, 60),
            None,
            Constraints(cannot_link=((("cam01", 0, -1), ("cam02", 1, -1)),)),
            "cannot-link",
            id="a constraint",
        ),
    ],
)
def test_a_pair_is_forbidden_by_the_expected_rule(camera, times, cameras, constraints, reason):
    tracklets = tracklets_of(camera, times[::2], times[1::2], names=("cam01", "cam02"))
    rules = compile_rules(tracklets, cameras, constraints)
    for first, second in ((0, 1), (1, 0)):
        assert REASONS[rules.violations(np.array([first]), np.array([second]))[0]] == reason
    assert bool(find_violations(tracklets, np.array([1, 1]), cameras, constraints)) == bool(reason)
    assert not find_violations(tracklets, np.array([1, 2]), cameras, constraints)


def test_the_maximum_speed_forbids_distant_pairs():
    tracklets = tracklets_of((0, 1, 1), (0, 12, 12), (2, 20, 20), entry=[(0, 0), (30, 0), (3, 0)], leave=[(0, 0)] * 3)
    constraints = Constraints(max_speed=2.0)
    rules = compile_rules(tracklets, None, constraints)
    stops = rules.violations(np.array([0, 0]), np.array([1, 2]))
    assert [REASONS[reason] for reason in stops] == ["faster than the maximum speed", ""]
    assert len(find_violations(tracklets, np.array([1, 1, 2]), None, constraints)) == 1
    assert not find_violations(tracklets, np.array([1, 2, 1]), None, constraints)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_compiled_rules_and_find_violations_agree_on_random_pairs(seed):
    """Two implementations that are independent, on difficult times: equal starts, zero length, touching ends."""
    rng = np.random.default_rng(seed)
    n = 40
    start = rng.integers(0, 30, n) / 2
    end = start + rng.integers(0, 8, n) / 2
    camera = rng.integers(0, 3, n)
    names = ("cam01", "cam02", "cam03")
    place = rng.uniform(0, 30, (n, 2))
    place[rng.random(n) < 0.2] = np.nan
    tracklets = tracklets_of(camera, start, end, names=names, entry=place, leave=place)
    travel = {}
    for a in names:
        for b in names:
            if rng.random() < 0.5:
                low = float(rng.choice([0.0, 2.0, 5.0, INF]))
                travel[a, b] = (low, INF)
    cameras = cameras_with(travel, stated=bool(rng.random() < 0.5))
    pairs = rng.integers(0, n, (5, 2))
    keys = [(names[camera[row]], row, -1) for row in range(n)]
    constraints = Constraints(
        cannot_link=tuple((keys[a], keys[b]) for a, b in pairs if a != b),
        tolerance=float(rng.choice([0.0, 0.5, 1.0])),
        max_speed=float(rng.choice([0.5, 5.0])) if rng.random() < 0.5 else None,
    )
    rules = compile_rules(tracklets, cameras, constraints)
    first, second = np.triu_indices(n, 1)
    stops = rules.violations(first, second)
    for a, b, reason in zip(first, second, stops, strict=True):
        identity = np.arange(1, n + 1)
        identity[b] = identity[a]
        # Only the pair is one identity, so the check speaks of it alone.
        only = find_violations(tracklets, identity, cameras, constraints)
        assert bool(only) == bool(reason), (a, b, REASONS[reason], only)
    assert (rules.violations(second, first) == stops).all()
    for people in (3, 10):
        identity = rng.integers(0, people, n)
        timing = replace(constraints, cannot_link=())
        assert find_violations(tracklets, identity, cameras, timing) == slow_violations(
            tracklets, identity, cameras, timing
        )


def test_find_violations_reports_a_broken_must_link():
    tracklets = tracklets_of((0, 1, 2), (0, 10, 20), (5, 15, 25))
    must = Constraints(must_link=((("cam01", 0, -1), ("cam02", 1, -1)),))
    assert find_violations(tracklets, np.array([1, 2, 3]), None, must)
    assert not find_violations(tracklets, np.array([1, 1, 3]), None, must)


def test_a_constraints_file_is_read(tmp_path):
    path = tmp_path / "constraints.json"
    path.write_text(json.dumps({"merge": [[["cam01", 3], ["cam02", 4, 77]]], "reject": [[["cam01", 3], ["cam02", 5]]]}))
    read = read_constraints(path)
    assert read.must_link == ((("cam01", 3, -1), ("cam02", 4, 77)),)
    assert read.cannot_link == ((("cam01", 3, -1), ("cam02", 5, -1)),)
    path.write_text('{"merge": [[["cam01", "9007199254740993"], ["cam02", "9223372036854775807", 7]]]}')
    assert read_constraints(path).must_link == ((("cam01", 2**53 + 1, -1), ("cam02", 2**63 - 1, 7)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "cannot be read as JSON", id="not JSON"),
        pytest.param("[]", "one JSON object", id="a list"),
        pytest.param('{"mrege": []}', "Unknown setting mrege.*merge", id="a typing error"),
        pytest.param('{"merge": 3}', "merge=3 .* valid list", id="no list"),
        pytest.param('{"merge": [[["cam01", 3]]]}', "merge.0", id="half a pair"),
        pytest.param(
            '{"split": [[["cam01", "x"], ["cam02", 5]]]}',
            "split.0.0.1='x' .* valid integer",
            id="a track that is no number",
        ),
        pytest.param('{"format": 9}', "format=9", id="a newer format"),
        pytest.param('{"tolerance": -1}', "tolerance=-1 .* greater than or equal", id="a negative tolerance"),
        pytest.param('{"tolerance": "1"}', "tolerance='1' .* valid number", id="a tolerance in quotes"),
    ],
)
def test_an_invalid_constraints_file_is_an_error(tmp_path, text, message):
    path = tmp_path / "constraints.json"
    path.write_text(text)
    with pytest.raises(ReidError, match=message):
        read_constraints(path)


def test_constraints_on_unknown_or_identical_tracklets_are_errors():
    tracklets = tracklets_of((0, 1), (0, 10), (5, 15))
    with pytest.raises(ReidError, match="camera 'cam02', track 9"):
        compile_rules(tracklets, None, Constraints(cannot_link=((("cam01", 0, -1), ("cam02", 9, -1)),)))
    with pytest.raises(ReidError, match="split from itself"):
        compile_rules(tracklets, None, Constraints(cannot_link=((("cam01", 0, -1), ("cam01", 0, -1)),)))


def test_200_000_repeated_constraints_are_read_as_one():
    tracklets = tracklets_of((0, 1), (0, 10), (5, 15))
    pair = (("cam01", 0, -1), ("cam02", 1, -1))
    constraints = Constraints(cannot_link=(pair,) * 200_000)
    assert constraints.cannot_link == (pair,)
    assert len(compile_rules(tracklets, None, constraints).cannot_link) == 1


@pytest.mark.slow
def test_20_000_constraints_between_2_000_tracklets_take_seconds():
    n = 2_000
    start = np.arange(n) * 10.0
    tracklets = tracklets_of(np.zeros(n), start, start + 5)
    rng = np.random.default_rng(0)
    pairs = tuple(
        ((("cam01", int(a), -1)), ("cam01", int(a + 1 + b) % n, -1)) for a, b in rng.integers(0, n - 1, (20_000, 2))
    )
    before = time.process_time()
    constraints = Constraints(cannot_link=pairs)
    compile_rules(tracklets, None, constraints)
    assert not find_violations(tracklets, np.arange(1, n + 1), None, constraints)
    assert time.process_time() - before < 10
