from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.evaluation import evaluate
from reid.losses import ContrastiveLoss, Mahalanobis, TripletLoss, kissme, pairwise_distances, xqda
from tests.losses.batches import repeated
from tests.oracles import pair_covariances_loop


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def people(seed=0, identities=40, each=6, noise=8.0):
    """Identities differ in the first two of six numbers, within an identity the last four are noise, and large."""
    rng = np.random.default_rng(seed)
    pids = np.arange(identities).repeat(each)
    features = rng.normal(size=(len(pids), 6)) * [0.1, 0.1, noise, noise, noise, noise]
    features[:, :2] += rng.normal(size=(identities, 2))[pids]
    return features, pids, np.tile(np.arange(each) % 3, identities)


# The layer.


def test_it_starts_as_the_euclidean_distance():
    x, y = draw(5, 4), draw(3, 4, seed=1)
    torch.testing.assert_close(Mahalanobis(4)(x, y), pairwise_distances(x, y))


def test_it_is_the_root_of_the_quadratic_form_and_the_distance_of_the_transformed():
    metric = Mahalanobis(4, 2, seed=3)
    x, y = draw(5, 4), draw(3, 4, seed=1)
    difference = x.unsqueeze(1) - y
    expected = torch.einsum("nmd,de,nme->nm", difference, metric.matrix, difference).sqrt()
    torch.testing.assert_close(metric(x, y), expected)
    torch.testing.assert_close(metric(x, y), torch.cdist(metric.transform(x), metric.transform(y)))
    assert torch.linalg.eigvalsh(metric.matrix).min() > -1e-5


def test_a_random_subspace_keeps_squared_distances_on_average():
    x = draw(200, 64)
    ratio = Mahalanobis(64, 16)(x, x).square().sum() / pairwise_distances(x).square().sum()
    assert ratio.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("make", [partial(TripletLoss, mining="batch_all"), ContrastiveLoss], ids=["triplet", "pairs"])
def test_a_loss_trains_the_distance(make):
    """The two dimensions that separate identities grow relative to the four that do not."""
    features, pids, _ = people(identities=12, noise=1.0)
    metric = Mahalanobis(6)
    loss = make(margin=1.0, distance=metric)
    assert list(loss.parameters()) == [metric.factor]
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    x, labels = torch.from_numpy(features).float(), torch.from_numpy(pids)
    for _ in range(60):
        optimizer.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    weights = metric.matrix.diagonal()
    assert weights[:2].min() > 5 * weights[2:].max()


def test_gradient_in_float64_to_features_and_matrix():
    metric = Mahalanobis(4, 3).double()
    x = draw(6, 4, dtype=torch.float64).requires_grad_()

    def of(x, factor):
        distance = lambda a, b: torch.func.functional_call(metric, {"factor": factor}, (a, b))  # noqa: E731
        return TripletLoss(3.0, distance=distance)(x, repeated([3, 3]))

    assert torch.autograd.gradcheck(of, (x, metric.factor.detach().clone().requires_grad_()))


def test_at_distance_zero_the_gradient_is_zero():
    """Equal points, and points that differ only where L does not look."""
    metric = Mahalanobis.from_factor(np.eye(2, 4))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.0, 9.0]], requires_grad=True)
    distances = metric(x, x)
    distances.sum().backward()
    assert (distances == 0).all()
    assert (x.grad == 0).all()
    assert (metric.factor.grad == 0).all()


def test_half_precision_and_nan():
    x = draw(4, 8).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = Mahalanobis(8)(x, x)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, pairwise_distances(x.float()))
    x[1, 1] = torch.nan
    assert Mahalanobis(8)(x, x)[1].isnan().all()


def test_wrong_values_of_the_layer_are_named():
    with pytest.raises(ReidError, match="between 1 and its size 4; got 5"):
        Mahalanobis(4, 5)
    with pytest.raises(ReidError, match="between 1 and its size 4; got 0"):
        Mahalanobis(4, 0)
    with pytest.raises(ReidError, match=r"needs features \[N, 4\]; got \[2, 3\]"):
        Mahalanobis(4).transform(draw(2, 3))
    with pytest.raises(ReidError, match=r"finite numbers \[rank, D\]; got shape \[3\]"):
        Mahalanobis.from_factor(np.ones(3))
    assert repr(Mahalanobis(4, 2)) == "Mahalanobis(dim=4, rank=2)"


# The closed forms.


def with_ridge(scatter, ridge):
    return scatter + ridge * np.trace(scatter) / len(scatter) * np.eye(len(scatter))


def ragged(seed):
    """Few rows, identities of different size, one with a single row, junk rows of pid −1."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(-1, 5, 30)
    pids[0] = 99
    return rng.normal(size=(30, 4)) * [1, 2, 3, 4] + 7, pids, rng.integers(0, 3, 30)


@pytest.mark.parametrize("cameras", [False, True], ids=["all pairs", "across cameras"])
@pytest.mark.parametrize("seed", range(3))
def test_kissme_equals_the_loop_over_pairs(seed, cameras):
    features, pids, camids = ragged(seed)
    within, between = pair_covariances_loop(features, pids, camids if cameras else None)
    values, vectors = np.linalg.eigh(np.linalg.inv(with_ridge(within, 0.1)) - np.linalg.inv(with_ridge(between, 0.1)))
    expected = vectors @ np.diag(values.clip(0)) @ vectors.T
    got = kissme(features, pids, camids if cameras else None, ridge=0.1).matrix.detach()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cameras", [False, True], ids=["all pairs", "across cameras"])
@pytest.mark.parametrize("seed", range(3))
def test_xqda_is_kissme_in_the_subspace_of_the_paper(seed, cameras):
    """By the paper's method: eigenvectors W of Σ⁺⁻¹Σ⁻ above 1, and (WᵀΣ⁺W)⁻¹ − (WᵀΣ⁻W)⁻¹ between them."""
    features, pids, camids = ragged(seed)
    pairs = pair_covariances_loop(features, pids, camids if cameras else None)
    within, between = (with_ridge(scatter, 0.1) for scatter in pairs)
    values, vectors = np.linalg.eig(np.linalg.inv(within) @ between)
    w = vectors[:, values > 1].real
    expected = w @ (np.linalg.inv(w.T @ within @ w) - np.linalg.inv(w.T @ between @ w)) @ w.T
    got = xqda(features, pids, camids if cameras else None, ridge=0.1)
    np.testing.assert_allclose(got.matrix.detach(), expected, rtol=1e-4, atol=1e-6)
    assert got.factor.shape[0] == w.shape[1]


@pytest.mark.parametrize("fit", [kissme, xqda])
@pytest.mark.parametrize("cameras", [False, True], ids=["all pairs", "across cameras"])
def test_metrics_find_the_known_informative_dimensions(fit, cameras):
    """Fitted on some people, the metric ranks others by the two dimensions that separate identities."""
    features, pids, camids = people()
    metric = fit(features, pids, camids if cameras else None, ridge=1e-3)
    weights = metric.matrix.diagonal().detach()
    assert weights[:2].min() > 100 * weights[2:].max()
    others, their_pids, their_camids = people(seed=1)
    first, rest = their_camids == 0, their_camids != 0

    def score(x):
        split = (x[first], x[rest], their_pids[first], their_pids[rest], their_camids[first], their_camids[rest])
        return evaluate(*split, metric="euclidean").mAP

    known = score(others[:, :2].astype(np.float32))
    learned = score(metric.transform(torch.from_numpy(others)).detach().numpy().astype(np.float32))
    assert score(others.astype(np.float32)) < 0.2
    assert known > 0.5
    assert learned == pytest.approx(known, abs=0.05)


@pytest.mark.parametrize("fit", [kissme, xqda])
def test_dimensions_keeps_the_best_directions(fit):
    features, pids, camids = people(noise=0.2)  # small noise: the largest components separate identities
    metric = fit(features, pids, camids, dimensions=2)
    assert metric.factor.shape[0] <= 2
    weights = metric.matrix.diagonal().detach()
    assert weights[:2].min() > 10 * weights[2:].max()


@pytest.mark.parametrize("fit", [kissme, xqda])
def test_shift_and_scale_of_the_features_do_not_matter(fit):
    features, pids, camids = people()
    x = torch.from_numpy(features)
    a = fit(features, pids, camids)(x, x)
    b = fit(1000 * features + 5, pids, camids)(1000 * x, 1000 * x)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fit", [kissme, xqda])
def test_more_dimensions_than_rows_and_equal_crops(fit):
    rng = np.random.default_rng(0)
    pids = np.arange(4).repeat(3)
    metric = fit(rng.normal(size=(12, 50)), pids)
    assert metric.factor.isfinite().all()
    equal = fit(rng.normal(size=(4, 5))[pids], pids)  # all crops of a person are one point
    assert equal.factor.isfinite().all()


@pytest.mark.parametrize("fit", [kissme, xqda])
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((3, 2)), [0, 0]), {}, r"pids must be one column of 3 rows; got shape \[2\]"),
        ((np.ones((3, 2)), [0, 0, 1], [0]), {}, r"camids must be one column of 3 rows; got shape \[1\]"),
        ((np.ones(3), [0, 0, 1]), {}, r"features \[N, D\]; got \[3\]"),
        (([[0, 1], [math.nan, 0], [1, 1]], [0, 0, 1]), {}, r"1 of 3 features contain NaN or infinity: rows 1"),
        ((np.eye(3), [0, 1, 2]), {}, r"no pair of one person among 3 features"),
        ((np.eye(3), [0, 0, 0]), {}, r"no pair of two people among 3"),
        ((np.eye(3), [0, 0, 1], [4, 4, 5]), {}, r"no pair of one person across cameras"),
        ((np.eye(3), [0, 0, -1]), {}, r"no pair of two people among 2 features"),
        ((np.zeros((0, 3)), []), {}, r"no pair of one person among 0 features"),
        ((np.ones((4, 3)), [0, 0, 1, 1]), {}, r"different people are equal"),
        ((np.eye(3), [0, 0, 1]), {"ridge": 0}, r"ridge must be above 0; got 0"),
        ((np.eye(3), [0, 0, 1]), {"dimensions": 4}, r"dimensions .* must be 1 or more and at most 3; got 4"),
        (([[0, 0], [9, 9], [0, 0], [9, 9]], [0, 0, 1, 1]), {}, r"found no direction"),
    ],
)
def test_wrong_values_are_named(fit, arguments, options, message):
    with pytest.raises(ReidError, match=message):
        fit(*arguments, **options)
