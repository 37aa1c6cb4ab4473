from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import QuadrupletLoss, TripletLoss
from tests.losses.batches import PIDS, repeated
from tests.oracles import quadruplet_loss_loop


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean", "cosine"])
@pytest.mark.parametrize("margins", [(0.3, 0.15), (2.0, 3.0), (0.0, 0.0)])
@pytest.mark.parametrize("pids", PIDS)
def test_equals_the_loop(pids, margins, distance):
    if len(pids) > 20:
        pids = pids[::2]  # every quadruplet is looked at
    features = draw(len(pids), 5)
    got = QuadrupletLoss(*margins, distance=distance)(features, pids).item()
    expected = quadruplet_loss_loop(features.numpy(), pids.tolist(), *margins, distance)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loop_with_cameras_on_random_ragged_batches_with_ties(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 25))
    pids, camids = (torch.from_numpy(rng.integers(0, 6, n)) for _ in range(2))
    features = torch.from_numpy(rng.integers(0, 3, (n, 3))).float()  # many equal distances
    got = QuadrupletLoss(1.0, camera_aware=True)(features, pids, camids).item()
    expected = quadruplet_loss_loop(features.numpy(), pids.tolist(), 1.0, 0.5, "euclidean", camids.tolist())
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_second_pair_shares_no_identity_with_the_anchor():
    """On a line: identity 0 at 0 and 1, identities 1 and 2 at 10 and 10.2, far from it and near each other."""
    features = torch.tensor([[0.0], [1.0], [10.0], [10.2]])
    loss = QuadrupletLoss(0.3, 0.1)(features, torch.tensor([0, 0, 1, 2]))
    assert loss.item() == pytest.approx(1.0 - 0.2 + 0.1)


def test_with_two_identities_only_the_triplet_term_counts():
    features, pids = draw(8, 4), repeated([4, 4])
    assert QuadrupletLoss(0.3, 9.0)(features, pids).item() == pytest.approx(TripletLoss(0.3)(features, pids).item())


def test_gradient_in_float64():
    x = draw(9, 4, dtype=torch.float64).requires_grad_()
    loss = QuadrupletLoss(2.0, 3.0)
    assert torch.autograd.gradcheck(lambda x: loss(x, repeated([3, 1, 3, 2])), (x,))


@pytest.mark.parametrize(
    "pids",
    [
        pytest.param(repeated([6]), id="one identity"),
        pytest.param(repeated([1] * 6), id="six identities of one crop"),
        pytest.param(repeated([1]), id="one crop"),
        pytest.param(torch.zeros(0, dtype=torch.int64), id="no crop"),
    ],
)
def test_without_a_triplet_the_loss_is_a_differentiable_zero(pids):
    features = draw(len(pids), 4).requires_grad_()
    loss = QuadrupletLoss()(features, pids)
    assert loss.item() == 0
    loss.backward()
    assert (features.grad == 0).all()


def test_when_all_points_are_one_the_loss_is_both_margins_and_the_gradient_zero():
    features = torch.ones(9, 4, requires_grad=True)
    loss = QuadrupletLoss(0.3, 0.2)(features, repeated([3, 3, 3]))
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert (features.grad == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("pids", [repeated([3, 3, 3]), repeated([1])], ids=["batch", "one crop"])
def test_a_feature_that_is_not_finite_makes_the_loss_nan(pids, bad):
    features = draw(len(pids), 4)
    features[-1, 0] = bad
    assert math.isnan(QuadrupletLoss()(features, pids).item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_autocast(dtype):
    features, pids = draw(16, 64).to(dtype).requires_grad_(), repeated([4] * 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = QuadrupletLoss()(features, pids)
    loss.backward()
    expected = quadruplet_loss_loop(features.detach().float().numpy(), pids.tolist(), 0.3, 0.15, "euclidean")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert features.grad.dtype == dtype


def test_wrong_values_are_named():
    with pytest.raises(ReidError, match=r"quadruplet margin must be 0 or more; got -1"):
        QuadrupletLoss(-1)
    with pytest.raises(ReidError, match=r"quadruplet second_margin must be 0 or more; got nan"):
        QuadrupletLoss(1.0, math.nan)
    with pytest.raises(ReidError, match=r"needs camids"):
        QuadrupletLoss(camera_aware=True)(draw(2, 2), torch.zeros(2))
    assert repr(QuadrupletLoss(0.3)) == "QuadrupletLoss(margin=0.3, second_margin=0.15, distance='euclidean')"
