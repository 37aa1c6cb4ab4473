"""Re-association of crops after a gap, against a loop written from the protocol."""

from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import ConfigError, DataError
from reid.evaluation import reassociate
from reid.evaluation.reassociation import ABSENT, ALONE
from tests.oracles import reassociation_loop


def crops(seed: int, people: int = 6, frames: int = 40, cameras: int = 2) -> tuple[np.ndarray, ...]:
    """Return features, people, frames and cameras of people who are in view for random intervals, shuffled."""
    rng = np.random.default_rng(seed)
    rows = [
        (p if p else -1, f, 10 + c)
        for c in range(cameras)
        for p in range(people)
        for begin in rng.integers(0, frames, 2)
        for f in range(begin, min(begin + int(rng.integers(1, 25)), frames))
    ]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    columns = np.unique(np.array(rows), axis=0)
    person, frame, camera = columns[rng.permutation(len(columns))].T
    looks = rng.normal(size=(people + 1, 8))
    return looks[person] + 0.8 * rng.normal(size=(len(person), 8)), person, frame + 5, camera


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranks_and_dropped_queries_equal_those_of_a_loop(seed: int, metric: str) -> None:
    features, people, frames, cameras = crops(seed)
    result = reassociate(features, people, frames, cameras, gaps=[1, 7, 20, 500], stride=3, metric=metric)  # type: ignore[arg-type]
    for scores in result.gaps:
        scored, absent, alone = reassociation_loop(features, people, frames, cameras, scores.gap, 3, metric)
        assert scores.n_valid == len(scored)
        assert scores.dropped == {ABSENT: absent, ALONE: alone}
        if scored:
            ranks, candidates = np.array(scored).T
            assert scores.rank1 == pytest.approx((ranks == 1).mean())
            assert scores.mrr == pytest.approx((1 / ranks).mean())
            assert scores.chance == pytest.approx((1 / candidates).mean())
            assert scores.candidates == pytest.approx(candidates.mean())
        else:
            assert (scores.rank1, scores.mrr, scores.chance, scores.candidates) == (None,) * 4
    assert result.gaps[0].n_valid > 10
    assert result.gaps[-1].n_valid == 0
    assert result.protocol["crops of unknown people"] == (people < 0).sum()


def test_results_do_not_depend_on_the_memory_limit() -> None:
    columns = crops(3)
    assert reassociate(*columns, gaps=[2]).gaps == reassociate(*columns, gaps=[2], memory_limit=1).gaps


def test_a_model_that_cannot_distinguish_people_never_recognises_them() -> None:
    _, people, frames, cameras = crops(4)
    scores = reassociate(np.ones((len(people), 4)), people, frames, cameras, gaps=[1]).gaps[0]
    assert scores.n_valid
    assert scores.rank1 == 0


def test_people_of_other_cameras_are_no_candidates() -> None:
    features = np.eye(3, dtype=np.float32)[[0, 1, 1, 0]]
    same = reassociate(features, [1, 2, 1, 2], [1, 1, 2, 2], [1, 1, 1, 1], gaps=[1]).gaps[0]
    other = reassociate(features, [1, 2, 1, 2], [1, 1, 2, 2], [1, 2, 1, 2], gaps=[1]).gaps[0]
    assert (same.n_valid, same.rank1) == (2, 0.0)
    assert other.n_valid == 0
    assert other.dropped == {ABSENT: 0, ALONE: 2}


def test_invalid_input_is_named() -> None:
    features = np.eye(2, dtype=np.float32)
    with pytest.raises(DataError, match="Person 7 has two crops in frame 3 of camera 5"):
        reassociate(features, [7, 7], [3, 3], [5, 5])
    with pytest.raises(ConfigError, match="gap"):
        reassociate(features, [1, 2], [1, 1], gaps=[0])
    with pytest.raises(DataError, match="people"):
        reassociate(features, [1], [1, 1])
