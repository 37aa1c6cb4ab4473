"""Distances between all pairs of two sets of features, true to float32 and with a finite gradient at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reid.errors import ReidError, did_you_mean

_SAME = 1e-13
"""Squared distance, relative to the squared norms, below which a Gram form in float64 cannot tell two points apart."""


class _Euclidean(torch.autograd.Function):
    """`d[i, j] = ‖x[i] − y[j]‖` and its gradient, all by matrix products: a few times `[N, M]`, never `[N, M, D]`.

    Forward: the Gram form `‖x‖² + ‖y‖² − 2x·y` of the centred points. In float32 it loses, between near points of
    large norm, every digit that mining looks at; in float64 it keeps float32's. Points within about 4e-7 of their
    distance from the mean count as one point, at 0. Gradient (0 where `d = 0`, a subgradient), with `w = g / d`:
    `∂/∂x[i] = Σ_j w[i, j] (x[i] − y[j])`, and `∂/∂y` likewise.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        if x.dtype == torch.float64 or x.device.type == "mps":  # float64 must keep its own digits; MPS has none
            distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            a, b = _centred(x.double(), y.double())
            norms = a.square().sum(dim=1).unsqueeze(1) + b.square().sum(dim=1)
            squared = torch.addmm(norms, a, b.T, alpha=-2)
            distances = squared.masked_fill(squared <= _SAME * norms, 0.0).sqrt().float()
        ctx.save_for_backward(x, y, distances)
        return distances

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, y, distances = ctx.saved_tensors
        (gradient,) = gradients
        apart = distances > 0
        with torch.autocast(distances.device.type, enabled=False):
            weights = torch.where(apart, gradient / torch.where(apart, distances, 1.0), 0.0)
            x, y = _centred(x, y)
            return (
                weights.sum(dim=1, keepdim=True) * x - weights @ y,
                weights.sum(dim=0).unsqueeze(1) * y - weights.T @ x,
            )


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both moved so that the mean of `y` is the origin, which moves no distance; a NaN stays in its own row."""
    centre = y.mean(dim=0).nan_to_num(0.0, 0.0, 0.0)
    return x - centre, y - centre


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """`‖x − y‖`. Where two points are the same it is exactly 0 and so is the gradient."""
    distances: Tensor = _Euclidean.apply(x, y)
    return distances


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """`‖x − y‖²`."""
    return euclidean(x, y).square()


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """`1 − cos(x, y)`, in 0..2, computed as `‖x/‖x‖ − y/‖y‖‖² / 2` (the same number, exact for near directions).

    A row of zeros has no direction: it is left at zero, which puts it 1/2 from every other row, with zero gradient.
    """
    return squared_euclidean(_unit(x), _unit(y)) / 2


def _unit(x: Tensor) -> Tensor:
    """Rows divided by their norm; a row of zeros stays, and passes no gradient (which would be 0/0)."""
    some = (x != 0).any(dim=1, keepdim=True)
    norm = torch.where(some, x, 1.0).norm(dim=1, keepdim=True)
    return torch.where(some, x / norm, 0.0)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": euclidean,
    "squared_euclidean": squared_euclidean,
    "cosine": cosine,
}


def pairwise_distances(x: Tensor, y: Tensor | None = None, distance: str = "euclidean") -> Tensor:
    """Distances from every row of `x` to every row of `y`.

    Computed in float32 also when the features are bfloat16 or float16, and inside an autocast region; float64 stays.
    Corner cases: `y` left out means `x` itself, and the diagonal is exactly 0; equal rows are exactly 0 apart with
    zero gradient; a NaN row gives NaN distances; `N = 0` or `M = 0` gives an empty result.

    Args:
        x: `[N, D]` features.
        y: `[M, D]` features, or None for `x`.
        distance: a key of `DISTANCES`.

    Returns:
        `[N, M]` float32 (float64 for float64 features), 0 or more.

    Raises:
        ReidError: unknown distance, or shapes that are not `[N, D]` and `[M, D]`.
    """
    check_distance(distance)
    y = x if y is None else y
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ReidError(f"Distances need features [N, D] and [M, D]; got {list(x.shape)} and {list(y.shape)}.")
    with torch.autocast(x.device.type, enabled=False):
        return DISTANCES[distance](at_least_float32(x), at_least_float32(y))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision and integers to float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def check_distance(distance: str) -> None:
    """Refuse a name that is no distance.

    Raises:
        ReidError: with the nearest known name.
    """
    if distance not in DISTANCES:
        raise ReidError(f"Unknown distance {distance!r}.{did_you_mean(distance, DISTANCES)}")
