from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.losses import DISTANCES, Mahalanobis, paired_distances, pairwise_distances
from reid.losses import distances as module
from tests.oracles import pairwise_distances_loop

EVERY = pytest.mark.parametrize("distance", [*sorted(DISTANCES), "minkowski:1.5", "minkowski:3", "minkowski:inf"])


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@EVERY
@pytest.mark.parametrize(
    ("n", "m", "dim"),
    [
        pytest.param(7, 5, 16, id="two sets"),
        pytest.param(1, 1, 1, id="one point, one dimension"),
        pytest.param(40, 30, 3, id="more than 25 rows, where torch.cdist would turn to the Gram form"),
        pytest.param(4, 3, 2048, id="ResNet-50's dimension"),
    ],
)
def test_equals_the_loop(distance, n, m, dim):
    x, y = draw(n, dim), draw(m, dim, seed=1)
    got = pairwise_distances(x, y, distance)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), pairwise_distances_loop(x.numpy(), y.numpy(), distance), rtol=3e-6)


@EVERY
def test_float64_stays_float64(distance):
    x, y = draw(6, 5, dtype=torch.float64), draw(4, 5, seed=1, dtype=torch.float64)
    got = pairwise_distances(x, y, distance)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), pairwise_distances_loop(x.numpy(), y.numpy(), distance), rtol=1e-12)


@pytest.mark.parametrize(
    ("distance", "name"),
    [("minkowski:1", "manhattan"), ("minkowski:2", "euclidean"), ("minkowski:2.0", "euclidean")],
)
def test_minkowski_orders_1_and_2_equal_the_named_distances(distance, name):
    x, y = draw(20, 7), draw(6, 7, seed=1)
    assert torch.equal(pairwise_distances(x, y, distance), pairwise_distances(x, y, name))


def test_high_orders_neither_overflow_nor_vanish():
    x = torch.tensor([[1e-6, 0.0], [3e5, 4e5], [0.0, 0.0]])
    got = pairwise_distances(x, distance="minkowski:30")
    np.testing.assert_allclose(got.numpy(), pairwise_distances_loop(x.tolist(), x.tolist(), "minkowski:30"), rtol=1e-6)


@pytest.mark.parametrize("distance", ["manhattan", "minkowski:3"])
def test_blocks_of_rows_give_equal_distances_with_little_memory(distance, monkeypatch):
    x, y = draw(23, 6), draw(9, 6, seed=1)
    weights = draw(23, 9, seed=2)

    def with_gradients():
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        got = pairwise_distances(a, b, distance)
        (got * weights).sum().backward()
        return got.detach(), a.grad, b.grad

    whole = with_gradients()
    held = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b, p: held.append(len(a) * b.numel()) or cdist(a, b, p=p))
    monkeypatch.setattr(module, "_BLOCK", 120)
    for got, expected in zip(with_gradients(), whole, strict=True):
        torch.testing.assert_close(got, expected)
    assert len(held) == 12
    assert max(held) <= 120


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean"])
def test_near_points_far_from_the_origin_stay_accurate(distance):
    """What a collapsing network gives; the float32 Gram form returns noise instead of distances of 0.006."""
    x = 30 + 1e-4 * draw(32, 2048)
    truth = pairwise_distances_loop(x.numpy(), x.numpy(), distance)
    np.testing.assert_allclose(pairwise_distances(x, distance=distance).numpy(), truth, rtol=1e-5)
    gram = (x.square().sum(1)[:, None] + x.square().sum(1)[None] - 2 * x @ x.T).clamp(min=0).sqrt()
    if distance == "euclidean":
        assert np.abs(gram.numpy() - truth).max() > 10 * truth.max()


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("itself", [True, False], ids=["to itself", "to another set"])
@pytest.mark.parametrize(
    "case",
    ["no near pair", "twins", "a few near pairs", "two tight crowds", "identities as tight crowds", "one point"],
)
def test_near_points_in_a_wide_cloud_stay_accurate(case, itself, precision):
    """Blocks without near pairs, with few, and with many are computed in three ways; 300 rows are three blocks."""
    x = 3 + draw(300, 64)
    if case == "twins":
        x[200:240] = x[:40]
    if case == "a few near pairs":
        x[200:240] = x[:40] + 1e-3 * draw(40, 64, seed=2)
    if case == "two tight crowds":
        x = x[:2].repeat(150, 1) + 1e-4 * draw(300, 64, seed=2)
    if case == "identities as tight crowds":
        x = x[:30].repeat_interleave(10, dim=0) + 1e-2 * draw(300, 64, seed=2)
    if case == "one point":
        x[:] = x[0].clone()
    y = x if itself else x.roll(7, dims=0)[:170]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        got = pairwise_distances(x, None if itself else y)
    finally:
        torch.set_float32_matmul_precision(before)
    truth = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    scale = (x.double() - x.double().mean(0)).norm(dim=1).max()
    torch.testing.assert_close(got.double(), truth, rtol=5e-6, atol=4e-7 * scale.item())
    if itself:
        assert (got.diagonal() == 0).all()
        assert torch.equal(got, got.T)
    if case in ("twins", "one point"):
        assert torch.equal(got == 0, truth == 0)


def test_near_directions_stay_accurate_with_cosine():
    x = 1 + 1e-3 * draw(16, 512)
    truth = pairwise_distances_loop(x.double().numpy(), x.double().numpy(), "cosine")
    np.testing.assert_allclose(pairwise_distances(x, distance="cosine").numpy(), truth, rtol=1e-3, atol=1e-12)


@EVERY
def test_equal_points_are_exactly_zero_apart_with_zero_gradient(distance):
    x = draw(6, 300).repeat_interleave(2, dim=0).requires_grad_()
    distances = pairwise_distances(x, distance=distance)
    twins = torch.arange(12).unsqueeze(0) // 2 == torch.arange(12).unsqueeze(1) // 2
    assert (distances[twins] == 0).all()
    assert (distances[~twins] > 0).all()
    distances[twins].sum().backward()
    assert (x.grad == 0).all()


@EVERY
@pytest.mark.parametrize("value", [0.0, 3.0], ids=["all points at the origin", "all points equal"])
def test_gradient_is_finite_when_all_points_are_one(distance, value):
    x = torch.full((5, 4), value, requires_grad=True)
    pairwise_distances(x, distance=distance).sum().backward()
    assert (x.grad == 0).all()


def test_a_row_of_zeros_has_no_direction_and_no_gradient():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    distances = pairwise_distances(x, distance="cosine")
    np.testing.assert_allclose(distances.detach().numpy(), pairwise_distances_loop(x.tolist(), x.tolist(), "cosine"))
    distances.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[[0, 2]] == 0).all()


@pytest.mark.slow
@EVERY
def test_gradient_in_float64(distance):
    x = draw(5, 3, dtype=torch.float64).requires_grad_()
    y = draw(4, 3, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: pairwise_distances(a, b, distance), (x, y))
    if distance in ("euclidean", "squared_euclidean", "cosine"):
        assert torch.autograd.gradgradcheck(lambda a, b: pairwise_distances(a, b, distance), (x, y))


@EVERY
def test_gradient_of_a_set_to_itself_in_float64(distance):
    """All pairs but those of a point with itself, where an unsquared distance has a corner."""
    x = draw(5, 3, dtype=torch.float64).requires_grad_()
    others = 1 - torch.eye(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: pairwise_distances(a, distance=distance) * others, (x,))


@EVERY
def test_float32_gradient_equals_the_float64_one(distance):
    x = 5 + draw(24, 64)
    weights = draw(24, 24, seed=1)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.clone().to(dtype).requires_grad_()
        (pairwise_distances(leaf, distance=distance) * weights.to(dtype)).sum().backward()
        gradients.append(leaf.grad.double())
    scale = gradients[1].abs().max()
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * scale


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(distance, dtype):
    """Differences of 2,048 squares would overflow float16 and lose everything in bfloat16."""
    x = (20 * draw(8, 2048)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = pairwise_distances(x, distance=distance)
        got.sum().backward()
    assert got.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()
    truth = pairwise_distances_loop(x.detach().float().numpy(), x.detach().float().numpy(), distance)
    np.testing.assert_allclose(got.detach().numpy(), truth, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_touch_the_gradient():
    x = draw(16, 128)
    gradients = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            pairwise_distances(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@EVERY
def test_integers_and_strides_are_taken(distance):
    x = torch.randint(0, 255, (10, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).T
    got = pairwise_distances(x, distance=distance)
    np.testing.assert_allclose(
        got.numpy(), pairwise_distances_loop(x.numpy(), x.numpy(), distance), rtol=1e-5, atol=1e-6
    )


@EVERY
def test_nan_stays_in_its_row_and_column(distance):
    x = draw(5, 3)
    x[2, 1] = torch.nan
    lost = torch.isnan(pairwise_distances(x, distance=distance))
    assert lost[2].all()
    assert lost[:, 2].all()
    assert lost.sum() == 9


@EVERY
def test_empty_features_give_empty_distances(distance):
    assert pairwise_distances(draw(0, 4), draw(3, 4), distance).shape == (0, 3)
    assert pairwise_distances(draw(0, 4), distance=distance).shape == (0, 0)


def test_empty_features_have_an_empty_gradient():
    x = draw(0, 4).requires_grad_()
    pairwise_distances(x).sum().backward()
    assert x.grad.shape == (0, 4)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_distances_of_rows_are_the_diagonal(distance, dtype):
    x, y = draw(70, 9).to(dtype), draw(70, 9, seed=1).to(dtype)
    y[:3] = x[:3]
    got = paired_distances(x, y, distance)
    expected = pairwise_distances(x, y, distance).diagonal()
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert paired_distances(x[:0], y[:0], distance).shape == (0,)


@EVERY
def test_distances_of_rows_have_a_finite_gradient(distance):
    x = draw(6, 4, dtype=torch.float64).requires_grad_()
    y = draw(6, 4, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: paired_distances(a, b, distance), (x, y))
    same = torch.ones(3, 4, requires_grad=True)
    paired_distances(same, torch.ones(3, 4), distance).sum().backward()
    assert (same.grad == 0).all()


class Scaled(torch.nn.Module):
    """A distance with a weight."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x, y):
        return self.scale * pairwise_distances(x, y, "cosine")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_callable_is_a_distance(dtype):
    x, y = draw(70, 9).to(dtype), draw(70, 9, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = pairwise_distances(x, y, Scaled())
        rows = paired_distances(x, y, Scaled())
    torch.testing.assert_close(got, 2 * pairwise_distances(x, y, "cosine"))
    torch.testing.assert_close(rows, got.diagonal())
    assert paired_distances(x[:0], y[:0], Scaled()).shape == (0,)
    seen = []
    pairwise_distances(x, distance=lambda a, b: seen.append(a is b) or a @ b.T)
    assert seen == [True]


def test_mahalanobis_of_the_identity_is_euclidean():
    x, y = draw(8, 5), draw(7, 5, seed=1)
    torch.testing.assert_close(pairwise_distances(x, y, Mahalanobis(dim=5)), pairwise_distances(x, y))


def test_wrong_arguments_are_named():
    for name in ("minkowski:0.5", "minkowski:0", "minkowski:-1", "minkowski:nan"):
        with pytest.raises(ReidError, match="must be 1 or more; got"):
            pairwise_distances(draw(2, 2), distance=name)
    for name in ("minkowski", "minkowski:", "minkowski:three"):
        with pytest.raises(ReidError, match="Write minkowski:3 for p = 3"):
            pairwise_distances(draw(2, 2), distance=name)
    with pytest.raises(ReidError, match=r"returned \[2\]; expected \[N, M\] = \[2, 3\]"):
        pairwise_distances(draw(2, 2), draw(3, 2), lambda a, b: a.sum(dim=1))
    with pytest.raises(ReidError, match=r"two features \[N, D\]; got \[2, 2\] and \[3, 2\]"):
        paired_distances(draw(2, 2), draw(3, 2))
    with pytest.raises(ReidError, match=r"Unknown distance 'euclidian'. Did you mean 'euclidean'\?"):
        pairwise_distances(draw(2, 2), distance="euclidian")
    with pytest.raises(ReidError, match=r"\[2, 3\] and \[2, 4\]"):
        pairwise_distances(draw(2, 3), draw(2, 4))
    with pytest.raises(ReidError, match=r"features \[N, D\]"):
        pairwise_distances(draw(3))
