from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.models.pooling import POOLINGS, AveragePool, GeMPool, StripePool
from tests.oracles import pool_loop


def maps(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, 2, generator=generator)
    return {
        "gaussian": x,
        "after a ReLU": x.relu(),
        "all zero": torch.zeros_like(x),
        "all negative": -x.abs() - 1,
        "one position": x[:, :, :1, :1],
        "channels last": x.to(memory_format=torch.channels_last),
        "large": x * 1e4,
    }[kind]


KINDS = ["gaussian", "after a ReLU", "all zero", "all negative", "one position", "channels last", "large"]


@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
@pytest.mark.parametrize("kind", KINDS)
def test_pooling_follows_its_definition(pooling: str, kind: str) -> None:
    x = maps(kind)
    found = POOLINGS[pooling]()(x)
    assert found.shape == x.shape[:2]
    np.testing.assert_allclose(found.detach().numpy(), pool_loop(x.numpy(), pooling), rtol=2e-5, atol=1e-9)


def test_gem_is_the_average_for_p_1_and_the_maximum_for_large_p() -> None:
    x = maps("gaussian").abs() + 0.1
    torch.testing.assert_close(GeMPool(p=1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(GeMPool(p=2000.0)(x), x.amax((2, 3)), rtol=2e-3, atol=0)


def test_gem_learns_p_with_the_gradient_of_the_formula() -> None:
    x = (maps("gaussian").abs() + 0.1).double()
    pool = GeMPool().double()
    pool(x).sum().backward()
    step = 1e-3  # the powers are taken in float32
    by_differences = (pool_loop(x.numpy(), "gem", 3 + step).sum() - pool_loop(x.numpy(), "gem", 3 - step).sum()) / (
        2 * step
    )
    assert pool.p.grad is not None
    assert pool.p.grad.item() == pytest.approx(by_differences, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e4])  # cubes would underflow, be fine, overflow
def test_gem_neither_overflows_nor_vanishes_in_half_precision(dtype: torch.dtype, scale: float) -> None:
    x = (torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(1)) * scale).to(dtype)
    found = GeMPool()(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.detach().double(), pool_loop(x.double().numpy(), "gem"), rtol=1e-2)


def test_gem_gradient_is_finite_on_zeros() -> None:
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pool = GeMPool()
    pool(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(pool.p.grad)


@pytest.mark.parametrize("rows", [2, 5, 8], ids=["a row each", "an uneven split", "an even split"])
@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_stripe_pooling_pools_the_whole_map_and_its_slices(pooling, rows):
    x = torch.rand(3, 4, rows, 3, generator=torch.Generator().manual_seed(rows))
    top = -(-rows // 2)
    expected = np.concatenate([pool_loop(part.numpy(), pooling) for part in (x, x[:, :, :top], x[:, :, top:])], axis=1)
    np.testing.assert_allclose(StripePool(POOLINGS[pooling](), 2)(x).detach(), expected, rtol=1e-5)


def test_more_stripes_than_rows_are_an_error():
    with pytest.raises(ReidError, match="3 rows cannot be cut into 4 stripes"):
        StripePool(AveragePool(), 4)(torch.rand(1, 2, 3, 3))
