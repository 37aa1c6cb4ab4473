"""Losses and miners, one pair or triplet at a time. Arrays in, Python floats out; float64 throughout."""

from __future__ import annotations

import itertools
import math

import numpy as np


def pairwise_distances_loop(x, y, distance):
    """One pair at a time. A row of zeros has no direction: its cosine distance to every other row is 1/2."""
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
            positives = [p for p in positives if not camids[p] == camids[a] != -1] or positives
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
    """Chances of an anchor's negatives, by the formula of Wu et al. (2017), section 4."""
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
            across = [i for i in positives if not cameras[i] == cameras[a] != -1]
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
    """Mean over positive pairs of −log of the positive's fraction against the anchor's negatives."""
    s, losses = _cosines(x, y), []
    for a, (positives, negatives) in enumerate(pairs):
        against = sum(math.exp(s[a][n] / temperature) for n in negatives)
        for p in positives if negatives else []:
            own = math.exp(s[a][p] / temperature)
            losses.append(-math.log(own / (own + against)))
    return _mean_of(losses)


def supcon_loss_loop(x, y, pairs, temperature):
    """Mean over anchors with both of the mean over positives of −log of its fraction among all others."""
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
        if -1 in (pids[i], pids[j]) or (camids is not None and camids[i] == camids[j] != -1):
            continue
        same = pids[i] == pids[j]
        sums[same] = sums[same] + np.outer(x[i] - x[j], x[i] - x[j])
        counts[same] += 1
    return sums[True] / counts[True], sums[False] / counts[False]


def centroid_loop(x, pids, rows, weights, temperature, negatives):
    """Loss against rows of (identity, camera, centroid), crop by crop, with a weight for each identity."""
    total = weight = 0.0
    for crop, pid in zip(np.asarray(x, np.float64), pids, strict=True):
        cosine = [
            float(crop @ m) / max(np.linalg.norm(crop) * np.linalg.norm(m), 1e-300) / temperature for *_, m in rows
        ]
        own = [s for s, (label, *_) in zip(cosine, rows, strict=True) if label == pid]
        others = sorted((s for s, (label, *_) in zip(cosine, rows, strict=True) if label != pid), reverse=True)
        others = others[:negatives] if negatives else others
        if own and others:
            among = sum(math.exp(s) for s in others)
            total += weights[pid] * np.mean([-math.log(math.exp(s) / (math.exp(s) + among)) for s in own])
            weight += weights[pid]
    return total / weight if weight else 0.0
