from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.data.samplers import BalancedSampler, IdentitySampler, RandomSampler

SOURCES = np.repeat([0, 1, 2], [240, 36, 90])
PIDS = np.concatenate([np.arange(240) // 6, 100 + np.arange(36) // 6, 200 + np.arange(90) // 5])


def balanced(kind: str, rank: int = 0, world_size: int = 1) -> BalancedSampler:
    rows = [np.flatnonzero(source == SOURCES) for source in range(3)]
    if kind == "identity":
        made = [IdentitySampler(PIDS[part], None, 2, 3, 0, rank, world_size) for part in rows]
    else:
        made = [RandomSampler(len(part), 6, 0, rank, world_size) for part in rows]
    return BalancedSampler(made, rows)


@pytest.mark.parametrize("kind", ["identity", "random"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_batch_has_equal_parts_of_each_source(kind: str, world_size: int) -> None:
    for rank in range(world_size):
        sampler = balanced(kind, rank, world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler) == max(map(len, sampler.samplers))
        for batch in batches:
            assert len(batch) == sampler.batch_size == 18
            assert np.bincount(SOURCES[batch]).tolist() == [6, 6, 6]


def test_every_image_of_every_source_is_shown_in_its_identity() -> None:
    batches = list(balanced("identity"))
    assert np.array_equal(np.unique(np.concatenate(batches)), np.arange(len(PIDS)))
    for batch in batches:
        assert (np.unique(PIDS[batch], return_counts=True)[1] == 3).all()


def test_a_small_source_continues_with_new_passes() -> None:
    sampler = balanced("identity")
    own = len(sampler.samplers[1])
    assert len(sampler) > 2 * own
    passes = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        small = [batch[SOURCES[batch] == 1].tobytes() for batch in sampler]
        passes += [tuple(small[start : start + own]) for start in range(0, len(small) - own + 1, own)]
    assert len(set(passes)) == len(passes) >= 4


def test_two_passes_are_the_same_and_ranks_are_disjoint_parts() -> None:
    sampler = balanced("identity")
    assert all(map(np.array_equal, sampler, sampler))
    for one, other in zip(balanced("identity", 0, 2), balanced("identity", 1, 2), strict=True):
        assert not set(PIDS[one]) & set(PIDS[other])


def test_samplers_of_different_batch_sizes_raise_an_error() -> None:
    rows = [np.arange(12), np.arange(12, 24)]
    with pytest.raises(ReidError, match="all of one batch size"):
        BalancedSampler([RandomSampler(12, 2), RandomSampler(12, 4)], rows)
    with pytest.raises(ReidError, match="for each source"):
        BalancedSampler([RandomSampler(12, 2)], rows)
    with pytest.raises(ReidError, match="for each source"):
        BalancedSampler([], [])
