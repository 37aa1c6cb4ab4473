"""Synthetic rankings, from ordinary to difficult, each named after its difficulty."""

from __future__ import annotations

import numpy as np


def made(n_query=12, n_gallery=60, dim=8, ids=6, cameras=3, seed=0, low=-3, high=4):
    """Features of small integers, whose float32 distances are exact, so that ties are ties: the six arguments."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(low, high, (n_query, dim)).astype(np.float32),
        rng.integers(low, high, (n_gallery, dim)).astype(np.float32),
        rng.integers(1, ids + 1, n_query),
        rng.integers(1, ids + 1, n_gallery),
        rng.integers(1, cameras + 1, n_query),
        rng.integers(1, cameras + 1, n_gallery),
    ]


def changed(case, **columns):
    names = ("query", "gallery", "query_pids", "gallery_pids", "query_camids", "gallery_camids")
    return [columns.get(name, column) for name, column in zip(names, case, strict=True)]


def squared_distances(query, gallery):
    q, g = np.asarray(query, dtype=np.float64), np.asarray(gallery, dtype=np.float64)
    return ((q[:, None] - g[None]) ** 2).sum(axis=2)


def with_junk_and_distractors():
    case = made(seed=5)
    pids = case[3].copy()
    pids[::4], pids[1::4] = -1, 0
    return changed(case, gallery_pids=pids)


def with_unlabelled_queries():
    case = made(seed=6)
    pids = case[2].copy()
    pids[:3], pids[3:5] = -1, 999
    return changed(case, query_pids=pids)


def half_unknown(camids):
    """Replace every second camera by -1."""
    return np.where(np.arange(len(camids)) % 2, camids, -1)


DIFFICULT = {
    "ordinary": made(n_gallery=200, dim=16, low=-9, high=10),
    "many ties": made(dim=2, low=0, high=2, seed=1),
    "all items are one point": made(low=1, high=2, seed=2),
    "one query": made(n_query=1, seed=3),
    "one gallery item": changed(made(n_query=5, n_gallery=1, ids=1, cameras=1), query_camids=np.full(5, 2)),
    "one query, one gallery item": changed(made(1, 1, ids=1, cameras=1), query_camids=np.array([2])),
    "junk and distractors": with_junk_and_distractors(),
    "unlabelled queries and identities absent from the gallery": with_unlabelled_queries(),
    "most identities in one camera": made(n_query=30, n_gallery=40, ids=20, cameras=2, seed=7),
    "huge and negative codes": changed(
        made(seed=8), query_pids=made(seed=8)[2] * 2**40 - 5, gallery_pids=made(seed=8)[3] * 2**40 - 5
    ),
    "cameras coded below zero": changed(
        made(seed=9), query_camids=made(seed=9)[4] - 9, gallery_camids=made(seed=9)[5] - 9
    ),
    "half of the cameras unknown": changed(
        made(n_query=30, seed=12),
        query_camids=half_unknown(made(n_query=30, seed=12)[4]),
        gallery_camids=half_unknown(made(n_query=30, seed=12)[5]),
    ),
    "every gallery item is right": changed(made(cameras=1, ids=1, seed=10), query_camids=np.zeros(12, dtype=int)),
    "more queries than gallery": made(n_query=80, n_gallery=9, seed=11),
}
