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
