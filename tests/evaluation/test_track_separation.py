"""Separation of simultaneous tracks, against a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import DataError
from reid.evaluation import gain_interval, separate_tracks
from tests.oracles.evaluation import separation_loop


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_those_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tracks = np.concatenate([np.full(rng.integers(1, 9), number) for number in rng.choice(16, 12, replace=False)])
    order = rng.permutation(len(tracks))
    tracks, times = tracks[order], rng.integers(0, 5, len(tracks))
    features = rng.normal(size=(16, 6))[tracks] + rng.normal(size=(len(tracks), 6))
    pairs = rng.integers(0, 16, (40, 2))
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    found = separate_tracks(features, tracks, times, pairs)
    expected, distinct = separation_loop(features, tracks, times, pairs)
    assert found.distinctness() == pytest.approx(distinct)
    rows = rng.integers(0, len(expected), (3, 5))
    assert found.distinctness(rows)[1] == pytest.approx(float(found.distinctness(rows[1])))
    assert len(expected) > 3
    assert found.tracks.tolist() == list(expected)
    assert np.stack([found.auc, found.rank1], axis=1) == pytest.approx(np.array(list(expected.values())))


def test_equal_features_are_chance_and_errors() -> None:
    found = separate_tracks(np.ones((4, 2)), [0, 0, 1, 1], [0, 1, 0, 1], [[0, 1]])
    assert found.as_dict() == {"tracks": 2, "auc": 0.5, "rank1": 0.0, "d_prime": None}


def test_long_tracks_are_thinned_and_nothing_is_scored_without_simultaneous_tracks() -> None:
    rng = np.random.default_rng(0)
    features, tracks = rng.normal(size=(100, 4)), np.repeat([0, 1], 50)
    thin = np.concatenate([np.linspace(0, 49, 8).astype(int) + start for start in (0, 50)])
    times, pairs = np.tile(np.arange(50), 2), [[0, 1]]
    long, short = (separate_tracks(features[r], tracks[r], times[r], pairs) for r in (slice(None), thin))
    assert np.array_equal(long.auc, short.auc)
    nothing = {"tracks": 0, "auc": None, "rank1": None, "d_prime": None}
    assert separate_tracks(features, tracks, times, []).as_dict() == nothing
    with pytest.raises(DataError, match="negative track"):
        separate_tracks(features, tracks - 1, times, pairs)


def test_gain_interval() -> None:
    rng = np.random.default_rng(0)
    people = rng.normal(size=(50, 8)).repeat(4, axis=0)
    tracks, times, pairs = np.repeat(np.arange(50), 4), np.tile(np.arange(4), 50), np.arange(50).reshape(-1, 2)
    noise = rng.normal(size=people.shape)
    before, after = (separate_tracks(people + s * noise, tracks, times, pairs) for s in (0.5, 0.3))
    low, high = gain_interval(before, after) or (0, 0)
    assert 0 < low < after.distinctness() - before.distinctness() < high
    assert gain_interval(before, before) == (0, 0)
    few = separate_tracks(people[:76], tracks[:76], times[:76], pairs[:9])
    assert len(few.tracks) == 18
    assert gain_interval(few, few) is None
    with pytest.raises(DataError, match="different tracks"):
        gain_interval(before, few)
