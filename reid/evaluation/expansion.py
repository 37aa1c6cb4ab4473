"""Query expansion: features moved towards their nearest neighbours before ranking."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.errors import ReidError
from reid.evaluation.features import MEMORY_LIMIT, Features, prepare_features
from reid.evaluation.neighbours import camera_column, nearest_across, nearest_items


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
    """Query features `[Q, D]` of length 1, each moved towards its k nearest gallery items.

    With all features made of length 1 and N(q) the k gallery items of the smallest angle to q (equal ones in gallery
    order),

        q′ = (q + Σ_{g ∈ N(q)} max(q·g, 0)^α g) / |…|

    α > 0 is α query expansion (Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2019, section 3.4). α = 0 gives every neighbour the weight 1: average query expansion (Chum et al., "Total
    Recall", ICCV 2007). The query itself always has the weight 1.

    With camera ids, N(q) is taken among the items of other cameras: those of the query's own camera are often the
    same few seconds, and the cross-camera protocol does not count them.

    Corner cases: with fewer than k items all are taken; with none, or where the sum is zero, the query stays.

    Args:
        query_features: `[Q, D]` numbers, NumPy or torch on any device.
        gallery_features: `[G, D]` likewise.
        k: neighbours of a query.
        alpha: exponent α of the cosine similarity, 0 or more.
        query_camids: `[Q]` integers, or None; gallery_camids: `[G]`.
        memory_limit: bytes a block of distances may take (one row at least).

    Raises:
        ReidError: shapes do not fit, a feature is NaN, infinite or zero, a setting is out of range, or camera ids are
            given for one side only.
    """
    _check(k, alpha)
    query, gallery = prepare_features(query_features, gallery_features, "cosine")
    if (query_camids is None) != (gallery_camids is None):
        raise ReidError("Camera ids are needed for both the queries and the gallery, or for neither.")
    cameras = None
    if query_camids is not None and gallery_camids is not None:
        cameras = (
            camera_column(query_camids, "query_camids", len(query)),
            camera_column(gallery_camids, "gallery_camids", len(gallery)),
        )
    return _expanded(query, gallery, nearest_across(query, gallery, k, memory_limit, cameras), alpha)


def expand_gallery(
    features: Features, *, k: int = 5, alpha: float = 3.0, memory_limit: int = MEMORY_LIMIT
) -> NDArray[np.float32]:
    """Gallery features `[G, D]` of length 1, each moved towards its k nearest others.

    The formula of `expand_queries`, every item being the query for the others (database-side augmentation: Arandjelović
    and Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012, section 4; with α:
    Gordo et al., IJCV 2017). Expand the gallery first, then the queries towards the expanded gallery.

    Args:
        features: `[G, D]` numbers, NumPy or torch on any device.
        k: neighbours beside the item itself.
        alpha: exponent α of the cosine similarity, 0 or more.
        memory_limit: bytes a block of distances may take (one row at least).

    Raises:
        ReidError: as `expand_queries`.
    """
    _check(k, alpha)
    gallery = prepare_features(features, features, "cosine")[1]
    return _expanded(gallery, gallery, nearest_items(gallery, k, memory_limit).nearest[:, 1:], alpha)


def _check(k: int, alpha: float) -> None:
    if k < 1:
        raise ReidError(f"k must be at least 1, not {k}.")
    if not 0 <= alpha < np.inf:
        raise ReidError(f"alpha must be 0 or more, not {alpha}.")


def _expanded(features: Tensor, others: Tensor, nearest: NDArray[np.int64], alpha: float) -> NDArray[np.float32]:
    """`features [N, D]` plus the weighted `others` at `nearest [N, k]` (−1: none), made of length 1."""
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
