"""Features in the plane, to be looked at: PCA and t-SNE of a few identities."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError, did_you_mean
from reid.evaluation.features import Features, prepare_features

Method = Literal["pca", "tsne"]

METHODS = ("pca", "tsne")


def project(features: Features, method: Method = "pca", *, seed: int = 0) -> NDArray[np.float64]:
    """Two coordinates for each feature, made of length 1 first, so that distances are those of the cosine metric.

    "pca": the two directions of largest variance (scikit-learn), each turned so that its largest entry is positive.
    Distances shrink, but what is far apart here is far apart.
    "tsne": van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008 (scikit-learn; from PCA, perplexity 30 or
    a third of the other points). Neighbours stay neighbours; distances between groups and their sizes mean nothing.
    It takes time and memory that grow faster than N: give it hundreds of features, not all.

    Corner cases: fewer than 4 features have no neighbourhoods, and "tsne" gives what "pca" gives; features of one
    direction all lie at the origin.

    Args:
        features: `[N, D]` numbers, NumPy or torch.
        method: "pca" or "tsne".
        seed: of t-SNE's draws.

    Returns:
        `[N, 2]` float64.

    Raises:
        ReidError: an unknown method; no features, or one that is NaN, infinite or zero (its row is named).
    """
    if method not in METHODS:
        raise ReidError(f"Unknown projection {method!r}.{did_you_mean(method, METHODS)}")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    ready = prepare_features(features, features, "cosine")[0].double().cpu().numpy()
    n = len(ready)
    points = np.zeros((n, 2))
    if np.ptp(ready, axis=0).max() < 1e-6:
        return points
    if method == "tsne" and n >= 4:
        tsne = TSNE(perplexity=min(30.0, (n - 1) / 3), init="pca", random_state=seed)
        with threadpool_limits(1):  # more threads wait for each other at so few points
            return np.asarray(tsne.fit_transform(ready.astype(np.float32)), dtype=np.float64)
    size = min(2, n - 1, ready.shape[1])
    points[:, :size] = PCA(size, svd_solver="full").fit_transform(ready)
    return points


def choose_identities(pids: ArrayLike, n: int = 7, *, per_identity: int = 30, seed: int = 0) -> NDArray[np.int64]:
    """Rows of `n` identities drawn by `seed` among those with at least 2 rows, each with up to `per_identity` rows.

    Rows of pid -1 are never chosen. Fewer come back when there are no more; none if there are none.
    """
    who = np.asarray(pids)
    rng = np.random.default_rng(seed)
    known, counts = np.unique(who[who >= 0], return_counts=True)
    known = known[counts > 1]
    chosen = rng.choice(known, min(n, len(known)), replace=False)
    rows = [np.flatnonzero(who == pid) for pid in chosen]
    few = [rng.choice(row, min(per_identity, len(row)), replace=False) for row in rows]
    return np.sort(np.concatenate(few)) if few else np.zeros(0, dtype=np.int64)
