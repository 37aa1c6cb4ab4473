"""Slow, obvious versions of what the package does fast. Loops on purpose; written from the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

# Losses. Arrays in, Python floats out; float64 throughout.


def pairwise_distances_loop(x, y, distance):
    """One pair at a time. A row of zeros has no direction: under cosine it stands 1/2 from every other row."""
    out = np.zeros((len(x), len(y)))
    for i in range(len(x)):
        for j in range(len(y)):
            a, b = np.asarray(x[i], dtype=np.float64), np.asarray(y[j], dtype=np.float64)
            if distance == "euclidean":
                out[i, j] = math.sqrt(sum((a - b) ** 2))
            elif distance == "squared_euclidean":
                out[i, j] = sum((a - b) ** 2)
            elif distance == "manhattan":
                out[i, j] = sum(abs(a - b))
            elif distance.startswith("minkowski:"):
                p = float(distance.partition(":")[2])
                out[i, j] = max(abs(a - b)) if math.isinf(p) else sum(abs(a - b) ** p) ** (1 / p)
            elif a.any() and b.any():
                out[i, j] = 1 - sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))
            else:
                out[i, j] = 0.5 * (a.any() or b.any())
    return out


def batch_hard_loop(distances, pids):
    """{anchor: (hardest positive, hardest negative)} of the anchors that have both."""
    found = {}
    for a in range(len(pids)):
        positives = [distances[a][p] for p in range(len(pids)) if p != a and pids[p] == pids[a]]
        negatives = [distances[a][n] for n in range(len(pids)) if pids[n] != pids[a]]
        if positives and negatives:
            found[a] = (max(positives), min(negatives))
    return found


def candidates_loop(pids, camids=None):
    """{anchor: (its positives, its negatives)} of the anchors that have both; with cameras, others' positives first."""
    found = {}
    for a in range(len(pids)):
        positives = [p for p in range(len(pids)) if p != a and pids[p] == pids[a]]
        if camids is not None:
            positives = [p for p in positives if camids[p] != camids[a]] or positives
        negatives = [n for n in range(len(pids)) if pids[n] != pids[a]]
        if positives and negatives:
            found[a] = (positives, negatives)
    return found


def mined_loop(mining, distances, pids, camids=None):
    """[(anchor, d_ap, d_an), …] of the miners that draw nothing."""
    mined = []
    for a, (positives, negatives) in candidates_loop(pids, camids).items():
        d_ap, d_an = [distances[a][p] for p in positives], [distances[a][n] for n in negatives]
        if mining == "batch_all":
            mined += [(a, ap, an) for ap in d_ap for an in d_an]
        elif mining == "batch_hard":
            mined.append((a, max(d_ap), min(d_an)))
        elif mining == "easy_positive":
            mined.append((a, min(d_ap), min(d_an)))
        elif mining == "hardest_negative":
            mined += [(a, ap, min(d_an)) for ap in d_ap]
        elif mining == "semi_hard":
            mined += [(a, ap, min((an for an in d_an if an > ap), default=max(d_an))) for ap in d_ap]
        elif mining == "weighted":
            up, down = [math.exp(d - max(d_ap)) for d in d_ap], [math.exp(min(d_an) - d) for d in d_an]
            ap = sum(w * d for w, d in zip(up, d_ap, strict=True)) / sum(up)
            an = sum(w * d for w, d in zip(down, d_an, strict=True)) / sum(down)
            mined.append((a, ap, an))
    return mined


def triplet_loss_loop(features, pids, margin, distance, mining="batch_hard", reduction="mean", camids=None):
    """The triplet loss of what `mined_loop` gives; 0 without any triplet."""
    mined = mined_loop(mining, pairwise_distances_loop(features, features, distance), pids, camids)
    if margin is None:
        losses = [math.log1p(math.exp(-abs(ap - an))) + max(0.0, ap - an) for _, ap, an in mined]
    else:
        losses = [max(0.0, margin + ap - an) for _, ap, an in mined]
    if reduction == "sum":
        return sum(losses)
    if reduction == "active":
        losses = [loss for loss in losses if loss > 0]
    return sum(losses) / len(losses) if losses else 0.0


def distance_weights_loop(features, anchor, negatives, nearest=0.5, farthest=1.4):
    """Chances of an anchor's negatives, in the words of Wu et al. (2017), section 4."""
    rows = [np.asarray(row, dtype=np.float64) / np.linalg.norm(row) for row in features]
    n = len(rows[0])
    u = [max(nearest, np.linalg.norm(rows[anchor] - rows[other])) for other in negatives]
    if min(u) >= farthest:
        return [1 / len(u)] * len(u)
    density = [d ** (n - 2) * (1 - d * d / 4) ** ((n - 3) / 2) if d < farthest else math.inf for d in u]
    weights = [1 / q for q in density]
    return [w / sum(weights) for w in weights]


def smoothed_cross_entropy_loop(logits, labels, epsilon):
    """Target 1 − ε + ε/C for the true class, ε/C for the others."""
    total = 0.0
    for row, label in zip(np.asarray(logits, dtype=np.float64), labels, strict=True):
        log_probability = row - math.log(sum(math.exp(z) for z in row))
        for c in range(len(row)):
            target = epsilon / len(row) + (1 - epsilon if c == label else 0.0)
            total -= target * log_probability[c]
    return total / len(labels)


def compared_loop(pids, camids=None, other_pids=(), other_camids=()):
    """For each anchor the rows of its positives and negatives among the batch followed by the others, as lists.

    With cameras an anchor that has a positive from another camera keeps only such ones.
    """
    everybody = [*pids, *other_pids]
    cameras = None if camids is None else [*camids, *other_camids]
    out = []
    for a, pid in enumerate(pids):
        positives = [i for i, other in enumerate(everybody) if other == pid and i != a]
        negatives = [i for i, other in enumerate(everybody) if other != pid]
        if cameras is not None:
            across = [i for i in positives if cameras[i] != cameras[a]]
            positives = across or positives
        out.append((positives, negatives))
    return out


def _mean_of(values):
    return sum(values) / len(values) if values else 0.0


def _cosines(x, y):
    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) if a.any() and b.any() else 0.0

    return [[cosine(a, b) for b in y] for a in x]


def contrastive_loss_loop(x, y, pairs, margin, positive_margin, distance, power, reduction):
    """Mean over positive pairs of max(0, d − m₊)^q/q plus mean over negative pairs of max(0, m − d)^q/q."""
    d = pairwise_distances_loop(x, y, distance)
    pull = [max(0.0, d[a][i] - positive_margin) ** power / power for a, (some, _) in enumerate(pairs) for i in some]
    push = [max(0.0, margin - d[a][i]) ** power / power for a, (_, some) in enumerate(pairs) for i in some]
    if reduction == "active":
        pull, push = [v for v in pull if v > 0], [v for v in push if v > 0]
    return _mean_of(pull) + _mean_of(push)


def circle_loss_loop(x, y, pairs, margin, gamma):
    """Mean over anchors with both kinds of pair of log(1 + Σ_n exp(…) Σ_p exp(…))."""
    s, losses = _cosines(x, y), []
    for a, (positives, negatives) in enumerate(pairs):
        if positives and negatives:
            push = [gamma * max(0.0, s[a][n] + margin) * (s[a][n] - margin) for n in negatives]
            pull = [-gamma * max(0.0, 1 + margin - s[a][p]) * (s[a][p] - 1 + margin) for p in positives]
            exponent = np.logaddexp.reduce(push) + np.logaddexp.reduce(pull)
            losses.append(float(np.logaddexp(0.0, exponent)))
    return _mean_of(losses)


def infonce_loss_loop(x, y, pairs, temperature):
    """Mean over positive pairs of −log of the positive's share against the anchor's negatives."""
    s, losses = _cosines(x, y), []
    for a, (positives, negatives) in enumerate(pairs):
        against = sum(math.exp(s[a][n] / temperature) for n in negatives)
        for p in positives if negatives else []:
            own = math.exp(s[a][p] / temperature)
            losses.append(-math.log(own / (own + against)))
    return _mean_of(losses)


def supcon_loss_loop(x, y, pairs, temperature):
    """Mean over anchors with both of the mean over positives of −log of its share among everybody."""
    s, losses = _cosines(x, y), []
    for a, (positives, negatives) in enumerate(pairs):
        if positives and negatives:
            total = sum(math.exp(s[a][i] / temperature) for i in positives + negatives)
            losses.append(_mean_of([-math.log(math.exp(s[a][p] / temperature) / total) for p in positives]))
    return _mean_of(losses)


def hard_triplet_pairs_loop(x, y, pairs, margin):
    """Mean over anchors with both of the triplet of the farthest positive and the nearest negative."""
    d, losses = pairwise_distances_loop(x, y, "euclidean"), []
    for a, (positives, negatives) in enumerate(pairs):
        if positives and negatives:
            difference = max(d[a][p] for p in positives) - min(d[a][n] for n in negatives)
            losses.append(math.log1p(math.exp(difference)) if margin is None else max(0.0, difference + margin))
    return _mean_of(losses)


def quadruplet_loss_loop(features, pids, margin, second_margin, distance, camids=None):
    """Every quadruplet of each anchor is looked at, and the hardest taken."""
    d, losses, rows = pairwise_distances_loop(features, features, distance), [], range(len(pids))
    for a, (positives, negatives) in enumerate(compared_loop(pids, camids)):
        if positives and negatives:
            farthest = max(d[a][p] for p in positives)
            loss = max(0.0, farthest - min(d[a][n] for n in negatives) + margin)
            elsewhere = [d[i][j] for i in rows for j in rows if len({pids[a], pids[i], pids[j]}) == 3]
            if elsewhere:
                loss += max(0.0, farthest - min(elsewhere) + second_margin)
            losses.append(loss)
    return _mean_of(losses)


def center_loss_loop(features, labels, centers, rate):
    """The loss, and where the centres are afterwards."""
    x = np.asarray(features, dtype=np.float64)
    before = np.asarray(centers, dtype=np.float64)
    after = before.copy()
    for c in range(len(before)):
        own = [i for i in range(len(x)) if labels[i] == c]
        after[c] -= rate * sum((before[c] - x[i] for i in own), np.zeros(x.shape[1])) / (1 + len(own))
    return _mean_of([float(((x[i] - before[labels[i]]) ** 2).sum()) / 2 for i in range(len(x))]), after


def angular_head_loop(features, labels, weight, margin, scale, kind, epsilon=0.0):
    """Cross-entropy of scaled cosines, the true one with its margin, by angles."""
    logits = _cosines(np.asarray(features, dtype=np.float64), np.asarray(weight, dtype=np.float64))
    for row, label in zip(logits, labels, strict=True):
        angle = math.acos(max(-1.0, min(1.0, row[label])))
        if kind == "cosface":
            row[label] -= margin
        elif angle + margin <= math.pi:
            row[label] = math.cos(angle + margin)
        else:
            row[label] -= margin * math.sin(margin)
    return smoothed_cross_entropy_loop(scale * np.array(logits), labels, epsilon) if logits else 0.0


def pair_covariances_loop(features, pids, camids=None):
    """Mean of (x − y)(x − y)ᵀ over the pairs of one person and over the pairs of two, one pair at a time."""
    x, sums, counts = np.asarray(features, dtype=np.float64), {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for i, j in itertools.combinations(range(len(x)), 2):
        if -1 in (pids[i], pids[j]) or (camids is not None and camids[i] == camids[j]):
            continue
        same = pids[i] == pids[j]
        sums[same] = sums[same] + np.outer(x[i] - x[j], x[i] - x[j])
        counts[same] += 1
    return sums[True] / counts[True], sums[False] / counts[False]


def pad_then_crop(image, mirror, dy, dx, pad):
    """Mirror, pad with black, take the window at (dy, dx): pixel by pixel."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            sy, sx = y + dy - pad, x + dx - pad
            if 0 <= sy < height and 0 <= sx < width:
                out[y, x] = image[sy, width - 1 - sx if mirror else sx]
    return out


def erased_boxes(size, n, low, high, r, rng):
    """(top, left, height, width) of `n` random erasings, as "Bag of Tricks" draws them, one at a time `[n, 4]`."""
    height, width = size
    boxes = []
    while len(boxes) < n:
        area = rng.uniform(low, high) * height * width
        ratio = rng.uniform(r, 1 / r)
        tall, wide = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if tall < height and wide < width:
            boxes.append(
                (
                    rng.integers(0, height - tall, endpoint=True),
                    rng.integers(0, width - wide, endpoint=True),
                    tall,
                    wide,
                )
            )
    return np.array(boxes)


def recolour(image, brightness=1.0, contrast=1.0, saturation=1.0):
    """Brightness, contrast about the mean gray, saturation about each pixel's gray; rounded and clipped once."""
    weights = np.array([0.299, 0.587, 0.114])
    pixels = image * brightness
    pixels = contrast * pixels + (1 - contrast) * (pixels @ weights).mean()
    gray = (pixels @ weights)[..., None]
    return np.clip(np.rint(saturation * pixels + (1 - saturation) * gray), 0, 255)


def fewest_steps(pids, ids_per_step, crops_per_id):
    """The fewest P×K steps that can show every image: each step shows at most K images of an identity."""
    groups = [-(-pids.count(pid) // crops_per_id) for pid in set(pids)]
    return max(-(-sum(groups) // ids_per_step), max(groups))


# Evaluation. One query at a time, whole rows sorted; float64 throughout.


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
            if gallery_pids[g] == -1 or (cross_camera and same and gallery_camids[g] == query_camids[q]):
                continue
            if excluded is not None and excluded[q][g]:
                continue
            rank += 1
            if same:
                ranks.append(rank)
        mine = [g for g in ranked if gallery_pids[g] == query_pids[q]]
        if ranks:
            out.append(ranks)
        elif query_pids[q] == -1:
            out.append("no identity (pid -1)")
        elif not mine:
            out.append("identity not in gallery")
        elif cross_camera and all(gallery_camids[g] == query_camids[q] for g in mine):
            out.append("only in the query's own camera")
        else:
            out.append("all its matches are in the exclusion mask")
    return out


def camera_pair_loop(distances, query_pids, gallery_pids, query_camids, gallery_camids, cross_camera, a, b):
    """DistributedContext of the right matches of the queries of camera a, in the gallery of camera b alone."""
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
            if gallery_pids[g] == -1 or (cross_camera and same and gallery_camids[g] == query_camids[q]):
                continue
            first.setdefault(gallery_pids[g], g)
        if query_pids[q] in first:
            ranked = sorted(first.values(), key=lambda g: (distances[q][g], g))
            out.append(ranked.index(first[query_pids[q]]) + 1)
    return out


def average_precision_loop(ranks, ap):
    """Precision: as torchreid and most papers. Trapezoid: as the official Market-1501 code."""
    total = 0.0
    for i, rank in enumerate(ranks, 1):
        precision = i / rank
        before = 1.0 if rank == 1 else (i - 1) / (rank - 1)
        total += precision if ap == "precision" else (precision + before) / 2
    return total / len(ranks)


def cmc_loop(all_ranks, k):
    """The share of scored queries whose first right match is among the first k."""
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
            theirs = reciprocal(j, round(k1 / 2))
            if len(theirs & near) > len(theirs) * 2 / 3:
                expanded |= theirs
        for j in expanded:
            v[i, j] = math.exp(-d[i, j])
        v[i] /= v[i].sum()
    return np.array([np.mean([v[j] for j in order[i][:k2]], axis=0) for i in range(n)])


def camera_aware_encoding_dense(d, order, cameras, k1_intra, k1_inter, k2_intra, k2_inter):
    """V of CA-Jaccard, after its query expansion (Chen et al., CVPR 2024)."""
    n = len(d)
    own = [[j for j in order[i] if cameras[j] == cameras[i]] for i in range(n)]
    other = [[j for j in order[i] if cameras[j] != cameras[i]] for i in range(n)]
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
            others = [j for j in others if gallery_cameras[j] != query_cameras[i]]
        others.sort(key=lambda j: (((query[i] - gallery[j]) ** 2).sum(), j))
        total = query[i]
        for j in others[:k]:
            similarity = max(float(query[i] @ gallery[j]), 0.0)
            total = total + (1.0 if alpha == 0 else similarity**alpha) * gallery[j]
        length = np.linalg.norm(total)
        out[i] = total / length if length > 1e-12 else query[i]
    return out


# Models. Arrays in, float64 out.


def pool_loop(x, pooling, p=3.0, eps=1e-6):
    """One channel of one image at a time: [B, C, h, w] → [B, C]."""
    out = np.zeros(x.shape[:2])
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = [float(v) for v in x[b, c].ravel()]
            if pooling == "avg":
                out[b, c] = sum(values) / len(values)
            elif pooling == "max":
                out[b, c] = max(values)
            else:
                out[b, c] = (sum(max(v, eps) ** p for v in values) / len(values)) ** (1 / p)
    return out


def preprocess_loop(images, mean, std):
    """One pixel at a time: uint8 [B, H, W, 3] → [B, 3, H, W], (x / 255 − mean) / std."""
    b, h, w, _ = images.shape
    out = np.zeros((b, 3, h, w))
    for i in range(b):
        for y in range(h):
            for x in range(w):
                for c in range(3):
                    out[i, c, y, x] = (images[i, y, x, c] / 255 - mean[c]) / std[c]
    return out


# Tracks. The truth and the predictions are `Tracks` with the same cameras.


def trackeval_scores(truth, predicted, iou=0.5):
    """{metric: {field: value}} of trackeval over (camera, frame) timesteps; skips the test where it is absent."""
    pytest.importorskip("trackeval", reason="trackeval is not installed (pip install -e .[dev])")
    from trackeval.datasets._base_dataset import _BaseDataset
    from trackeval.metrics import CLEAR, HOTA, Identity

    sides = (truth, predicted)
    steps = sorted({(c, f) for side in sides for c, f in zip(side.camera.tolist(), side.frame.tolist(), strict=True)})
    numbers = [{name: i for i, name in enumerate(np.unique(side.track).tolist())} for side in sides]
    ids, similarity = ([], []), []
    for camera, frame in steps:
        boxes = []
        for side, number, out in zip(sides, numbers, ids, strict=True):
            here = (side.camera == camera) & (side.frame == frame)
            out.append(np.array([number[name] for name in side.track[here].tolist()], dtype=int))
            boxes.append(side.boxes[here])
        similarity.append(_BaseDataset._calculate_box_ious(*boxes))
    data = {
        "num_timesteps": len(steps),
        "gt_ids": ids[0],
        "tracker_ids": ids[1],
        "similarity_scores": similarity,
        "num_gt_ids": len(numbers[0]),
        "num_tracker_ids": len(numbers[1]),
        "num_gt_dets": len(truth),
        "num_tracker_dets": len(predicted),
    }
    settings = {"THRESHOLD": iou, "PRINT_CONFIG": False}
    metrics = {"HOTA": HOTA(), "CLEAR": CLEAR(settings), "Identity": Identity(settings)}
    return {name: metric.eval_sequence(data) for name, metric in metrics.items()}


def cluster_scores_loop(true, found):
    """Pairs and B³ one pair and one item at a time: {name: value}."""
    n = len(true)
    pairs = [(true[i] == true[j], found[i] == found[j]) for i in range(n) for j in range(i)]
    right = sum(a and b for a, b in pairs)
    claimed, there = sum(b for _, b in pairs), sum(a for a, _ in pairs)
    precisions, recalls = [], []
    for i in range(n):
        cluster = {j for j in range(n) if found[j] == found[i]}
        person = {j for j in range(n) if true[j] == true[i]}
        precisions.append(len(cluster & person) / len(cluster))
        recalls.append(len(cluster & person) / len(person))
    p, r = sum(precisions) / n, sum(recalls) / n
    people = {frozenset(j for j in range(n) if true[j] == t) for t in set(true)}
    clusters = {frozenset(j for j in range(n) if found[j] == f) for f in set(found)}
    return {
        "items": n,
        "true_identities": len(people),
        "found_identities": len(clusters),
        "exact_identities": len(people & clusters),
        "pair_precision": right / claimed if claimed else 1,
        "pair_recall": right / there if there else 1,
        "pair_f1": 2 * right / (claimed + there) if claimed + there else 1,
        "b3_precision": p,
        "b3_recall": r,
        "b3_f1": 2 * p * r / (p + r),
    }


def box_iou_loop(a, b):
    """IoU of two boxes x, y, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def identity_true_positives_loop(truth, predicted, iou):
    """IDTP by trying every pairing of a few identities; rows are (camera, frame, id, box)."""
    people, ids = sorted({row[2] for row in truth}), sorted({row[2] for row in predicted})
    shared = {(t, p): 0 for t in people for p in ids}
    for a in truth:
        for b in predicted:
            if a[:2] == b[:2] and box_iou_loop(a[3], b[3]) >= iou:
                shared[a[2], b[2]] += 1
    alone = [None] * len(people)
    return max(
        sum(shared[t, p] for t, p in zip(people, chosen, strict=False) if p is not None)
        for chosen in set(itertools.permutations([*ids, *alone], len(people)))
    )


def multi_camera_loop(truth, predicted, iou):
    """(IDTP, true boxes, predicted boxes, people) over people in two or more cameras; rows as above.

    A predicted identity goes with the person on whom most of its boxes lie; with one who is kept, in a tie.
    """
    kept = {t for t in {row[2] for row in truth} if len({row[0] for row in truth if row[2] == t}) > 1}
    stays = set()
    for identity in {row[2] for row in predicted}:
        votes = {}
        for b in predicted:
            if b[2] == identity:
                near = [(box_iou_loop(a[3], b[3]), -a[2]) for a in truth if a[:2] == b[:2]]
                if near and max(near)[0] >= iou:
                    person = -max(near)[1]
                    votes[person] = votes.get(person, 0) + 1
        best = [t for t in votes if votes[t] == max(votes.values())]
        if not votes or kept & set(best):
            stays.add(identity)
    a, b = [row for row in truth if row[2] in kept], [row for row in predicted if row[2] in stays]
    return (identity_true_positives_loop(a, b, iou) if a and b else 0), len(a), len(b), len(kept)


# Verification and open set. One pair or one query at a time.


def pairs_loop(features, pids, camids=None, metric="cosine", cross_camera=True, distractor=0):
    """(distance, identity, identity) of every pair that counts; the identity of a distractor is its row, below 0."""
    x = np.asarray(features, dtype=np.float64)
    who = [-2 - i if pid == distractor else int(pid) for i, pid in enumerate(pids)]
    out = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if -1 in (pids[i], pids[j]) or (pids[i] == pids[j] == distractor):
                continue
            if cross_camera and camids[i] == camids[j]:
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
            and not (cross_camera and gallery_pids[g] == pid and gallery_camids[g] == query_camids[q])
        )
        right = [k for k, (_, g) in enumerate(ranked, 1) if gallery_pids[g] == pid]
        if not right:
            unmated.append(ranked[0][0] if ranked else math.inf)
        else:
            mated.append(ranked[right[0] - 1][0] if right[0] <= rank else math.inf)
    threshold = max((t for t in unmated if sum(u < t for u in unmated) <= far * len(unmated)), default=math.nan)
    found = sum(m < threshold for m in mated) / len(mated) if mated else math.nan
    return threshold, found, len(mated), len(unmated)


def offline_triplets_loop(features, pids, kind, camids, margin, draws):
    """(anchor, positive, negative) rows; `draws [N, 2]` in 0..1 are what the positive and the negative are drawn by."""
    points = np.asarray(features, dtype=np.float64)
    found = []
    for a in range(len(points)):
        positives = [p for p in range(len(points)) if p != a and pids[p] == pids[a]]
        negatives = [n for n in range(len(points)) if pids[n] != pids[a]]
        if camids is not None:
            positives = [p for p in positives if camids[p] != camids[a]] or positives
        if not positives or not negatives:
            continue
        distance = [math.dist(points[a], other) for other in points]
        p = positives[int(draws[a][0] * len(positives))]
        n = negatives[int(draws[a][1] * len(negatives))]
        if kind == "hard":
            p = max(positives, key=lambda row: (distance[row], -row))
            n = min(negatives, key=lambda row: (distance[row], row))
        if kind == "semi_hard":
            inside = [row for row in negatives if distance[p] < distance[row] < distance[p] + margin]
            if not inside:
                continue
            n = min(inside, key=lambda row: (distance[row], row))
        found.append((a, p, n))
    return found


def nearest_identities_loop(features, pids, k):
    """The identities nearest to each, and all distances between their centroids."""
    points = np.asarray(features, dtype=np.float64)
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    centroids = []
    for pid in sorted(set(pids.tolist())):
        mean = np.mean([point for point, own in zip(points, pids, strict=True) if own == pid], axis=0)
        centroids.append(mean / np.linalg.norm(mean))
    distances = [[math.dist(one, other) for other in centroids] for one in centroids]
    nearest = [
        sorted((other for other in range(len(row)) if other != own), key=lambda other: (row[other], other))[:k]
        for own, row in enumerate(distances)
    ]
    return nearest, distances
