"""Baselines without learning on a Market-1501 tree: `python -m tests.synthetic.baselines ROOT`.

A trained model must be far above these scores.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.data.layouts import load_benchmark
from reid.evaluation import RankingResult, evaluate


def raw_pixels(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 32×16 pixels, normalised to mean 0 and standard deviation 1."""
    small = cv2.resize(image, (16, 32), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return (small - small.mean()) / (small.std() + 1e-6)


def grey_world_pixels(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Like `raw_pixels`, with each colour channel normalised separately, which removes a camera's tint."""
    small = cv2.resize(image, (16, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    return ((small - small.mean((0, 1))) / (small.std((0, 1)) + 1e-6)).ravel()


def _stripes(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    found = []
    for stripe in np.array_split(hsv, 6, axis=0):
        middle = stripe[:, stripe.shape[1] // 5 : -stripe.shape[1] // 5]
        found.append(cv2.calcHist([middle], [0, 1, 2], None, [8, 4, 4], [0, 180, 0, 256, 0, 256]).ravel())
    # The root makes the cosine the Bhattacharyya coefficient of the histograms.
    return np.sqrt(np.concatenate(found))


def histogram(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return HSV histograms (8×4×4) of six horizontal stripes, as square roots."""
    return _stripes(image)


def grey_world_histogram(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Like `histogram`, after each colour channel of the crop is normalised."""
    values = image.astype(np.float32)
    values = 128 + 50 * (values - values.mean((0, 1))) / (values.std((0, 1)) + 1e-6)
    return _stripes(np.clip(values, 0, 255).astype(np.uint8))


BASELINES = {
    "raw pixels": raw_pixels,
    "grey-world pixels": grey_world_pixels,
    "HSV histogram": histogram,
    "grey-world HSV histogram": grey_world_histogram,
}


def score(root: str) -> dict[str, RankingResult]:
    """Return the cross-camera result of every baseline (cosine distance)."""
    benchmark = load_benchmark("market1501", root)
    query, gallery = benchmark.query, benchmark.gallery
    images = [[cv2.imread(path) for path in part.paths] for part in (query, gallery)]
    scores = {}
    for name, features in BASELINES.items():
        q, g = (np.stack([features(image) for image in part]).astype(np.float32) for part in images)
        scores[name] = evaluate(q, g, query.pids, gallery.pids, query.camids, gallery.camids, metric="cosine")
    return scores


if __name__ == "__main__":
    for name, result in score(sys.argv[1]).items():
        print(f"{name:26s} mAP {100 * result.mAP:5.1f}  rank-1 {100 * result.rank(1):5.1f}")
