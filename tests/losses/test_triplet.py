from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reid.errors import ReidError
from reid.losses import DISTANCES, TripletLoss
from tests.losses.batches import PIDS, repeated
from tests.oracles import batch_hard_loop, pairwise_distances_loop, triplet_loss_loop

EVERY = pytest.mark.parametrize("distance", sorted(DISTANCES))


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@EVERY
@pytest.mark.parametrize("margin", [0.3, 0.0, 5.0, None])
@pytest.mark.parametrize("pids", PIDS)
def test_equals_the_loop(pids, margin, distance):
    features = draw(len(pids), 12)
    got = TripletLoss(margin, distance=distance)(features, pids).item()
    assert got == pytest.approx(triplet_loss_loop(features.numpy(), pids.tolist(), margin, distance), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop_on_random_ragged_batches(seed):
    rng = np.random.default_rng(seed)
    pids = torch.from_numpy(rng.integers(0, rng.integers(1, 20), size=rng.integers(1, 60)))
    features = draw(len(pids), int(rng.integers(1, 40)), seed=seed)
    for margin in (0.3, None):
        got = TripletLoss(margin)(features, pids).item()
        assert got == pytest.approx(triplet_loss_loop(features.numpy(), pids.tolist(), margin, "euclidean"), rel=1e-5)


def test_the_ragged_batch_on_which_reshaping_is_wrong():
    """8 identities × 6 crops and 8 × 2, shuffled: 64 × (−1) happens to fit the reshape of the widely copied code."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 8, generator=generator)
    pids = torch.cat([torch.arange(8).repeat_interleave(6), torch.arange(8, 16).repeat_interleave(2)])
    pids = pids[torch.randperm(64, generator=generator)]
    assert TripletLoss(0.3)(features, pids).item() == pytest.approx(2.7872, abs=5e-5)

    distances = torch.cdist(features, features)
    same = pids.unsqueeze(0) == pids.unsqueeze(1)
    hardest_positive = distances[same].reshape(64, -1).max(dim=1).values
    hardest_negative = distances[~same].reshape(64, -1).min(dim=1).values
    assert (hardest_positive - hardest_negative + 0.3).relu().mean().item() == pytest.approx(3.0364, abs=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pids", PIDS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("euclidean", {"p": 2}), ("squared_euclidean", {"p": 2, "power": 2})],
    ids=["euclidean", "squared"],
)
@pytest.mark.parametrize("margin", [0.3, None])
def test_equals_pytorch_metric_learning(pids, ours, theirs, margin, dtype):
    """Their miner with their loss; MeanReducer, for their default divides by the triplets above 0 only."""
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False, **theirs)
    miner = miners.BatchHardMiner(distance=distance)
    smooth = {"margin": 0.0, "smooth_loss": True} if margin is None else {"margin": margin}
    criterion = losses.TripletMarginLoss(distance=distance, reducer=reducers.MeanReducer(), **smooth)
    features = draw(len(pids), 16, dtype=dtype)
    mine, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = TripletLoss(margin, distance=ours)(mine, pids)
    expected = criterion(other, pids, miner(other, pids))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected.to(dtype), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("margin", [0.3, None])
@EVERY
def test_the_order_of_the_rows_does_not_matter(margin, distance):
    pids = repeated([3, 1, 4, 2])
    features = draw(10, 8)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    loss = TripletLoss(margin, distance=distance)
    assert loss(features, pids).item() == pytest.approx(loss(features[order], pids[order]).item(), rel=1e-6)


@EVERY
@pytest.mark.parametrize("margin", [1.0, None])
def test_gradient_in_float64(margin, distance):
    features = draw(9, 4, dtype=torch.float64).requires_grad_()
    loss = TripletLoss(margin, distance=distance)
    assert torch.autograd.gradcheck(lambda x: loss(x, repeated([3, 1, 4, 1])), (features,))


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize(
    "pids",
    [
        pytest.param(repeated([6]), id="one identity"),
        pytest.param(repeated([1] * 6), id="six identities of one crop"),
        pytest.param(repeated([1]), id="one crop"),
        pytest.param(torch.zeros(0, dtype=torch.int64), id="no crop"),
    ],
)
def test_without_a_triplet_the_loss_is_a_differentiable_zero(pids, margin):
    features = draw(len(pids), 4).requires_grad_()
    loss = TripletLoss(margin)(features, pids)
    assert loss.item() == 0
    loss.backward()
    assert (features.grad == 0).all()


@pytest.mark.parametrize(("margin", "value"), [(0.3, 0.3), (None, math.log(2))])
@EVERY
def test_when_all_points_are_one_the_loss_is_at_the_margin_and_the_gradient_zero(distance, margin, value):
    features = torch.ones(8, 4, requires_grad=True)
    loss = TripletLoss(margin, distance=distance)(features, repeated([4, 4]))
    assert loss.item() == pytest.approx(value)
    loss.backward()
    assert (features.grad == 0).all()


def test_duplicates_of_the_anchor_are_positives_at_zero():
    """The sampler repeats a crop where an identity has too few."""
    features = draw(3, 4).repeat_interleave(2, dim=0).requires_grad_()
    loss, seen = TripletLoss(0.3).measure(features, repeated([2, 2, 2]))
    loss.backward()
    assert seen["positive"].item() == 0
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_feature_that_is_not_finite_makes_the_loss_nan(bad):
    features = draw(8, 4)
    features[5, 2] = bad
    assert not math.isfinite(TripletLoss(0.3)(features, repeated([4, 4])).item())
    assert not math.isfinite(TripletLoss(None)(features, repeated([4, 4])).item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_autocast(dtype):
    features = (10 * draw(32, 2048)).to(dtype).requires_grad_()
    pids = repeated([4] * 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = TripletLoss(0.3)(features, pids)
    loss.backward()
    expected = triplet_loss_loop(features.detach().float().numpy(), pids.tolist(), 0.3, "euclidean")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert features.grad.dtype == dtype
    assert torch.isfinite(features.grad).all()


def test_a_large_difference_does_not_overflow_the_soft_margin():
    features = torch.tensor([[0.0], [1e4], [1.0], [1e4 + 1]], requires_grad=True)
    loss = TripletLoss(None)(features, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4 - 1)
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("pids", PIDS)
def test_measure_equals_the_loop(pids, margin):
    features = draw(len(pids), 12)
    loss, seen = TripletLoss(margin).measure(features.requires_grad_(), pids)
    assert loss.item() == TripletLoss(margin)(features, pids).item()
    distances = pairwise_distances_loop(features.tolist(), features.tolist(), "euclidean")
    ids, n = pids.tolist(), len(pids)
    triplets = batch_hard_loop(distances, ids).values()
    active = [ap >= an if margin is None else margin + ap - an > 0 for ap, an in triplets]
    positives = [distances[i, j] for i in range(n) for j in range(n) if i != j and ids[i] == ids[j]]
    negatives = [distances[i, j] for i in range(n) for j in range(n) if ids[i] != ids[j]]
    expected = {
        "active": active,
        "positive": positives,
        "negative": negatives,
        "norm": [math.sqrt(sum(v * v for v in row)) for row in features.tolist()],
        "valid": [1.0] * len(active) + [0.0] * (n - len(active)),
    }
    assert seen.keys() == expected.keys()
    for name, values in expected.items():
        assert seen[name].shape == ()
        assert not seen[name].requires_grad
        assert seen[name].item() == pytest.approx(sum(values) / len(values) if values else 0.0, rel=1e-5), name


def test_a_separated_batch_is_inactive():
    features = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    loss, seen = TripletLoss(0.3).measure(features, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == 0
    assert seen["active"].item() == 0
    assert TripletLoss(None).measure(features, torch.tensor([0, 0, 1, 1]))[1]["active"].item() == 0


def test_no_random_number_is_drawn():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    TripletLoss(0.3).measure(draw(8, 4), repeated([4, 4]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_wrong_margin_is_named(margin):
    with pytest.raises(ReidError, match=f"margin must be 0 or more.*got {margin}"):
        TripletLoss(margin)


def test_wrong_names_and_shapes_are_named():
    with pytest.raises(ReidError, match=r"Unknown mining 'batchhard'. Did you mean 'batch_hard'\?"):
        TripletLoss(mining="batchhard")
    with pytest.raises(ReidError, match=r"Did you mean 'cosine'\?"):
        TripletLoss(distance="cosin")
    with pytest.raises(ReidError, match=r"features \[B, D\] and pids \[B\]; got \[4, 2\] and \[3\]"):
        TripletLoss()(draw(4, 2), torch.zeros(3, dtype=torch.int64))


def test_prints_its_settings():
    assert repr(TripletLoss(None, distance="cosine")) == (
        "TripletLoss(margin=None, mining='batch_hard', distance='cosine', reduction='mean')"
    )
