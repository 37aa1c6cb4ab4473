"""Mahalanobis distances: a positive-semidefinite matrix as a layer, and two closed forms fitted to embeddings."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from reid.core.arrays import check_finite, column_codes, integer_column, separate_unknown
from reid.core.errors import ConfigError, DataError, check_number
from reid.losses.distances import at_least_float32, euclidean


class Mahalanobis(nn.Module):
    """`d(x, y) = √((x − y)ᵀ M (x − y)) = ‖L (x − y)‖` with `M = LᵀL`, which is positive semidefinite for any L.

    Pass it to a loss as `distance` and L is learned with the other weights. The distance is the Euclidean distance of
    `transform(features)`; use that at test time. Initially it is the Euclidean distance (full rank), or that in a
    random subspace, scaled so that squared distances keep their average.

    Corner cases: equal points have distance 0 with gradient 0, and so do points that only differ in a direction that L
    maps to 0; computed in float32, or float64 for float64 features.

    Args:
        dim: D.
        rank: rows of L, 1 or more; None: D.
        seed: of the random subspace.

    Raises:
        ConfigError: a rank out of range.
    """

    def __init__(self, dim: int, rank: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or not 1 <= (dim if rank is None else rank) <= dim:
            raise ConfigError(f"The rank of a Mahalanobis matrix must be between 1 and its size {dim}; got {rank}.")
        start = torch.eye(dim)
        if rank is not None and rank < dim:
            drawn = torch.randn(dim, rank, generator=torch.Generator().manual_seed(seed))
            start = torch.linalg.qr(drawn).Q.T.contiguous() * math.sqrt(dim / rank)
        self.factor = nn.Parameter(start)
        """L, `[rank, D]`."""

    @classmethod
    def from_factor(cls, factor: ArrayLike | Tensor) -> Mahalanobis:
        """Make a distance with a given L `[rank, D]`, stored in float32.

        Raises:
            DataError: not a matrix of finite numbers.
        """
        given = torch.as_tensor(np.asarray(factor), dtype=torch.float32)
        if given.ndim != 2 or 0 in given.shape or not given.isfinite().all():
            raise DataError(f"The factor L must be finite numbers [rank, D]; got shape {list(given.shape)}.")
        metric = cls(given.shape[1], 1)
        metric.factor = nn.Parameter(given)
        return metric

    @property
    def matrix(self) -> Tensor:
        """`M = LᵀL`, `[D, D]`."""
        return self.factor.T @ self.factor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances `[N, M]` between rows `[N, D]` and `[M, D]`."""
        return euclidean(self.transform(x), self.transform(y))

    def transform(self, features: Tensor) -> Tensor:
        """Return `L x` for each row, `[N, rank]`: their Euclidean distances are the learned ones.

        Raises:
            DataError: features of another size.
        """
        if features.ndim != 2 or features.shape[1] != self.factor.shape[1]:
            raise DataError(f"This distance needs features [N, {self.factor.shape[1]}]; got {list(features.shape)}.")
        with torch.autocast(features.device.type, enabled=False):
            x = at_least_float32(features)
            return x @ self.factor.to(x.dtype).T

    def extra_repr(self) -> str:
        """Return the settings that `print(model)` shows."""
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
    """Fit KISSME (Köstinger et al. 2012, eq. 12–15): likelihood ratio of differences between and within identities.

    With `Σ⁺ = mean over positive pairs of (x − y)(x − y)ᵀ` and `Σ⁻` over negative pairs, the log-likelihood ratio of
    two zero-mean Gaussians is, up to a constant, `(x − y)ᵀ (Σ⁺⁻¹ − Σ⁻⁻¹) (x − y)`. M is that matrix with its negative
    eigenvalues set to 0. All pairs are used, in closed form, without a loop over pairs.

    `ridge` times the mean eigenvalue is added to the diagonal of both matrices. Without it they are singular with fewer
    pairs than dimensions, and rare directions get too much weight (docs/losses.md has the sweep). `dimensions` first
    projects to the largest principal components, as in the paper.

    Corner cases: rows of pid −1 are ignored; an identity with one row has negative pairs only; the scale of the
    features does not change the order of the distances.

    Args:
        features: `[N, D]`, NumPy.
        pids: `[N]` integers.
        camids: `[N]` integers: use only pairs across cameras; None: all pairs.
        dimensions: of the PCA, 1..D; None: no PCA.
        ridge: regularisation in units of the mean eigenvalue, above 0.

    Returns:
        The learned distance; its rank is the number of positive eigenvalues of M.

    Raises:
        DataError: shapes that do not fit, values that are not finite, or no positive or no negative pair.
        ConfigError: a setting out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> features = rng.normal(size=(60, 4)) * [1, 1, 5, 5]
        >>> features[:, :2] += np.repeat(np.arange(20), 3)[:, None]
        >>> kissme(features, np.repeat(np.arange(20), 3)).transform(torch.ones(1, 4)).shape[0]
        1
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
    """Fit XQDA (Liao et al. 2015, section 4): KISSME in the subspace where identities differ most.

    The subspace is spanned by the generalised eigenvectors of `Σ⁻ w = λ Σ⁺ w` with λ > 1, in which differences between
    identities are larger than within one. Scaled so that `wᵀ Σ⁺ w = 1` they make both matrices diagonal, 1 and λ, so
    the matrix of KISSME there is `1 − 1/λ`: positive without a projection.

    Arguments, regularisation, corner cases and errors are those of `kissme`. The paper's `Σ⁺`, `Σ⁻` are over pairs
    across cameras, so pass `camids`. Here `dimensions` is the largest number of eigenvectors (the paper's r; None: all
    with λ > 1), and there is no PCA.

    Returns:
        The learned distance; its rank is the number of eigenvectors.
    """
    from scipy.linalg import eigh

    within, between, projection = _scatter(features, pids, camids, None, ridge)
    check_number("dimensions (of the subspace)", dimensions, 1, len(within))
    ratios, vectors = eigh(between, within)
    ratios, vectors = ratios[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    return _learned(1 - 1 / ratios, vectors, projection, "XQDA")


def _learned(
    values: NDArray[np.float64], vectors: NDArray[np.float64], projection: NDArray[np.float64], method: str
) -> Mahalanobis:
    kept = values > 1e-9 * max(values.max(), 0)
    if not kept.any():
        raise DataError(
            f"{method} found no direction in which different people differ more than one person does. Add identities "
            "with several rows each, and check the labels."
        )
    return Mahalanobis.from_factor((np.sqrt(values[kept]) * vectors[:, kept]).T @ projection)


def _scatter(
    features: ArrayLike, pids: ArrayLike, camids: ArrayLike | None, dimensions: int | None, ridge: float
) -> tuple[NDArray[np.float64], ...]:
    """Return `Σ⁺`, `Σ⁻` with the ridge, and the projection `[d, D]` that they are in; float64."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise DataError(f"A metric is learned from features [N, D]; got {list(x.shape)}.")
    identity = integer_column("pids", pids, len(x))
    camera = np.zeros_like(identity) if camids is None else separate_unknown(integer_column("camids", camids, len(x)))
    check_finite(x)
    check_number("ridge", ridge, above=True)
    check_number("dimensions (of the PCA)", dimensions, 1, x.shape[1])
    known = identity != -1
    x, identity, camera = x[known], identity[known], camera[known]
    x = x - x.mean(axis=0) if len(x) else x
    projection = np.eye(x.shape[1])
    if dimensions is not None:
        projection = np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :dimensions].T
        x = x @ projection.T
    same, n_same = _pairs_within(x, identity)
    total, n_total = _pairs_within(x, np.zeros_like(identity))
    if camids is not None:
        cells = column_codes([identity, camera])
        (in_cell, n_in_cell), (in_camera, n_in_camera) = _pairs_within(x, cells), _pairs_within(x, camera)
        same, n_same, total, n_total = same - in_cell, n_same - n_in_cell, total - in_camera, n_total - n_in_camera
    across = "" if camids is None else " across cameras"
    if n_same == 0 or n_total == n_same:
        kind = "one person" if n_same == 0 else "two people"
        raise DataError(f"There is no pair of {kind}{across} among {len(x)} features to learn a metric from.")
    both = (same / n_same, (total - same) / (n_total - n_same))
    spreads = np.array([np.trace(scatter) / len(scatter) for scatter in both])
    if spreads[1] <= 0:
        raise DataError("All features of different people are equal. Check the model that made them.")
    spreads = np.maximum(spreads, 1e-6 * spreads[1])  # if all crops of each person are equal
    within, between = (
        scatter + ridge * spread * np.eye(len(scatter)) for scatter, spread in zip(both, spreads, strict=True)
    )
    return within, between, projection


def _pairs_within(x: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    """Return `Σ (x_i − x_j)(x_i − x_j)ᵀ` over ordered pairs i ≠ j of one group, and the number of pairs.

    For n points of sum s in a group this is `2 n Σ x xᵀ − 2 s sᵀ`, without a loop over pairs.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, group, x)
    pairs = int((counts * (counts - 1)).sum())
    return 2 * (x.T @ (x * counts[group][:, None]) - sums.T @ sums), pairs
