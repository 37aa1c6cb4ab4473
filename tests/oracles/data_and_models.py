"""Augmentation, samplers, offline mining, pooling and preprocessing, one element at a time."""

from __future__ import annotations

import math

import numpy as np


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


def offline_triplets_loop(features, pids, kind, camids, margin, draws):
    """(anchor, positive, negative) rows; `draws [N, 2]` in 0..1 are what the positive and the negative are drawn by."""
    points = np.asarray(features, dtype=np.float64)
    found = []
    for a in range(len(points)):
        positives = [p for p in range(len(points)) if p != a and pids[p] == pids[a]]
        negatives = [n for n in range(len(points)) if pids[n] != pids[a]]
        if camids is not None:
            positives = [p for p in positives if not camids[p] == camids[a] != -1] or positives
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
