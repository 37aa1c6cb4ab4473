"""Learned distances: a positive-semidefinite matrix as a layer, and two closed forms fitted on embeddings."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from reid.core.errors import ReidError
from reid.losses.distances import at_least_float32, euclidean


class Mahalanobis(nn.Module):
    """`d(x, y) = √((x − y)ᵀ M (x − y)) = ‖L (x − y)‖` with `M = LᵀL`, which is positive semidefinite for any L.

    Give it to a loss as its `distance` and L is learned with the rest; the distance is then the Euclidean one of
    `transform(features)`, which is also how to use it at test time. It starts as the Euclidean distance (full rank), or
    as that in a random subspace, drawn by `seed`, scaled so that squared distances keep their size on average.

    Corner cases: equal points are at distance 0 with gradient 0, as are points that differ in a direction that L
    forgets; computed in float32, or float64 for float64 features.

    Args:
        dim: D.
        rank: rows of L, 1 or more; None: D.
        seed: of the random subspace.

    Raises:
        ReidError: a rank out of range.
    """

    def __init__(self, dim: int, rank: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or not 1 <= (dim if rank is None else rank) <= dim:
            raise ReidError(f"The rank of a Mahalanobis matrix must be between 1 and its size {dim}; got {rank}.")
        start = torch.eye(dim)
        if rank is not None and rank < dim:
            drawn = torch.randn(dim, rank, generator=torch.Generator().manual_seed(seed))
            start = torch.linalg.qr(drawn).Q.T.contiguous() * math.sqrt(dim / rank)
        self.factor = nn.Parameter(start)
        """L, `[rank, D]`."""

    @classmethod
    def from_factor(cls, factor: ArrayLike | Tensor) -> Mahalanobis:
        """With a given L `[rank, D]`, kept in float32.

        Raises:
            ReidError: not a matrix of finite numbers.
        """
        given = torch.as_tensor(np.asarray(factor), dtype=torch.float32)
        if given.ndim != 2 or 0 in given.shape or not given.isfinite().all():
            raise ReidError(f"The factor L must be finite numbers [rank, D]; got shape {list(given.shape)}.")
        metric = cls(given.shape[1], 1)
        metric.factor = nn.Parameter(given)
        return metric

    @property
    def matrix(self) -> Tensor:
        """`M = LᵀL`, `[D, D]`."""
        return self.factor.T @ self.factor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances `[N, M]` between rows `[N, D]` and `[M, D]`."""
        return euclidean(self.transform(x), self.transform(y))

    def transform(self, features: Tensor) -> Tensor:
        """`L x` for each row, `[N, rank]`: Euclidean distances of these are the learned ones.

        Raises:
            ReidError: features of another size.
        """
        if features.ndim != 2 or features.shape[1] != self.factor.shape[1]:
            raise ReidError(
                f"This distance was made for features [N, {self.factor.shape[1]}]; got {list(features.shape)}."
            )
        with torch.autocast(features.device.type, enabled=False):
            x = at_least_float32(features)
            return x @ self.factor.to(x.dtype).T

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        rank, dim = self.factor.shape
        return f"dim={dim}, rank={rank}"


def kissme(
    features: ArrayLike,
    pids: ArrayLike,
    camids: ArrayLike | None = None,
    *,
    dimensions: int | None = None,
    ridge: float = 1.0,
) -> Mahalanobis:
    """KISSME (Köstinger et al. 2012, eq. 12–15): how much likelier a difference is between two people than within one.

    With `Σ⁺ = mean over positive pairs of (x − y)(x − y)ᵀ` and `Σ⁻` over negative pairs, the log-likelihood ratio of
    two zero-mean Gaussians is, up to a constant, `(x − y)ᵀ (Σ⁺⁻¹ − Σ⁻⁻¹) (x − y)`. M is that matrix with its negative
    eigenvalues set to 0. All pairs are counted, in closed form (no loop over pairs, none drawn).

    Both matrices get `ridge` times their own mean eigenvalue on the diagonal: without it they cannot be inverted where
    there are fewer pairs than dimensions, and directions seldom seen weigh too much (docs/losses.md has the sweep).
    `dimensions` first projects to the largest principal components, as the paper does.

    Corner cases: rows of pid −1 are left out; an identity with one row gives negative pairs only; the scale of the
    features does not change the order of the distances.

    Args:
        features: `[N, D]`, NumPy.
        pids: `[N]` integers.
        camids: `[N]` integers: count only pairs across cameras; None: all pairs.
        dimensions: PCA, 1..D; None: none.
        ridge: above 0.

    Returns:
        The learned distance, of as many rows as M has positive eigenvalues.

    Raises:
        ReidError: shapes or numbers that do not fit, or no positive or no negative pair.
    """
    within, between, projection = _scatter(features, pids, camids, dimensions, ridge)
    values, vectors = np.linalg.eigh(np.linalg.inv(within) - np.linalg.inv(between))
    return _learned(values, vectors, projection, "KISSME")


def xqda(
    features: ArrayLike,
    pids: ArrayLike,
    camids: ArrayLike | None = None,
    *,
    dimensions: int | None = None,
    ridge: float = 1.0,
) -> Mahalanobis:
    """XQDA (Liao et al. 2015, section 4): KISSME in the subspace where people differ more than one person does.

    The subspace is spanned by the generalised eigenvectors of `Σ⁻ w = λ Σ⁺ w` with λ > 1, in which a difference between
    people is larger than within one. Scaled so that `wᵀ Σ⁺ w = 1` they make both matrices diagonal, 1 and λ, so the
    matrix of KISSME there is `1 − 1/λ`: positive without a projection.

    Arguments, regularisation, corner cases and errors are those of `kissme`; the paper's `Σ⁺`, `Σ⁻` are over pairs
    across cameras, so give `camids`. Here `dimensions` is the largest number of eigenvectors (the paper's r; None: all
    with λ > 1), and there is no PCA.

    Returns:
        The learned distance, of as many rows as eigenvectors were kept.
    """
    from scipy.linalg import eigh

    size = np.asarray(features).shape[-1] if np.ndim(features) == 2 else 0
    if dimensions is not None and not 1 <= dimensions <= max(size, 1):
        raise ReidError(f"dimensions must be between 1 and the size of the features, {size}; got {dimensions}.")
    within, between, projection = _scatter(features, pids, camids, None, ridge)
    ratios, vectors = eigh(between, within)
    ratios, vectors = ratios[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    return _learned(1 - 1 / ratios, vectors, projection, "XQDA")


def _learned(
    values: NDArray[np.float64], vectors: NDArray[np.float64], projection: NDArray[np.float64], method: str
) -> Mahalanobis:
    kept = values > 1e-9 * max(values.max(), 0)
    if not kept.any():
        raise ReidError(
            f"{method} found no direction in which two people differ more than one person does. Give more identities "
            "with several rows each, or look at whether the labels are right."
        )
    return Mahalanobis.from_factor((np.sqrt(values[kept]) * vectors[:, kept]).T @ projection)


def _scatter(
    features: ArrayLike, pids: ArrayLike, camids: ArrayLike | None, dimensions: int | None, ridge: float
) -> tuple[NDArray[np.float64], ...]:
    """`Σ⁺`, `Σ⁻` with the ridge, and the projection `[d, D]` they stand in; float64."""
    x, who = np.asarray(features, dtype=np.float64), np.asarray(pids)
    where = np.zeros_like(who) if camids is None else np.asarray(camids)
    if x.ndim != 2 or who.shape != x.shape[:1] or where.shape != who.shape:
        raise ReidError(
            f"A metric is learned from features [N, D], pids [N] and camids [N]; got {list(x.shape)}, "
            f"{list(who.shape)}{'' if camids is None else f' and {list(where.shape)}'}."
        )
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise ReidError(f"The features hold NaN or infinity, first in row {row}. Leave such rows out.")
    if not (math.isfinite(ridge) and ridge > 0):
        raise ReidError(f"ridge must be above 0; got {ridge}.")
    if dimensions is not None and not 1 <= dimensions <= x.shape[1]:
        raise ReidError(f"dimensions must be between 1 and the size of the features, {x.shape[1]}; got {dimensions}.")
    known = who != -1
    x, who, where = x[known], who[known], where[known]
    x = x - x.mean(axis=0) if len(x) else x
    projection = np.eye(x.shape[1])
    if dimensions is not None:
        projection = np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :dimensions].T
        x = x @ projection.T
    everybody = np.zeros_like(who)
    same, n_same = _pairs_within(x, who)
    total, n_total = _pairs_within(x, everybody)
    if camids is not None:
        cells = np.unique(np.stack([who, where]), axis=1, return_inverse=True)[1].reshape(-1)
        (own, n_own), (camera, n_camera) = _pairs_within(x, cells), _pairs_within(x, where)
        same, n_same, total, n_total = same - own, n_same - n_own, total - camera, n_total - n_camera
    across = "" if camids is None else " across cameras"
    if n_same == 0 or n_total == n_same:
        kind = "one person" if n_same == 0 else "two people"
        raise ReidError(f"There is no pair of {kind}{across} among {len(x)} features to learn a metric from.")
    both = (same / n_same, (total - same) / (n_total - n_same))
    spreads = np.array([np.trace(scatter) / len(scatter) for scatter in both])
    if spreads[1] <= 0:
        raise ReidError("All features of different people are equal: there is no metric to learn.")
    spreads = np.maximum(spreads, 1e-6 * spreads[1])  # where all crops of a person are equal
    within, between = (
        scatter + ridge * spread * np.eye(len(scatter)) for scatter, spread in zip(both, spreads, strict=True)
    )
    return within, between, projection


def _pairs_within(x: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    """`Σ (x_i − x_j)(x_i − x_j)ᵀ` over ordered pairs i ≠ j of one group, and their number, without the pairs.

    For n points of sum s in a group it is `2 n Σ x xᵀ − 2 s sᵀ`.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, group, x)
    pairs = int((counts * (counts - 1)).sum())
    return 2 * (x.T @ (x * counts[group][:, None]) - sums.T @ sums), pairs
