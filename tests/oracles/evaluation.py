"""Ranking, re-ranking, verification and open set: one query or pair at a time, dense matrices; float64."""

from __future__ import annotations

import math

import numpy as np


def match_ranks_loop(
    distances, query_pids, gallery_pids, query_camids, gallery_camids, cross_camera=True, excluded=None
):
    """For each query the ranks (from 1) of its right matches, or the reason why it has none."""
    out = []
    for q in range(len(query_pids)):
        ranked = sorted(range(len(gallery_pids)), key=lambda g: (distances[q][g], g))
        ranks, rank = [], 0
        for g in ranked:
            same = gallery_pids[g] == query_pids[q]
            if gallery_pids[g] == -1 or (cross_camera and same and gallery_camids[g] == query_camids[q] != -1):
                continue
            if excluded is not None and excluded[q][g]:
                continue
            rank += 1
            if same:
                ranks.append(rank)
        tested = [g for g in ranked if gallery_pids[g] == query_pids[q]]
        if ranks:
            out.append(ranks)
        elif query_pids[q] == -1:
            out.append("no identity (pid -1)")
        elif not tested:
            out.append("identity not in gallery")
        elif cross_camera and all(gallery_camids[g] == query_camids[q] != -1 for g in tested):
            out.append("only in the query's own camera")
        else:
            out.append("all its matches are in the exclusion mask")
    return out


def camera_pair_loop(distances, query_pids, gallery_pids, query_camids, gallery_camids, cross_camera, a, b):
    """Ranks of the right matches of the queries of camera a in the gallery of camera b only."""
    queries = [q for q in range(len(query_pids)) if query_camids[q] == a]
    items = [g for g in range(len(gallery_pids)) if gallery_camids[g] == b]
    sub = [[distances[q][g] for g in items] for q in queries]
    ranks = match_ranks_loop(
        sub, [query_pids[q] for q in queries], [gallery_pids[g] for g in items], [a] * len(queries), [b] * len(items),
        cross_camera,
    )  # fmt: skip
    return [one for one in ranks if not isinstance(one, str)]


def single_shot_loop(distances, query_pids, gallery_pids, query_camids, gallery_camids, cross_camera, draw):
    """For one draw (a place for each item) the rank of each query's own item, among one item of each identity."""
    out = []
    for q in range(len(query_pids)):
        first = {}
        for g in sorted(range(len(gallery_pids)), key=lambda g: draw[g]):
            same = gallery_pids[g] == query_pids[q]
            if gallery_pids[g] == -1 or (cross_camera and same and gallery_camids[g] == query_camids[q] != -1):
                continue
            first.setdefault(gallery_pids[g], g)
        if query_pids[q] in first:
            ranked = sorted(first.values(), key=lambda g: (distances[q][g], g))
            out.append(ranked.index(first[query_pids[q]]) + 1)
    return out


def reassociation_loop(features, people, frames, cameras, gap, stride, metric="cosine"):
    """(rank of the right crop, number of candidates) of each scored query, and the numbers of dropped ones."""
    x = np.asarray(features, np.float64)
    scored, absent, alone = [], 0, 0
    for q in range(len(x)):
        start = min(frames[i] for i in range(len(x)) if cameras[i] == cameras[q] and people[i] >= 0)
        if people[q] < 0 or (frames[q] - start) % stride:
            continue
        later = [i for i in range(len(x)) if cameras[i] == cameras[q] and frames[i] == frames[q] + gap]
        later = [i for i in later if people[i] >= 0]
        right = [i for i in later if people[i] == people[q]]
        if not right:
            absent += 1
        elif len(later) < 2:
            alone += 1
        else:
            if metric == "cosine":
                distance = {i: 1 - x[q] @ x[i] / np.linalg.norm(x[q]) / np.linalg.norm(x[i]) for i in later}
            else:
                distance = {i: np.linalg.norm(x[q] - x[i]) for i in later}
            nearer = [i for i in later if i != right[0] and distance[i] <= distance[right[0]]]
            scored.append((1 + len(nearer), len(later)))
    return scored, absent, alone


def average_precision_loop(ranks, ap):
    """Precision: as torchreid and most papers. Trapezoid: as the official Market-1501 code."""
    total = 0.0
    for i, rank in enumerate(ranks, 1):
        precision = i / rank
        before = 1.0 if rank == 1 else (i - 1) / (rank - 1)
        total += precision if ap == "precision" else (precision + before) / 2
    return total / len(ranks)


def cmc_loop(all_ranks, k):
    """The fraction of scored queries whose first right match is among the first k."""
    scored = [ranks for ranks in all_ranks if not isinstance(ranks, str)]
    return sum(ranks[0] <= k for ranks in scored) / len(scored)


def _in_full(x, metric="euclidean"):
    """Squared distances of all pairs, the same over the largest of its row, and every row's order, itself first."""
    x = np.asarray(x, dtype=np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    squared = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    d = np.zeros((n, n))
    for i in range(n):
        if squared[i].max() > 0:
            d[i] = squared[i] / squared[i].max()
    order = [[i, *sorted((j for j in range(n) if j != i), key=lambda j: (squared[i][j], j))] for i in range(n)]
    return squared, d, order


def k_reciprocal_encoding_dense(d, order, k1, k2):
    """V of k-reciprocal encoding, after its query expansion (Zhong et al., CVPR 2017, section 3)."""
    n = len(d)

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        near = reciprocal(i, k1)
        expanded = set(near)
        for j in near:
            reference = reciprocal(j, round(k1 / 2))
            if len(reference & near) > len(reference) * 2 / 3:
                expanded |= reference
        for j in expanded:
            v[i, j] = math.exp(-d[i, j])
        v[i] /= v[i].sum()
    return np.array([np.mean([v[j] for j in order[i][:k2]], axis=0) for i in range(n)])


def camera_aware_encoding_dense(d, order, cameras, k1_intra, k1_inter, k2_intra, k2_inter):
    """V of CA-Jaccard, after its query expansion (Chen et al., CVPR 2024)."""
    n = len(d)
    own = [[j for j in order[i] if j == i or cameras[j] == cameras[i] != -1] for i in range(n)]
    other = [[j for j in order[i] if j not in own[i]] for i in range(n)]
    v = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            intra = j in own[i][: k1_intra + 1] and i in own[j][: k1_intra + 1]
            inter = j in other[i][:k1_inter] and i in other[j][:k1_inter]
            if intra or inter:
                v[i, j] = math.exp(-d[i, j])
        v[i] /= v[i].sum()
    return np.array([np.mean([v[j] for j in own[i][:k2_intra] + other[i][:k2_inter]], axis=0) for i in range(n)])


def jaccard_dense(v, w):
    """One minus the overlap of every row of one with every row of the other."""
    return np.array([[1 - np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in w] for a in v])


def rerank_dense(query, gallery, k1, k2, lambda_value, metric="euclidean"):
    """k-reciprocal re-ranking with every matrix in full (Zhong et al., CVPR 2017, section 3)."""
    _, d, order = _in_full(np.concatenate([query, gallery]), metric)
    v = k_reciprocal_encoding_dense(d, order, k1, k2)
    jaccard = jaccard_dense(v[: len(query)], v[len(query) :])
    return (1 - lambda_value) * jaccard + lambda_value * d[: len(query), len(query) :]


def rerank_camera_aware_dense(query, gallery, cameras, k1_intra, k1_inter, k2_intra, k2_inter, lambda_value):
    """CA-Jaccard re-ranking with every matrix in full; `cameras` are the queries' and then the gallery's."""
    _, d, order = _in_full(np.concatenate([query, gallery]))
    v = camera_aware_encoding_dense(d, order, cameras, k1_intra, k1_inter, k2_intra, k2_inter)
    jaccard = jaccard_dense(v[: len(query)], v[len(query) :])
    return (1 - lambda_value) * jaccard + lambda_value * d[: len(query), len(query) :]


def rerank_within_dense(x, cameras, k1, k2, k1_intra, k2_intra, lambda_value, metric):
    """Re-ranked distances of a set to itself, its Jaccard distances, and the distances by the metric, in full."""
    squared, d, order = _in_full(x, metric)
    if cameras is None:
        v = k_reciprocal_encoding_dense(d, order, k1, k2)
    else:
        v = camera_aware_encoding_dense(d, order, cameras, k1_intra, k1, k2_intra, k2)
    jaccard = jaccard_dense(v, v)
    original = squared / 2 if metric == "cosine" else np.sqrt(squared)
    return (1 - lambda_value) * jaccard + lambda_value * (d + d.T) / 2, jaccard, original


def expand_loop(query, gallery, k, alpha, query_cameras=None, gallery_cameras=None, within=False):
    """α query expansion, one query at a time. `within`: query and gallery are one set, items do not find themselves."""
    query, gallery = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    out = np.zeros_like(query)
    for i in range(len(query)):
        others = [j for j in range(len(gallery)) if not (within and i == j)]
        if query_cameras is not None:
            others = [j for j in others if not gallery_cameras[j] == query_cameras[i] != -1]
        others.sort(key=lambda j: (((query[i] - gallery[j]) ** 2).sum(), j))
        total = query[i]
        for j in others[:k]:
            similarity = max(float(query[i] @ gallery[j]), 0.0)
            total = total + (1.0 if alpha == 0 else similarity**alpha) * gallery[j]
        length = np.linalg.norm(total)
        out[i] = total / length if length > 1e-12 else query[i]
    return out


def pairs_loop(features, pids, camids=None, metric="cosine", cross_camera=True, distractor=0):
    """(distance, identity, identity) of every pair that counts; the identity of a distractor is its row, below 0."""
    x = np.asarray(features, dtype=np.float64)
    who = [-2 - i if pid == distractor else int(pid) for i, pid in enumerate(pids)]
    out = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if -1 in (pids[i], pids[j]) or (pids[i] == pids[j] == distractor):
                continue
            if cross_camera and camids[i] == camids[j] != -1:
                continue
            if metric == "cosine":
                distance = 1 - x[i] @ x[j] / math.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))
            else:
                distance = math.sqrt(((x[i] - x[j]) ** 2).sum())
            out.append((distance, who[i], who[j]))
    return out


def weighted_tar_loop(pairs, weight, far):
    """TAR at FAR where identity a was drawn weight[a] times: pairs of a count w_a, of a and b w_a·w_b; nan if none."""
    impostor = sorted((d, weight[a] * weight[b]) for d, a, b in pairs if a != b)
    genuine = [(d, weight[a]) for d, a, b in pairs if a == b]
    allowed, taken, threshold = far * sum(w for _, w in impostor), 0.0, math.inf
    for distance, w in impostor:
        taken += w
        if taken > allowed:
            threshold = distance
            break
    total = sum(w for _, w in genuine)
    return sum(w for d, w in genuine if d < threshold) / total if total else math.nan


def open_set_loop(distances, query_pids, gallery_pids, query_camids, gallery_camids, rank, far, cross_camera=True):
    """(threshold, DIR) at a false-alarm rate, the numbers of mated and unmated queries."""
    mated, unmated = [], []
    for q, pid in enumerate(query_pids):
        if pid == -1:
            continue
        ranked = sorted(
            (distances[q][g], g)
            for g in range(len(gallery_pids))
            if gallery_pids[g] != -1
            and not (cross_camera and gallery_pids[g] == pid and gallery_camids[g] == query_camids[q] != -1)
        )
        right = [k for k, (_, g) in enumerate(ranked, 1) if gallery_pids[g] == pid]
        if not right:
            unmated.append(ranked[0][0] if ranked else math.inf)
        else:
            mated.append(ranked[right[0] - 1][0] if right[0] <= rank else math.inf)
    threshold = max((t for t in unmated if sum(u < t for u in unmated) <= far * len(unmated)), default=math.nan)
    found = sum(m < threshold for m in mated) / len(mated) if mated else math.nan
    return threshold, found, len(mated), len(unmated)


def separation_loop(
    features: np.ndarray, tracks: np.ndarray, times: np.ndarray, simultaneous: np.ndarray
) -> tuple[dict[int, tuple[float, float]], float]:
    """Return AUC and rank-1 of each scored track of at most 8 crops, pair by pair, and d' over all tracks."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    together = {(a, b) for a, b in simultaneous.tolist()} | {(b, a) for a, b in simultaneous.tolist()}
    scores = {}
    similar: list[list[tuple[float, float]]] = [[], []]  # similarity and weight, within and between tracks
    for track in sorted({int(number) for number in tracks}):
        rows = sorted(np.flatnonzero(tracks == track).tolist(), key=lambda row: (times[row], row))
        others = [row for row in range(len(tracks)) if (track, int(tracks[row])) in together]
        if len(rows) < 2 or not others:
            continue
        half, points, first = len(rows) // 2, [], []
        for part, seen in zip(similar, (rows[half:], others), strict=True):
            part += [(float(unit[a] @ unit[b]), 1 / half / len(seen)) for a in rows[:half] for b in seen]
        for query in rows[:half]:
            own = [float(unit[query] @ unit[row]) for row in rows[half:]]
            strange = [float(unit[query] @ unit[row]) for row in others]
            points += [1.0 if a > b else 0.5 if a == b else 0.0 for a in own for b in strange]
            first.append(float(max(own) > max(strange)))
        scores[track] = float(np.mean(points)), float(np.mean(first))
    means, variances = [], []
    for part in similar:
        values, weights = np.array(part).T
        means.append(np.average(values, weights=weights))
        variances.append(np.average((values - means[-1]) ** 2, weights=weights))
    return scores, float((means[0] - means[1]) / np.sqrt(np.mean(variances)))


def nearest_by_sorting(features: np.ndarray, k: int) -> np.ndarray:
    """The item itself, then its k nearest others (all others if fewer); equal distances in item order."""
    squared = ((features[:, None].astype(np.float64) - features[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, -1)
    return np.argsort(squared, axis=1, kind="stable")[:, : k + 1]
