from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import (
    DISTANCES,
    MINING_NAMES,
    Mahalanobis,
    MinkowskiTripletLoss,
    TripletLoss,
    mine_triplets,
    triplet_loss,
)
from reid.losses.mining import HARDNESS_MINERS
from tests.losses.batches import PIDS, ragged_batch, repeated
from tests.oracles import batch_hard_loop, pairwise_distances_loop, triplet_loss_loop

EVERY = pytest.mark.parametrize("distance", [*sorted(DISTANCES), "minkowski:3"])
FIXED = ["batch_all", "batch_hard", "easy_positive", "hardest_negative", "semi_hard", "weighted"]
DRAWING = ["random", "distance_weighted"]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("margin", [0.3, 0.0, 5.0, None])
@pytest.mark.parametrize("pids", PIDS)
def test_equals_the_loop(pids, margin, distance):
    features = draw(len(pids), 12)
    got = TripletLoss(margin, distance=distance)(features, pids).item()
    assert got == pytest.approx(triplet_loss_loop(features.numpy(), pids.tolist(), margin, distance), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("camera_aware", [False, True])
@pytest.mark.parametrize("mining", FIXED)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop_on_random_ragged_batches(seed, mining, camera_aware):
    pids, camids = ragged_batch(seed, most=35)
    features = draw(len(pids), 3 + seed, seed=seed)
    for margin, reduction in ((0.3, "mean"), (0.3, "active"), (0.0, "active"), (0.3, "sum"), (None, "mean")):
        loss = TripletLoss(margin, mining, reduction=reduction, camera_aware=camera_aware)
        expected = triplet_loss_loop(
            features.numpy(),
            pids.tolist(),
            margin,
            "euclidean",
            mining,
            reduction,
            camids.tolist() if camera_aware else None,
        )
        assert loss(features, pids, camids).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        measured, seen = loss.measure(features, pids, camids)
        assert measured.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert 0 <= seen["active"].item() <= 1


def test_batch_all_averages_active_triplets_by_default():
    assert TripletLoss(mining="batch_all").reduction == "active"
    assert TripletLoss(mining="batch_all", reduction="mean").reduction == "mean"
    assert TripletLoss().reduction == "mean"


def test_with_the_soft_margin_every_triplet_is_active():
    features, pids = draw(12, 4), repeated([4, 5, 3])
    for mining in FIXED:
        mean, active = (TripletLoss(None, mining, reduction=name)(features, pids) for name in ("mean", "active"))
        torch.testing.assert_close(mean, active)


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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pids", PIDS)
@pytest.mark.parametrize(
    ("tested_loss", "reference"),
    [("euclidean", {"p": 2}), ("squared_euclidean", {"p": 2, "power": 2})],
    ids=["euclidean", "squared"],
)
@pytest.mark.parametrize("margin", [0.3, None])
def test_equals_pytorch_metric_learning(pids, tested_loss, reference, margin, dtype):
    """Their miner with their loss; MeanReducer, for their default divides by the triplets above 0 only."""
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False, **reference)
    miner = miners.BatchHardMiner(distance=distance)
    smooth = {"margin": 0.0, "smooth_loss": True} if margin is None else {"margin": margin}
    criterion = losses.TripletMarginLoss(distance=distance, reducer=reducers.MeanReducer(), **smooth)
    features = draw(len(pids), 16, dtype=dtype)
    tested, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = TripletLoss(margin, distance=tested_loss)(tested, pids)
    expected = criterion(other, pids, miner(other, pids))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected.to(dtype), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tested.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mining", ["batch_all", "batch_all mean", "hardest_negative", "easy_positive"])
def test_other_miners_equal_pytorch_metric_learning(mining, seed, dtype):
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False)
    miner = {
        "hardest_negative": miners.BatchEasyHardMiner("all", "hard", distance=distance),
        "easy_positive": miners.BatchEasyHardMiner("easy", "hard", distance=distance),
    }.get(mining, lambda *_: None)
    reducer = reducers.AvgNonZeroReducer() if mining == "batch_all" else reducers.MeanReducer()
    criterion = losses.TripletMarginLoss(0.3, distance=distance, reducer=reducer)
    pids, _ = ragged_batch(seed)
    features = draw(len(pids), 6, dtype=dtype)
    tested, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = TripletLoss(0.3, mining.split()[0], reduction="active" if mining == "batch_all" else "mean")(tested, pids)
    expected = criterion(other, pids, miner(other, pids))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected.to(dtype), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tested.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_semi_hard_selects_the_hardest_of_the_triplets_of_pytorch_metric_learning(seed):
    """That package lists all triplets with `0 < d_an − d_ap ≤ margin`; `semi_hard` selects the first of each pair."""
    from pytorch_metric_learning import distances, miners

    margin = 0.5
    distance = distances.LpDistance(normalize_embeddings=False)
    pids, _ = ragged_batch(seed)
    features = draw(len(pids), 6, dtype=torch.float64)
    d = distance(features)
    listed = {}
    anchors, positives, negatives = miners.TripletMarginMiner(margin, "semihard", distance=distance)(features, pids)
    for a, p, n in zip(anchors.tolist(), positives.tolist(), negatives.tolist(), strict=True):
        pair = (a, round(d[a, p].item(), 9))
        listed[pair] = min(listed.get(pair, math.inf), d[a, n].item())
    d_ap, d_an, valid = mine_triplets("semi_hard", d, pids)
    mined = {}
    for a in range(len(pids)):
        for ap, an in zip(d_ap[a][valid[a]].tolist(), d_an[a][valid[a]].tolist(), strict=True):
            if ap < an <= ap + margin:
                mined[a, round(ap, 9)] = an
    assert mined == pytest.approx(listed)


@pytest.mark.parametrize("margin", [0.3, None])
@EVERY
def test_the_order_of_the_rows_does_not_matter(margin, distance):
    pids = repeated([3, 1, 4, 2])
    features = draw(10, 8)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    loss = TripletLoss(margin, distance=distance)
    assert loss(features, pids).item() == pytest.approx(loss(features[order], pids[order]).item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("hardness", [1.0, 0.5])
@pytest.mark.parametrize("mining", MINING_NAMES)
@pytest.mark.parametrize("distance", [*sorted(DISTANCES), "minkowski:3", "Mahalanobis"])
def test_gradient_in_float64(distance, mining, hardness):
    features = draw(9, 4, dtype=torch.float64).requires_grad_()
    if hardness < 1 and mining not in HARDNESS_MINERS:
        hardness = 1.0
    for margin in (1.0, None):
        measure = Mahalanobis(dim=4).double() if distance == "Mahalanobis" else distance
        loss = TripletLoss(margin, mining, measure)
        loss.hardness = hardness

        def of(x, loss=loss):
            loss.step = 0  # the same draw every time
            return loss(x, repeated([3, 1, 4, 1]))

        assert torch.autograd.gradcheck(of, (features,), fast_mode=True)


def test_weights_of_a_distance_are_parameters_of_the_loss():
    loss = TripletLoss(1.0, distance=Mahalanobis(dim=4))
    assert len(list(loss.parameters())) == len(list(loss.distance.parameters())) > 0
    loss(draw(9, 4), repeated([3, 1, 4, 1])).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


@pytest.mark.parametrize("mining", MINING_NAMES)
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
def test_without_a_triplet_the_loss_is_a_differentiable_zero(pids, margin, mining):
    features = draw(len(pids), 4).requires_grad_()
    loss = TripletLoss(margin, mining)(features, pids)
    assert loss.item() == 0
    loss.backward()
    assert (features.grad == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "value"), [(0.3, 0.3), (None, math.log(2))])
@pytest.mark.parametrize("mining", MINING_NAMES)
@EVERY
def test_when_all_points_are_one_the_loss_is_at_the_margin_and_the_gradient_zero(distance, mining, margin, value):
    features = torch.ones(8, 4, requires_grad=True)
    loss = TripletLoss(margin, mining, distance)(features, repeated([4, 4]))
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


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("mining", MINING_NAMES)
def test_a_feature_that_is_not_finite_makes_the_loss_and_its_gradient_nan(mining, bad, distance):
    for margin in (0.3, None):
        features = draw(8, 4)
        features[5, 2] = bad
        loss = TripletLoss(margin, mining, distance)(features.requires_grad_(), repeated([4, 4]))
        assert math.isnan(loss.item())
        loss.backward()
        assert torch.isnan(features.grad).any()


@pytest.mark.slow
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


@pytest.mark.parametrize("mining", MINING_NAMES)
def test_half_precision_is_computed_in_float32_by_every_miner(mining):
    features = (5 * draw(16, 512)).half()
    half, full = features.clone().requires_grad_(), features.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = TripletLoss(0.3, mining)(half, repeated([4] * 4))
        loss.backward()
    expected = TripletLoss(0.3, mining)(full, repeated([4] * 4))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(half.grad, full.grad.half())


@pytest.mark.slow
@pytest.mark.parametrize("mining", FIXED)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_host_never_waits_for_the_device(mining, distance, monkeypatch):
    """Tensors of the meta device have no values: whatever asks for one fails. (Nor has it autocast.)"""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    features = torch.empty(24, 8, device="meta", requires_grad=True)
    pids = torch.zeros(24, dtype=torch.int64, device="meta")
    for margin in (0.3, None):
        loss, _ = TripletLoss(margin, mining, distance, camera_aware=True).measure(features, pids, pids)
        loss.backward()


@pytest.mark.parametrize("mining", [*DRAWING, *HARDNESS_MINERS])
def test_random_mining_depends_on_the_seed_and_the_batch_number(mining):
    features, pids = draw(40, 6), repeated([5] * 8)

    def losses(seed, batches, start=0):
        loss = TripletLoss(0.3, mining, seed=seed)
        loss.hardness = 1.0 if mining in DRAWING else 0.2
        loss.load_state_dict({"_extra_state": torch.tensor(start)})
        values = [loss(features, pids).item() for _ in range(batches)]
        assert loss.state_dict()["_extra_state"] == start + batches
        return values

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = losses(0, 4)
    assert first == losses(0, 4)
    assert first[2:] == losses(0, 2, start=2)
    assert len({*first, *losses(1, 4)}) == 8
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mining", HARDNESS_MINERS)
def test_the_loss_grows_with_hardness(mining):
    """In the mean over draws; from hardness 0 up to the miner itself."""
    features, pids = draw(60, 6), repeated([5] * 12)
    means = []
    for hardness in (0.0, 0.5, 0.9, 1.0):
        loss = TripletLoss(2.0, mining)
        loss.hardness = hardness
        means.append(np.mean([loss(features, pids).item() for _ in range(10)]))
    assert means == sorted(means)
    assert means[-1] == pytest.approx(TripletLoss(2.0, mining)(features, pids).item())


# The user's documents: what they show, with numbers worked out in NumPy.


def numpy_triplet(d_ap, d_an, margin):
    return np.maximum(d_ap - d_an + margin, 0).mean()


def test_plain_triplets_on_squared_distances():
    """Mean of max(‖a − p‖² − ‖a − n‖² + α, 0), α = 0.2, on a [B, 3, D] array."""
    batch = np.random.default_rng(0).normal(size=(12, 3, 5))
    a, p, n = batch[:, 0], batch[:, 1], batch[:, 2]
    expected = numpy_triplet(((a - p) ** 2).sum(1), ((a - n) ** 2).sum(1), 0.2)
    got = triplet_loss(*torch.from_numpy(batch).unbind(dim=1), margin=0.2, distance="squared_euclidean")
    assert got.item() == pytest.approx(expected)
    assert triplet_loss(*torch.from_numpy(batch).unbind(dim=1)).item() == got.item()  # they are the defaults


def test_three_triplets_by_hand():
    batch = torch.tensor([[[0.0, 0], [1, 0], [0, 1]], [[0, 0], [1, 0], [3, 0]], [[0, 0], [2, 0], [1, 1]]])
    # squared: 1 − 1 + .2 = .2; 1 − 9 + .2 < 0; 4 − 2 + .2 = 2.2
    assert triplet_loss(*batch.unbind(dim=1)).item() == pytest.approx((0.2 + 0 + 2.2) / 3)


def test_plain_triplets_with_the_nearest_of_all_negatives():
    batch = np.random.default_rng(1).normal(size=(12, 3, 5))
    a, p, n = batch[:, 0], batch[:, 1], batch[:, 2]
    nearest = ((a[:, None] - n[None]) ** 2).sum(2).min(1)
    got = triplet_loss(*torch.from_numpy(batch).unbind(dim=1), margin=0.2, nearest=True)
    assert got.item() == pytest.approx(numpy_triplet(((a - p) ** 2).sum(1), nearest, 0.2))


def test_online_mining_over_a_batch_in_one_forward_pass():
    rng = np.random.default_rng(2)
    crops = torch.from_numpy(rng.normal(size=(12, 7)))
    pids = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
    network = torch.nn.Linear(7, 4).double()
    features = network(crops)
    loss = TripletLoss(0.2, distance="squared_euclidean")(features, torch.from_numpy(pids))
    loss.backward()
    assert network.weight.grad.abs().sum() > 0
    x = features.detach().numpy()
    d = ((x[:, None] - x[None]) ** 2).sum(2)
    same = pids[:, None] == pids[None]
    expected = numpy_triplet(np.where(same, d, -np.inf).max(1), np.where(same, np.inf, d).min(1), 0.2)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 7.0, math.inf])
def test_minkowski_triplet_loss_takes_the_order_at_each_call(p):
    a, p_, n = np.random.default_rng(3).normal(size=(3, 10, 6))
    expected = numpy_triplet(np.linalg.norm(a - p_, ord=p, axis=1), np.linalg.norm(a - n, ord=p, axis=1), 1.0)
    loss = MinkowskiTripletLoss(margin=1.0)
    anchor, positive, negative = (torch.from_numpy(rows).requires_grad_() for rows in (a, p_, n))
    assert loss(anchor, positive, negative, p=p).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda *rows: loss(*rows, p=p), (anchor, positive, negative))


def test_given_triplets_in_corner_cases():
    nothing = draw(0, 4).requires_grad_()
    loss = triplet_loss(nothing, nothing, nothing)
    loss.backward()
    assert loss.item() == 0
    point = torch.ones(3, 4, requires_grad=True)
    for distance in (*DISTANCES, "minkowski:1.5"):
        loss = triplet_loss(point, torch.ones(3, 4), torch.ones(3, 4), 0.2, distance)
        assert loss.item() == pytest.approx(0.2)
        assert (torch.autograd.grad(loss, point)[0] == 0).all()
    assert triplet_loss(point, point, point, None).item() == pytest.approx(math.log(2))
    assert math.isnan(triplet_loss(point * torch.nan, point, point).item())
    assert triplet_loss(draw(4, 3).half(), draw(4, 3).half(), draw(4, 3).half()).dtype == torch.float32
    with pytest.raises(ReidError, match=r"must be 1 or more; got 0\.5"):
        MinkowskiTripletLoss()(point, point, point, p=0.5)
    with pytest.raises(ReidError, match="must be 0 or more"):
        MinkowskiTripletLoss(-1.0)
    with pytest.raises(ReidError, match=r"\[3, 4\] and \[2, 4\]"):
        triplet_loss(point, point, point[:2])
    with pytest.raises(ReidError, match="no negative"):
        triplet_loss(point, point, point[:0], nearest=True)


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
    with pytest.raises(ReidError, match=r"Unknown reduction 'means'. Did you mean 'mean'\?"):
        TripletLoss(reduction="means")
    with pytest.raises(ReidError, match="camera-aware loss needs camids"):
        TripletLoss(camera_aware=True)(draw(4, 2), torch.zeros(4, dtype=torch.int64))
    loss = TripletLoss(mining="batch_all")
    loss.hardness = 0.5
    with pytest.raises(ReidError, match=r"'batch_all' has no hardness.*one of batch_hard, semi_hard"):
        loss(draw(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ReidError, match=r"Did you mean 'cosine'\?"):
        TripletLoss(distance="cosin")
    with pytest.raises(ReidError, match=r"features \[B, D\] and pids \[B\]; got \[4, 2\] and \[3\]"):
        TripletLoss()(draw(4, 2), torch.zeros(3, dtype=torch.int64))


def test_prints_its_settings():
    assert "camera_aware=True" in repr(TripletLoss(camera_aware=True))
    assert repr(TripletLoss(None, distance="cosine")) == (
        "TripletLoss(margin=None, mining='batch_hard', distance='cosine', reduction='mean')"
    )
