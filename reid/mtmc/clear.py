"""CLEAR scores (Bernardin and Stiefelhagen, 2008) and the mostly-tracked counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from reid.mtmc.box_pairs import EPS, BoxPairs, StepMatcher, count_ids


def clear_scores(boxes: BoxPairs, iou: float) -> dict[str, Any]:
    """CLEAR scores by name.

    A match of the previous timestep is kept if possible; then the sum of IoU is maximised. Timesteps in which one side
    is empty are skipped; the previous timestep is the last in which neither was.
    """
    truth, predicted = len(boxes.truth_id), len(boxes.predicted_id)
    people = count_ids(boxes.truth_id)
    matcher = StepMatcher(boxes)
    candidate = boxes.iou >= iou - EPS
    matched = candidate.copy()
    both = np.flatnonzero((np.diff(matcher.truth_start) > 0) & (np.diff(matcher.predicted_start) > 0))
    pair_truth, pair_predicted = boxes.truth_id[boxes.truth_row], boxes.predicted_id[boxes.predicted_row]
    before = np.full(people, -1)
    contested = matcher.contested(candidate)
    for step, place in zip(contested, np.searchsorted(both, contested), strict=True):
        pairs = matcher.pairs(step)
        last = matcher.pairs(both[place - 1]) if place else slice(0, 0)
        kept = pair_truth[last][matched[last]]
        before[kept] = pair_predicted[last][matched[last]]
        value = 1000 * (before[pair_truth[pairs]] == pair_predicted[pairs]) + boxes.iou[pairs]
        before[kept] = -1
        matched[pairs] = False
        matched[matcher.solve(step, np.where(candidate[pairs], value, 0))] = True

    tp = int(matched.sum())
    person, identity = pair_truth[matched], pair_predicted[matched]
    place = np.searchsorted(both, matcher.step[matched])
    order = np.argsort(person, kind="stable")
    person, identity, place = person[order], identity[order], place[order]
    same_person = person[1:] == person[:-1]
    switches = int((same_person & (identity[1:] != identity[:-1])).sum())
    ratio = np.bincount(person, minlength=people) / np.maximum(1, np.bincount(boxes.truth_id, minlength=people))
    mostly = int((ratio > 0.8).sum())
    partly = int((ratio >= 0.2).sum()) - mostly
    return {
        "MOTA": (2 * tp - predicted - switches) / max(1, truth) if truth else 0.0,
        "MOTP": float(boxes.iou[matched].sum()) / max(1, tp),
        "TP": tp,
        "FP": predicted - tp,
        "FN": truth - tp,
        "IDSW": switches,
        "MT": mostly,
        "PT": partly,
        "ML": people - mostly - partly,
        "Frag": int((same_person & (np.diff(place) > 1)).sum()),
    }
