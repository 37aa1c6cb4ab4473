"""Distances between all pairs of two sets of features, accurate to float32 and with a finite gradient at zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Union

import torch
from torch import Tensor

from reid.core.errors import ConfigError, DataError, check_choice

_SAME = 1e-13
"""Squared distance, relative to the squared norms, below which two points are equal for a Gram form in float64."""

_NEAR = 1 / 16
"""The same in float32, below which the relative error of a distance would exceed about 4e-6."""

_FEW = 1 / 64
"""Fraction of near pairs up to which computing them one by one is faster than float64 for all."""

_ROWS = 128
"""Rows of a block of the Gram form."""

_BLOCK = 2**26
"""Largest number of elements of a block of Minkowski distances, [rows, M, D], on devices that store them for the
gradient."""


class _Euclidean(torch.autograd.Function):
    """`d[i, j] = ‖x[i] − y[j]‖` and its gradient by matrix products; memory is a few times `[N, M]`, never `[N, M, D]`.

    Gradient (0 where `d = 0`, a subgradient), with `w = g / d`: `∂/∂x[i] = Σ_j w[i, j] (x[i] − y[j])`, and
    accordingly for `y`. If `y` is `x`, both are one product with the Laplacian of `w + wᵀ`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.itself = y is x
        # Subtracting the mean changes no distance. NaN and infinity stay in their rows.
        centre = y.mean(dim=0).nan_to_num(0.0, 0.0, 0.0)
        if x.dtype == torch.float64 or x.device.type == "mps":  # float64 keeps its precision; MPS has no float64
            distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            distances = _gram(x, y, centre)
        ctx.save_for_backward(x, y, centre, distances)
        return distances

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        x, y, centre, distances = ctx.saved_tensors
        weights = gradients[0] / distances.masked_fill(distances == 0, torch.inf)
        with torch.autocast(distances.device.type, enabled=False):
            if ctx.itself:
                weights = weights + weights.T
                return (torch.diag(weights.sum(dim=1)) - weights) @ (x - centre), None
            x, y = x - centre, y - centre
            return (
                weights.sum(dim=1, keepdim=True) * x - weights @ y,
                weights.sum(dim=0).unsqueeze(1) * y - weights.T @ x,
            )


def _gram(x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
    """Return float32 distances by `‖x‖² + ‖y‖² − 2x·y`, relative to `centre`, in blocks of rows.

    In float32 this form loses all significant digits between near points of large norm. On the CPU near pairs
    (`_NEAR`) are therefore computed again: from their differences if they are few, else the whole block in float64. On
    other devices, where counting them would make the host wait, everything is float64. There, points within about 4e-7
    of their distance from the mean count as equal, at distance 0. Of a set to itself, half of the matrix is computed.
    """
    itself = y is x
    # A lower matrix-product precision, if set, must not affect distances.
    quick = x.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    a = x - centre if quick else x.double() - centre
    b = a if itself else (y - centre if quick else y.double() - centre)
    a_norms = torch.linalg.vecdot(a, a).unsqueeze(1)
    b_norms = a_norms.squeeze(1) if itself else torch.linalg.vecdot(b, b)

    def block(rows: slice, columns: slice) -> Tensor:
        norms = a_norms[rows] + b_norms[columns]
        squared = torch.addmm(norms, a[rows], b[columns].T, alpha=-2)
        near = squared <= norms.mul_(_NEAR if quick else _SAME)
        if not quick:
            return squared.masked_fill_(near, 0.0).sqrt_()
        if itself:
            near.fill_diagonal_(False)
            squared.diagonal().mul_(0.0)
        pairs = near.nonzero()
        if len(pairs):
            squared = _recomputed(squared, pairs, x[rows], y[columns], centre, itself)
        return squared.sqrt_()

    if len(x) <= _ROWS:
        return block(slice(None), slice(None)).to(x.dtype)
    distances = torch.empty(len(x), len(y), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), _ROWS):
        rows, columns = slice(start, start + _ROWS), slice(start if itself else 0, None)
        distances[rows, columns] = found = block(rows, columns)
        if itself:
            distances[columns, rows] = found.T
    return distances


def _recomputed(squared: Tensor, near: Tensor, x: Tensor, y: Tensor, centre: Tensor, leads: bool) -> Tensor:
    """Return squared distances with exact values for the pairs `near [P, 2]`; `leads`: `y` begins with `x`."""
    if len(near) > squared.numel() * _FEW:
        b = y.double().sub_(centre)
        a = b[: len(x)] if leads else x.double().sub_(centre)
        b_norms = torch.linalg.vecdot(b, b)
        norms = (b_norms[: len(x)] if leads else torch.linalg.vecdot(a, a)).unsqueeze(1) + b_norms
        squared = torch.addmm(norms, a, b.T, alpha=-2)
        return squared.masked_fill_(squared <= norms.mul_(_SAME), 0.0)
    for chunk in near.split(_ROWS):
        i, j = chunk.unbind(dim=1)
        squared[i, j] = (x[i] - y[j]).square().sum(dim=1)
    return squared


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Return `‖x − y‖`. For equal points distance and gradient are exactly 0."""
    distances: Tensor = _Euclidean.apply(x, y)
    return distances


def squared_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Return `‖x − y‖²`."""
    return euclidean(x, y).square()


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return `1 − cos(x, y)`, in 0..2, computed as `‖x/‖x‖ − y/‖y‖‖² / 2` (equal, and exact for near directions).

    A row of zeros has no direction: it stays zero, at distance 1/2 from every other row, with zero gradient.
    """
    directions = normalised(x)
    return squared_euclidean(directions, directions if y is x else normalised(y)) / 2


def normalised(x: Tensor) -> Tensor:
    """Return L2-normalised rows; a row of zeros stays zero and gets no gradient (which would be 0/0)."""
    nonzero = (x != 0).any(dim=1, keepdim=True)
    norm = torch.where(nonzero, x, 1.0).norm(dim=1, keepdim=True)
    return torch.where(nonzero, x / norm, 0.0)


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    """Return `Σ_k |x_k − y_k|`."""
    return minkowski(x, y, 1)


def minkowski(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Return `(Σ_k |x_k − y_k|^p)^(1/p)`; for `p = inf` the largest `|x_k − y_k|`.

    Orders other than 1, 2 and inf are computed in float64, so that powers neither overflow nor underflow for
    differences within 1e±(300/p). Computed in blocks, never `[N, M, D]`. It is slow, O(N M D) powers, because there is
    no matrix product for it.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.
        p: 1 or more; below 1 the triangle inequality does not hold.

    Raises:
        ConfigError: p below 1 or not a number.
    """
    _check_order(p)
    if p == 2:
        return euclidean(x, y)
    a, b = _for_powers(x, p), _for_powers(y, p)
    rows = max(1, _BLOCK // max(1, y.numel()))
    distances = torch.cat([torch.cdist(block, b, p=p) for block in a.split(rows)]).to(x.dtype)
    if p == math.inf:  # a maximum may ignore a NaN
        distances = distances + 0 * (x.detach().sum(dim=1).unsqueeze(1) + y.detach().sum(dim=1))
    return distances


def _for_powers(x: Tensor, p: float) -> Tensor:
    return x if p in (1, 2, math.inf) or x.device.type == "mps" else x.double()


def _check_order(p: float) -> None:
    if not p >= 1:
        raise ConfigError(
            f"The order p of a Minkowski distance must be 1 or more; got {p}. 1: manhattan, 2: euclidean."
        )


Distance = Union[str, Callable[[Tensor, Tensor], Tensor]]  # noqa: UP007  (mypy wants a plain alias)
"""A name in `DISTANCES`, `minkowski:P`, or a callable `(x [N, D], y [M, D]) -> [N, M]`; a module may have weights."""

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": euclidean,
    "squared_euclidean": squared_euclidean,
    "cosine": cosine,
    "manhattan": manhattan,
}
"""Distances by name; `minkowski:P`, such as `minkowski:3`, is accepted too, for any P of 1 or more."""


def pairwise_distances(x: Tensor, y: Tensor | None = None, distance: Distance = "euclidean") -> Tensor:
    """Return the distances from every row of `x` to every row of `y`.

    Computed in float32 for bfloat16 and float16 features and inside autocast regions too; float64 stays float64.
    Corner cases of the named distances: without `y` the diagonal is exactly 0; equal rows have distance exactly 0 with
    zero gradient; a NaN row gives NaN distances; `N = 0` or `M = 0` gives an empty result.

    Args:
        x: `[N, D]` features.
        y: `[M, D]` features, or None for `x`.
        distance: a key of `DISTANCES`, `minkowski:P` with P of 1 or more, or a callable that takes `x` and `y` (the
            same object if `y` is None).

    Returns:
        `[N, M]` float32 (float64 for float64 features), 0 or more.

    Raises:
        ConfigError: unknown distance, or an order below 1.
        DataError: shapes that are not `[N, D]` and `[M, D]`, or a callable that does not return `[N, M]`.

    Example:
        >>> import torch
        >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 5.0], [5.0, 0.0]]
    """
    function = distance_function(distance)
    if x.ndim != 2 or (y is not None and (y.ndim != 2 or x.shape[1] != y.shape[1])):
        other = x if y is None else y
        raise DataError(f"Distances need features [N, D] and [M, D]; got {list(x.shape)} and {list(other.shape)}.")
    with torch.autocast(x.device.type, enabled=False):
        wide = at_least_float32(x)
        other = wide if y is None or y is x else at_least_float32(y)
        distances = function(wide, other)
    if not isinstance(distance, str) and distances.shape != (len(wide), len(other)):
        expected = [len(wide), len(other)]
        raise DataError(f"The distance returned {list(distances.shape)}; expected [N, M] = {expected}.")
    return distances


def paired_distances(x: Tensor, y: Tensor, distance: Distance = "euclidean") -> Tensor:
    """Return the distance of each row of `x` to the same row of `y`, `[N]`.

    Precision and gradient are those of `pairwise_distances`. A named distance takes O(N D); a callable, which returns
    all pairs, is called for a few rows at a time.

    Raises:
        ReidError: as `pairwise_distances`, or shapes that differ.
    """
    function = distance_function(distance)
    if x.ndim != 2 or x.shape != y.shape:
        raise DataError(f"Distances of rows need two features [N, D]; got {list(x.shape)} and {list(y.shape)}.")
    with torch.autocast(x.device.type, enabled=False):
        x, y = at_least_float32(x), at_least_float32(y)
        if not isinstance(distance, str):
            blocks = [function(a, b).diagonal() for a, b in zip(x.split(64), y.split(64), strict=True)]
            return torch.cat(blocks) if blocks else (x - y).sum(dim=1)
        if distance == "squared_euclidean":
            return (x - y).square().sum(dim=1)
        if distance == "cosine":
            return (normalised(x) - normalised(y)).square().sum(dim=1) / 2
        order = 1.0 if distance == "manhattan" else _minkowski_order(distance) or 2.0
        return torch.linalg.vector_norm(_for_powers(x - y, order), ord=order, dim=1).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision and integers to float32; float32 and float64 stay."""
    return x if x.dtype == torch.float64 else x.float()


def distance_function(distance: Distance) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of a distance.

    Raises:
        ConfigError: unknown name (with the most similar known one), or a wrong order of `minkowski:P`.
    """
    if callable(distance):
        return distance
    order = _minkowski_order(distance)
    if order is not None:
        return partial(minkowski, p=order)
    check_choice("distance", distance, [*DISTANCES, "minkowski:3"])
    return DISTANCES[distance]


def _minkowski_order(distance: str) -> float | None:
    """Return the P of `minkowski:P`, None for another name."""
    name, _, order = distance.partition(":")
    if name != "minkowski":
        return None
    try:
        p = float(order)
    except ValueError:
        raise ConfigError(f"Distance {distance!r} has no order. Write minkowski:3 for p = 3.") from None
    _check_order(p)
    return p
