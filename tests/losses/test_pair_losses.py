"""The losses over pairs, each against its loop: contrastive, circle, InfoNCE, SupCon, hard triplets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import CircleLoss, ContrastiveLoss, InfoNCELoss, SupConLoss, TripletLoss
from reid.losses.memory import HardTripletPairs
from tests.losses.batches import PIDS, repeated
from tests.oracles import (
    circle_loss_loop,
    compared_loop,
    contrastive_loss_loop,
    hard_triplet_pairs_loop,
    infonce_loss_loop,
    supcon_loss_loop,
)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def contrastive(margin=3.0, positive_margin=0.0, distance="euclidean", power=2, reduction="active"):
    settings = (margin, positive_margin, distance, power, reduction)
    return (
        ContrastiveLoss,
        dict(zip(("margin", "positive_margin", "distance", "power", "reduction"), settings, strict=True)),
        lambda x, y, pairs: contrastive_loss_loop(x, y, pairs, *settings),
    )


CASES = {
    "contrastive, as in the paper but for the mean over active pairs": contrastive(),
    "contrastive, mean over all pairs": contrastive(reduction="mean"),
    "contrastive, linear, cosine, with a positive margin": contrastive(0.9, 0.2, "cosine", 1),
    "circle": (CircleLoss, {}, lambda x, y, pairs: circle_loss_loop(x, y, pairs, 0.25, 128.0)),
    "circle, small gamma": (
        CircleLoss,
        {"margin": 0.4, "gamma": 5.0},
        lambda x, y, pairs: circle_loss_loop(x, y, pairs, 0.4, 5.0),
    ),
    "InfoNCE": (InfoNCELoss, {}, lambda x, y, pairs: infonce_loss_loop(x, y, pairs, 0.1)),
    "SupCon": (SupConLoss, {"temperature": 0.5}, lambda x, y, pairs: supcon_loss_loop(x, y, pairs, 0.5)),
    "hard triplets": (HardTripletPairs, {}, lambda x, y, pairs: hard_triplet_pairs_loop(x, y, pairs, 0.3)),
    "hard triplets, soft margin": (
        HardTripletPairs,
        {"margin": None},
        lambda x, y, pairs: hard_triplet_pairs_loop(x, y, pairs, None),
    ),
}
EVERY = pytest.mark.parametrize(("make", "options", "loop"), CASES.values(), ids=CASES)
ONCE = [ContrastiveLoss, CircleLoss, InfoNCELoss, SupConLoss, HardTripletPairs]


@EVERY
@pytest.mark.parametrize("pids", PIDS)
def test_equals_the_loop(pids, make, options, loop):
    features = draw(len(pids), 6)
    got = make(**options)(features, pids).item()
    x = features.double().numpy()
    assert got == pytest.approx(loop(x, x, compared_loop(pids.tolist())), rel=1e-4, abs=1e-6)


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_camera_aware_on_random_ragged_batches_with_duplicates_and_a_zero_row(make, options, loop, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(10, 30))
    pids, camids = (torch.from_numpy(rng.integers(0, 5, n)) for _ in range(2))
    features = draw(n, 6, seed=seed)
    features[1] = features[0]
    features[2] = 0
    got = make(**options, camera_aware=True)(features, pids, camids).item()
    x = features.double().numpy()
    assert got == pytest.approx(loop(x, x, compared_loop(pids.tolist(), camids.tolist())), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("make", ONCE)
def test_camera_aware_keeps_the_anchors_that_have_one_camera_only(make):
    """Identity 0 in one camera, identity 1 in two: the first is as without cameras."""
    features, pids = draw(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    cameras = torch.tensor([0, 0, 0, 0, 1, 1])
    alone = make(camera_aware=True)(features, pids, torch.zeros(6, dtype=torch.int64))
    assert alone.item() == make()(features, pids, cameras).item()
    assert make(camera_aware=True)(features, pids, cameras).item() != alone.item()


@pytest.mark.parametrize("make", [TripletLoss, HardTripletPairs])
@pytest.mark.parametrize("margin", [0.3, None])
def test_hard_triplets_over_pairs_are_the_triplet_loss(make, margin):
    features, pids = draw(17, 5), repeated([6, 1, 2, 4, 1, 3])
    assert make(margin)(features, pids).item() == pytest.approx(TripletLoss(margin)(features, pids).item())


CIRCLE = {"m": 0.25, "gamma": 128}
CONTRASTIVE = {"power": 1, "margin": 3.0}


@pytest.mark.parametrize("pids", PIDS)
@pytest.mark.parametrize(
    ("tested_loss", "name", "options"),
    [
        pytest.param(ContrastiveLoss(**CONTRASTIVE), "ContrastiveLoss", {"neg_margin": 3.0}, id="contrastive"),
        pytest.param(CircleLoss(), "CircleLoss", CIRCLE, id="circle"),
        pytest.param(InfoNCELoss(0.2), "NTXentLoss", {"temperature": 0.2}, id="InfoNCE"),
        pytest.param(SupConLoss(0.2), "SupConLoss", {"temperature": 0.2}, id="SupCon"),
    ],
)
def test_equals_pytorch_metric_learning(tested_loss, name, options, pids):
    from pytorch_metric_learning import distances, losses

    if name == "ContrastiveLoss":
        options = {**options, "distance": distances.LpDistance(normalize_embeddings=False)}
    reference = getattr(losses, name)(**options)
    x = draw(len(pids), 8, dtype=torch.float64)
    tested, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, expected = tested_loss(tested, pids), reference(other, pids)
    (loss + expected).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(tested.grad, other.grad, rtol=1e-5, atol=1e-7)


DIFFERENTIABLE = {name: case for name, case in CASES.items() if case[0] is not CircleLoss}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options", "loop"), DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_gradient_in_float64(make, options, loop):
    """Not of the circle loss, which holds its weights fixed: see below."""
    x = draw(9, 4, dtype=torch.float64).requires_grad_()
    loss = make(**options)
    assert torch.autograd.gradcheck(lambda x: loss(x, repeated([3, 1, 4, 1])), (x,))


def test_the_weights_of_the_circle_loss_get_no_gradient():
    x = draw(9, 4, dtype=torch.float64).requires_grad_()
    pids = repeated([3, 1, 4, 1])
    loss = CircleLoss(0.25, 8.0)
    similarity = torch.nn.functional.normalize(x.detach()) @ torch.nn.functional.normalize(x.detach()).T
    pull, push = (1.25 - similarity).relu(), (similarity + 0.25).relu()
    same = pids[:, None] == pids
    positives, negatives = same & ~torch.eye(9, dtype=torch.bool), ~same

    def fixed(x):
        s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
        p = (-8 * pull * (s - 0.75)).masked_fill(~positives, -torch.inf)
        n = (8 * push * (s - 0.25)).masked_fill(~negatives, -torch.inf)
        both = p.logsumexp(1) + n.logsumexp(1)
        return torch.nn.functional.softplus(both[positives.any(1)]).mean()

    torch.testing.assert_close(
        torch.autograd.grad(loss(x, pids), x)[0], torch.autograd.grad(fixed(x), x)[0], rtol=1e-9, atol=1e-12
    )
    assert torch.autograd.gradcheck(fixed, (x,))


@EVERY
@pytest.mark.parametrize(
    "pids",
    [
        pytest.param(repeated([6]), id="one identity"),
        pytest.param(repeated([1] * 6), id="six identities of one crop"),
        pytest.param(repeated([1]), id="one crop"),
        pytest.param(torch.zeros(0, dtype=torch.int64), id="no crop"),
    ],
)
def test_without_both_kinds_of_pair_the_loss_is_a_differentiable_zero(make, options, loop, pids):
    features = draw(len(pids), 4).requires_grad_()
    loss = make(**options)(features, pids)
    loss.backward()
    if make is ContrastiveLoss and len(pids) > 1:  # a pair is enough for it
        assert loss.item() > 0
    else:
        assert loss.item() == 0
        assert (features.grad == 0).all()


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        pytest.param(ContrastiveLoss(1.0), 0.5, id="contrastive: half the squared margin"),
        pytest.param(InfoNCELoss(), math.log(1 + 4), id="InfoNCE: log(1 + negatives)"),
        pytest.param(SupConLoss(), math.log(7), id="SupCon: log(B − 1)"),
        pytest.param(HardTripletPairs(0.3), 0.3, id="hard triplets: the margin"),
        pytest.param(CircleLoss(), None, id="circle: large"),
    ],
)
def test_when_all_points_are_one_the_gradient_is_zero(loss, value):
    features = torch.ones(8, 4, requires_grad=True)
    got = loss(features, repeated([4, 4]))
    got.backward()
    assert value is None or got.item() == pytest.approx(value, rel=1e-5)
    assert features.grad.abs().max() < 1e-5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("make", ONCE)
@pytest.mark.parametrize("pids", [repeated([4, 4]), repeated([1]), repeated([1] * 8)], ids=["batch", "one", "singles"])
def test_a_feature_that_is_not_finite_makes_the_loss_nan(make, pids, bad):
    features = draw(len(pids), 4)
    features[-1, 2] = bad
    assert math.isnan(make()(features, pids).item())


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_and_autocast(make, options, loop, dtype):
    features, pids = (3 * draw(24, 64)).to(dtype).requires_grad_(), repeated([4] * 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make(**options)(features, pids)
    loss.backward()
    x = features.detach().double().numpy()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop(x, x, compared_loop(pids.tolist())), rel=1e-4, abs=1e-6)
    assert features.grad.dtype == dtype
    assert torch.isfinite(features.grad).all()


def test_a_small_temperature_does_not_overflow():
    features = draw(8, 4).requires_grad_()
    for make in (InfoNCELoss, SupConLoss):
        loss = make(1e-4)(features, repeated([4, 4]))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveLoss(0.0), "margin of the contrastive loss must be above 0; got 0.0"),
        (lambda: ContrastiveLoss(1.0, 1.5), "must be above 1.5; got 1.0"),
        (lambda: ContrastiveLoss(power=3), "power must be 1 or 2; got 3"),
        (lambda: ContrastiveLoss(reduction="activ"), "Did you mean 'active'"),
        (lambda: ContrastiveLoss(distance="cosin"), "Did you mean 'cosine'"),
        (lambda: CircleLoss(1.5), "0 or more and at most 1; got 1.5"),
        (lambda: CircleLoss(gamma=0), "gamma must be above 0; got 0"),
        (lambda: InfoNCELoss(0.0), "temperature must be above 0; got 0.0"),
        (lambda: SupConLoss(math.nan), "temperature must be above 0; got nan"),
        (lambda: HardTripletPairs(-1.0), "margin must be 0 or more"),
        (lambda: CircleLoss(camera_aware=True)(draw(2, 2), torch.zeros(2)), r"needs camids \[B\]"),
        (lambda: CircleLoss()(draw(2, 2), torch.zeros(3)), r"got \[2, 2\] and \[3\]"),
        (lambda: CircleLoss()(draw(2, 2), torch.zeros(2), torch.zeros(3)), r"camids \[B\].*got \[3\] and \[2\]"),
    ],
)
def test_wrong_values_and_shapes_are_named(make, message):
    with pytest.raises(ReidError, match=message):
        make()


@pytest.mark.parametrize("make", ONCE)
def test_prints_its_settings(make):
    assert "=" in repr(make())
