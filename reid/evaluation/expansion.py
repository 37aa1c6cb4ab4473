"""Query expansion: move features towards their nearest neighbours before ranking."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.arrays import integer_column
from reid.core.errors import DataError, check_number
from reid.evaluation.features import MEMORY_LIMIT, Features, prepare_features
from reid.evaluation.neighbours import nearest_across, nearest_items


def expand_queries(
    query_features: Features,
    gallery_features: Features,
    *,
    k: int = 5,
    alpha: float = 3.0,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> NDArray[np.float32]:
    """Return L2-normalised query features `[Q, D]`, each moved towards its k nearest gallery items.

    With L2-normalised features and N(q) the k gallery items with the smallest angle to q (ties in gallery order),

        q′ = (q + Σ_{g ∈ N(q)} max(q·g, 0)^α g) / |…|

    α > 0 is α query expansion (Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2019, section 3.4). α = 0 gives every neighbour weight 1: average query expansion (Chum et al., "Total
    Recall", ICCV 2007). The query itself always has weight 1.

    With camera ids, N(q) contains only items of other cameras: those of the query's own camera are often from the
    same few seconds, and the cross-camera rule ignores them.

    Corner cases: with fewer than k items all are used; without any, or if the sum is zero, the query stays the same.

    Args:
        query_features: `[Q, D]` numbers, NumPy or torch on any device.
        gallery_features: `[G, D]`.
        k: number of neighbours.
        alpha: exponent α of the cosine similarity, 0 or more.
        query_camids: `[Q]` integers, or None; gallery_camids: `[G]`.
        memory_limit: bytes of a block of distances (at least one row).

    Raises:
        DataError: shapes that do not fit, a feature that is NaN, infinite or zero, or camera ids for one side only.
        ConfigError: a setting out of range.
    """
    _check(k, alpha)
    query, gallery = prepare_features(query_features, gallery_features, "cosine")
    if (query_camids is None) != (gallery_camids is None):
        raise DataError("Camera ids are given for one side only. Pass query_camids and gallery_camids, or neither.")
    cameras = None
    if query_camids is not None and gallery_camids is not None:
        cameras = (
            integer_column("query_camids", query_camids, len(query)),
            integer_column("gallery_camids", gallery_camids, len(gallery)),
        )
    return _expanded(query, gallery, nearest_across(query, gallery, k, memory_limit, cameras), alpha)


def expand_gallery(
    features: Features, *, k: int = 5, alpha: float = 3.0, memory_limit: int = MEMORY_LIMIT
) -> NDArray[np.float32]:
    """Return L2-normalised gallery features `[G, D]`, each moved towards its k nearest others.

    Uses the formula of `expand_queries` with every item as a query (database-side augmentation: Arandjelović and
    Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012, section 4; with α:
    Gordo et al., IJCV 2017). Expand the gallery first, then the queries towards the expanded gallery.

    Args:
        features: `[G, D]` numbers, NumPy or torch on any device.
        k: number of neighbours, without the item itself.
        alpha: exponent α of the cosine similarity, 0 or more.
        memory_limit: bytes of a block of distances (at least one row).

    Raises:
        ReidError: as `expand_queries`.
    """
    _check(k, alpha)
    gallery = prepare_features(features, features, "cosine")[1]
    return _expanded(gallery, gallery, nearest_items(gallery, k, memory_limit).nearest[:, 1:], alpha)


def _check(k: int, alpha: float) -> None:
    check_number("k", k, 1)
    check_number("alpha", alpha)


def _expanded(features: Tensor, others: Tensor, nearest: NDArray[np.int64], alpha: float) -> NDArray[np.float32]:
    """Return `features [N, D]` plus the weighted `others` at `nearest [N, k]` (−1: none), L2-normalised."""
    out = np.empty(tuple(features.shape), dtype=np.float32)
    step = max(1, 2**22 // max(1, nearest.shape[1] * features.shape[1]))
    for start in range(0, len(out), step):
        part = features[start : start + step]
        index = torch.from_numpy(nearest[start : start + step]).to(features.device)
        near = others[index.clamp(min=0)]
        weights = torch.einsum("nd,nkd->nk", part, near).clamp(min=0).pow(alpha) * (index >= 0)
        total = part + torch.einsum("nk,nkd->nd", weights, near)
        lengths = torch.linalg.vector_norm(total, dim=1, keepdim=True)
        out[start : start + step] = torch.where(lengths > 0, total / lengths, part).cpu().numpy()
    return out
