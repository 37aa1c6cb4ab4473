"""Difficult batches, each named after its difficulty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

RAGGED = [6, 1, 2, 4, 1, 3]


def repeated(counts):
    return torch.cat([torch.full((count,), 10 * label + 3) for label, count in enumerate(counts)])


PIDS = [
    pytest.param(repeated([4, 4, 4, 4]), id="P x K, as the sampler makes it"),
    pytest.param(repeated(RAGGED), id="ragged, with two identities of one crop"),
    pytest.param(repeated(RAGGED).flip(0)[torch.arange(17) * 5 % 17], id="ragged and interleaved"),
    pytest.param(repeated([5]), id="one identity: no negative"),
    pytest.param(repeated([1] * 5), id="one crop an identity: no positive"),
    pytest.param(repeated([1]), id="one crop"),
    pytest.param(repeated([1, 1]), id="two crops, no triplet"),
    pytest.param(repeated([2, 1]), id="the smallest batch with a triplet"),
    pytest.param(repeated([30, 2]), id="one identity outnumbers the other"),
    pytest.param(torch.tensor([-1, 0, -1, 2**40, 0, 2**40, 2**40 + 1]), id="negative and huge ids"),
]


def ragged_batch(seed, most=60):
    """`pids`, `camids` of a random batch: 1 to `most` crops of 1 to 20 identities; some cameras are unknown."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, most))
    pids = rng.integers(0, rng.integers(1, 20), n)
    camids = rng.integers(-1, rng.integers(1, 4), n)
    return torch.from_numpy(pids), torch.from_numpy(camids)
