"""Project the features of a few identities to two dimensions, for plotting: PCA and t-SNE."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import check_choice
from reid.evaluation.features import Features, prepare_features

Method = Literal["pca", "tsne"]

METHODS = ("pca", "tsne")


def project(features: Features, method: Method = "pca", *, seed: int = 0) -> NDArray[np.float64]:
    """Return two coordinates for each feature. Features are L2-normalised first, as for the cosine metric.

    "pca": the two directions of largest variance (scikit-learn), with signs such that the largest entry is positive.
    Distances can only shrink: points that are distant in the plot are distant in feature space.
    "tsne": van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008 (scikit-learn; initialised with PCA,
    perplexity 30 or a third of the other points). Neighbours stay neighbours; distances between groups and their
    sizes have no meaning. Time and memory grow faster than N: use hundreds of features, not thousands.

    Corner cases: with fewer than 4 features "tsne" returns the result of "pca"; features of one direction are all at
    the origin.

    Args:
        features: `[N, D]` numbers, NumPy or torch.
        method: "pca" or "tsne".
        seed: of t-SNE.

    Returns:
        `[N, 2]` float64.

    Raises:
        ConfigError: unknown method.
        DataError: no features, or one that is NaN, infinite or zero; its row is named.
    """
    check_choice("projection", method, METHODS)
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
        with threadpool_limits(1):  # more threads only wait for each other with so few points
            return np.asarray(tsne.fit_transform(ready.astype(np.float32)), dtype=np.float64)
    size = min(2, n - 1, ready.shape[1])
    points[:, :size] = PCA(size, svd_solver="full").fit_transform(ready)
    return points


def choose_identities(pids: ArrayLike, n: int = 7, *, per_identity: int = 30, seed: int = 0) -> NDArray[np.int64]:
    """Return the rows of `n` random identities that have at least 2 rows, with up to `per_identity` rows each.

    Rows of pid -1 are never chosen. Fewer rows are returned if there are not enough.
    """
    column = np.asarray(pids)
    rng = np.random.default_rng(seed)
    known, counts = np.unique(column[column >= 0], return_counts=True)
    known = known[counts > 1]
    chosen = rng.choice(known, min(n, len(known)), replace=False)
    rows = [np.flatnonzero(column == pid) for pid in chosen]
    kept = [rng.choice(row, min(per_identity, len(row)), replace=False) for row in rows]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)
