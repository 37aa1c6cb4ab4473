from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.errors import ReidError
from reid.losses import batch_hard
from reid.losses.mining import pair_masks
from tests.losses.batches import PIDS
from tests.oracles import batch_hard_loop


@pytest.mark.parametrize("pids", PIDS)
def test_equals_the_loop(pids):
    distances = torch.rand(len(pids), len(pids), generator=torch.Generator().manual_seed(1))
    positive, negative, valid = batch_hard(distances, pids)
    truth = batch_hard_loop(distances.tolist(), pids.tolist())
    assert np.flatnonzero(valid).tolist() == sorted(truth)
    for anchor in range(len(pids)):
        assert (positive[anchor].item(), negative[anchor].item()) == truth.get(anchor, (0.0, 0.0))


@pytest.mark.parametrize("pids", PIDS)
def test_masks_part_the_pairs(pids):
    positives, negatives = pair_masks(pids)
    for i in range(len(pids)):
        for j in range(len(pids)):
            assert positives[i, j].item() == (i != j and pids[i] == pids[j])
            assert negatives[i, j].item() == (pids[i] != pids[j])


def test_an_anchor_is_never_its_own_positive():
    """With distances that do not vanish on the diagonal, as other measures may have."""
    distances = torch.full((4, 4), 0.5).fill_diagonal_(9.0)
    positive, _, _ = batch_hard(distances, torch.tensor([0, 0, 1, 1]))
    assert positive.tolist() == [0.5] * 4


def test_of_equal_distances_one_takes_the_gradient():
    distances = torch.ones(5, 5, requires_grad=True)
    positive, negative, _ = batch_hard(distances, torch.tensor([0, 0, 0, 1, 1]))
    (positive[0] + negative[0]).backward()
    assert distances.grad[0].sort().values.tolist() == [0, 0, 0, 1, 1]
    assert distances.grad[1:].abs().sum() == 0


def test_anchors_without_a_triplet_get_no_gradient():
    distances = torch.rand(4, 4, requires_grad=True)
    positive, negative, valid = batch_hard(distances, torch.tensor([0, 1, 2, 3]))
    assert not valid.any()
    (positive.sum() + negative.sum()).backward()
    assert (distances.grad == 0).all()


def test_nan_is_passed_on():
    distances = torch.rand(4, 4)
    distances[0, 1] = distances[2, 1] = torch.nan
    positive, negative, valid = batch_hard(distances, torch.tensor([0, 0, 1, 1]))
    assert valid.all()
    assert torch.isnan(positive).tolist() == [True, False, False, False]
    assert torch.isnan(negative).tolist() == [False, False, True, False]


def test_an_empty_batch():
    positive, negative, valid = batch_hard(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
    assert positive.shape == negative.shape == valid.shape == (0,)


@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (3,)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ReidError, match=r"distances \[B, B\]"):
        batch_hard(torch.zeros(shape), torch.zeros(3, dtype=torch.int64))
