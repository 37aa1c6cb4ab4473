from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.errors import ReidError
from reid.losses import DISTANCES, pairwise_distances
from tests.oracles import pairwise_distances_loop

EVERY = pytest.mark.parametrize("distance", sorted(DISTANCES))


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


@pytest.mark.parametrize("distance", ["euclidean", "squared_euclidean"])
def test_near_points_far_from_the_origin_keep_their_digits(distance):
    """What a collapsing network gives; the float32 Gram form returns noise instead of distances of 0.006."""
    x = 30 + 1e-4 * draw(32, 2048)
    truth = pairwise_distances_loop(x.numpy(), x.numpy(), distance)
    np.testing.assert_allclose(pairwise_distances(x, distance=distance).numpy(), truth, rtol=1e-5)
    gram = (x.square().sum(1)[:, None] + x.square().sum(1)[None] - 2 * x @ x.T).clamp(min=0).sqrt()
    if distance == "euclidean":
        assert np.abs(gram.numpy() - truth).max() > 10 * truth.max()


def test_near_directions_keep_their_digits_under_cosine():
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


@EVERY
def test_gradient_in_float64(distance):
    x = draw(5, 3, dtype=torch.float64).requires_grad_()
    y = draw(4, 3, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: pairwise_distances(a, b, distance), (x, y))
    assert torch.autograd.gradgradcheck(lambda a, b: pairwise_distances(a, b, distance), (x, y))


@pytest.mark.parametrize("distance", ["squared_euclidean", "cosine"])
def test_gradient_of_a_set_to_itself_in_float64(distance):
    x = draw(5, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: pairwise_distances(a, distance=distance), (x,))


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
def test_no_rows(distance):
    assert pairwise_distances(draw(0, 4), draw(3, 4), distance).shape == (0, 3)
    assert pairwise_distances(draw(0, 4), distance=distance).shape == (0, 0)


def test_no_rows_pass_a_gradient():
    x = draw(0, 4).requires_grad_()
    pairwise_distances(x).sum().backward()
    assert x.grad.shape == (0, 4)


def test_wrong_arguments_are_named():
    with pytest.raises(ReidError, match=r"Unknown distance 'euclidian'. Did you mean 'euclidean'\?"):
        pairwise_distances(draw(2, 2), distance="euclidian")
    with pytest.raises(ReidError, match=r"\[2, 3\] and \[2, 4\]"):
        pairwise_distances(draw(2, 3), draw(2, 4))
    with pytest.raises(ReidError, match=r"features \[N, D\]"):
        pairwise_distances(draw(3))
