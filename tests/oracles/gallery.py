"""Brute-force search of a gallery: every tracklet in a loop."""

from __future__ import annotations

import numpy as np


def nearest_tracklets(features, tracklets, query, keep=None, top=10, within=None):
    """(distance, tracklet) of the nearest tracklets, by float64 products of float16 features; ties by tracklet."""
    best = {}
    for row, tracklet in enumerate(tracklets):
        if keep is None or keep[row]:
            feature = np.asarray(features[row], np.float64)
            stored = (feature / np.sqrt((feature**2).sum())).astype(np.float32).astype(np.float16).astype(np.float64)
            distance = min(1 - float(stored @ (q / np.sqrt((q**2).sum()))) for q in np.asarray(query, np.float64))
            best[tracklet] = min(distance, best.get(tracklet, 9.0))
    ranked = sorted((distance, tracklet) for tracklet, distance in best.items())
    return [hit for hit in ranked if within is None or hit[0] <= within][:top]


def broken_rule(one, other, cameras, tolerance):
    """The rule that two hits of one person break, or None: from the definitions, in seconds."""
    first, second = sorted((one, other), key=lambda hit: hit.start)
    gap = (second.start - first.end) / 1000
    shared = (min(first.end, second.end) - second.start) / 1000
    if first.camera is None or second.camera is None:
        return None
    if first.camera == second.camera:
        return "same camera, same time" if shared >= tolerance else None
    if cameras is None or not {first.camera, second.camera} <= set(cameras.cameras):
        return None
    if cameras.non_overlapping(first.camera, second.camera) and shared >= tolerance:
        return "cameras do not overlap"
    least = cameras.min_transition_time(first.camera, second.camera)
    if least == np.inf:
        return "no transition"
    return "shorter than the transition time" if gap < least - tolerance else None


def best_chain(hits, weights, cameras, tolerance=0.0, certain=()):
    """(sum of weights, hits) of the best of all subsets without a broken rule."""
    best = (-1.0, [])
    for number in range(2 ** len(hits)):
        chosen = [index for index in range(len(hits)) if number >> index & 1]
        pairs = [(i, j) for i in chosen for j in chosen if i < j and not (i in certain and j in certain)]
        allowed = set(certain) <= set(chosen)
        if allowed and not any(broken_rule(hits[i], hits[j], cameras, tolerance) for i, j in pairs):
            best = max(best, (sum(weights[index] for index in chosen), chosen))
    return best
