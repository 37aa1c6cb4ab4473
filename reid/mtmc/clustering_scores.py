"""Scores of a clustering of items against the truth: pairwise precision and recall, and B³."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from reid.core.errors import DataError


@dataclass(frozen=True)
class ClusterScores:
    """How well a clustering of items (usually tracklets) recovers the true identities. Fractions are in 0..1.

    n_cj is the number of items of true identity c in found identity j; n_c and n_j are its sums; N is the number of
    items.

    - Pairs: precision = Σ n_cj (n_cj − 1) / Σ n_j (n_j − 1), recall = Σ n_cj (n_cj − 1) / Σ n_c (n_c − 1),
      F1 = 2 TP / (2 TP + FP + FN). 1 where there is no pair to judge.
    - B³ (Bagga and Baldwin, 1998): precision = Σ n_cj² / n_j / N, recall = Σ n_cj² / n_c / N, F1 their harmonic mean.
      Each item has equal weight, so large identities do not dominate as they do in pairs.

    Attributes:
        items: N.
        true_identities, found_identities: Numbers of identities.
        exact_identities: Found identities that contain all items of one true identity and no other item.
        pair_precision, pair_recall, pair_f1, b3_precision, b3_recall, b3_f1: As above; None without items.

    Example:
        >>> scores = cluster_scores(["anna", "anna", "ben"], [1, 1, 2])
        >>> scores.exact_identities, scores.b3_f1
        (2, 1.0)
    """

    items: int = 0
    true_identities: int = 0
    found_identities: int = 0
    exact_identities: int = 0
    pair_precision: float | None = None
    pair_recall: float | None = None
    pair_f1: float | None = None
    b3_precision: float | None = None
    b3_recall: float | None = None
    b3_f1: float | None = None


def cluster_scores(true_labels: ArrayLike, predicted_labels: ArrayLike) -> ClusterScores:
    """Score the identities found for items against the true ones; needs no boxes.

    Args:
        true_labels: `[N]` true identity of each item, integers or strings. Remove items without one beforehand.
        predicted_labels: `[N]` identity given to each item. An item that was left alone has its own label.

    Raises:
        DataError: The labels are not two lists of one length.

    Example:
        >>> scores = cluster_scores(["anna", "anna", "ben"], [1, 1, 1])
        >>> round(scores.pair_precision, 2), scores.pair_recall
        (0.33, 1.0)
    """
    true, predicted = np.asarray(true_labels), np.asarray(predicted_labels)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise DataError(
            f"cluster_scores: labels have shapes {list(true.shape)} and {list(predicted.shape)}. Pass two lists of one "
            "length, one label per item."
        )
    n = len(true)
    if n == 0:
        return ClusterScores()
    _, true = np.unique(true, return_inverse=True)
    _, predicted = np.unique(predicted, return_inverse=True)
    per_true, per_predicted = np.bincount(true), np.bincount(predicted)
    cells, shared = np.unique(true * len(per_predicted) + predicted, return_counts=True)
    of_true, of_predicted = per_true[cells // len(per_predicted)], per_predicted[cells % len(per_predicted)]
    right, claimed, existing = (float((c * (c - 1)).sum()) for c in (shared, per_predicted, per_true))
    b3_precision, b3_recall = (float((shared**2 / counts).sum()) / n for counts in (of_predicted, of_true))
    return ClusterScores(
        items=n,
        true_identities=len(per_true),
        found_identities=len(per_predicted),
        exact_identities=int(((shared == of_true) & (shared == of_predicted)).sum()),
        pair_precision=right / claimed if claimed else 1.0,
        pair_recall=right / existing if existing else 1.0,
        pair_f1=2 * right / (claimed + existing) if claimed + existing else 1.0,
        b3_precision=b3_precision,
        b3_recall=b3_recall,
        b3_f1=2 * b3_precision * b3_recall / (b3_precision + b3_recall),
    )
