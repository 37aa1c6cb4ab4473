"""HOTA (Luiten et al., 2021)."""

from __future__ import annotations

import numpy as np

from reid.data.tracks import Floats
from reid.mtmc.box_pairs import EPS, BoxPairs, StepMatcher, count_ids, unique_codes

ALPHAS = np.arange(0.05, 0.99, 0.05)
"""The 19 localisation thresholds of HOTA."""


def hota_curves(boxes: BoxPairs) -> dict[str, Floats]:
    """HOTA and its components at each α, `[19]` each; 0 without boxes (LocA 1)."""
    names = ("HOTA", "DetA", "AssA", "LocA", "DetRe", "DetPr", "AssRe", "AssPr")
    truth, predicted = len(boxes.truth_id), len(boxes.predicted_id)
    curves = {name: np.zeros(len(ALPHAS)) for name in names}
    if not truth or not predicted:
        curves["LocA"][:] = 1
        return curves
    n_predicted = count_ids(boxes.predicted_id)
    of_truth, of_predicted = np.bincount(boxes.truth_id), np.bincount(boxes.predicted_id)
    cells, cell = unique_codes(boxes.truth_id[boxes.truth_row] * n_predicted + boxes.predicted_id[boxes.predicted_row])
    of_truth, of_predicted = of_truth[cells // n_predicted], of_predicted[cells % n_predicted]
    potential = np.bincount(cell, weights=boxes.potential, minlength=len(cells))
    alignment = potential / (of_truth + of_predicted - potential)
    value = alignment[cell] * boxes.iou

    matcher = StepMatcher(boxes)
    matched = value > 0
    for step in matcher.contested(matched):
        pairs = matcher.pairs(step)
        matched[pairs] = False
        matched[matcher.solve(step, value[pairs])] = True
    cell, similarity = cell[matched], boxes.iou[matched]
    for i, alpha in enumerate(ALPHAS):
        within = similarity >= alpha - EPS
        tp = int(within.sum())
        shared = np.bincount(cell[within], minlength=len(cells))
        curves["DetA"][i] = tp / (truth + predicted - tp)
        curves["DetRe"][i] = tp / truth
        curves["DetPr"][i] = tp / predicted
        curves["AssA"][i] = (shared * shared / (of_truth + of_predicted - shared)).sum() / max(1, tp)
        curves["AssRe"][i] = (shared * shared / of_truth).sum() / max(1, tp)
        curves["AssPr"][i] = (shared * shared / of_predicted).sum() / max(1, tp)
        curves["LocA"][i] = similarity[within].sum() / tp if tp else 1
    curves["HOTA"] = np.sqrt(curves["DetA"] * curves["AssA"])
    return curves
