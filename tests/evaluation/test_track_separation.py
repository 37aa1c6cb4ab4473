"""Separation of simultaneous tracks, against a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import DataError
from reid.evaluation import TrackSeparation, gain_interval, separate_tracks
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
    found, expected = separate_tracks(features, tracks, times, pairs), separation_loop(features, tracks, times, pairs)
    assert len(expected) > 3
    assert found.tracks.tolist() == list(expected)
    assert np.stack([found.auc, found.rank1], axis=1) == pytest.approx(np.array(list(expected.values())))


def test_equal_features_are_chance_and_errors() -> None:
    found = separate_tracks(np.ones((4, 2)), [0, 0, 1, 1], [0, 1, 0, 1], [[0, 1]])
    assert found.as_dict() == {"tracks": 2, "auc": 0.5, "rank1": 0.0}


def test_long_tracks_are_thinned_and_nothing_is_scored_without_simultaneous_tracks() -> None:
    rng = np.random.default_rng(0)
    features, tracks = rng.normal(size=(100, 4)), np.repeat([0, 1], 50)
    thin = np.concatenate([np.linspace(0, 49, 8).astype(int) + start for start in (0, 50)])
    times, pairs = np.tile(np.arange(50), 2), [[0, 1]]
    long, short = (separate_tracks(features[r], tracks[r], times[r], pairs) for r in (slice(None), thin))
    assert np.array_equal(long.auc, short.auc)
    assert separate_tracks(features, tracks, times, []).as_dict() == {"tracks": 0, "auc": None, "rank1": None}
    with pytest.raises(DataError, match="negative track"):
        separate_tracks(features, tracks - 1, times, pairs)


def test_gain_interval() -> None:
    rng = np.random.default_rng(0)
    before = TrackSeparation(np.arange(50), rng.uniform(0, 0.5, 50), rng.uniform(0, 0.5, 50))
    after = TrackSeparation(before.tracks, before.auc + rng.normal(0.1, 0.1, 50), before.rank1)
    low, high = gain_interval(before, after) or (0, 0)
    assert 0 < low < (after.auc - before.auc).mean() / 2 < high
    assert gain_interval(before, before) == (0, 0)
    few = TrackSeparation(np.arange(19), before.auc[:19], before.rank1[:19])
    assert gain_interval(few, few) is None
    with pytest.raises(DataError, match="different tracks"):
        gain_interval(before, few)
