"""Embeddings of the Market-1501 test split by two public models, if they are in ../shared/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reid.evaluation import evaluate

FOLDER = Path(__file__).parents[2].parent / "shared" / "data"


def load(name):
    path = FOLDER / f"market1501_test_embeddings_{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    columns = ("features", "pids", "camids")
    with np.load(path) as arrays:
        return [arrays[f"{part}_{column}"] for column in columns for part in ("query", "gallery")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ap", "percent"),
    [
        pytest.param("intel0288", "precision", (59.78, 16.56, 86.07, 94.42, 96.35), id="intel0288, precision"),
        pytest.param("intel0288", "trapezoid", (58.86, 16.56, 86.07, 94.42, 96.35), id="intel0288, trapezoid"),
        pytest.param("osnet_x0_25_msmt17", "precision", (33.64, 6.73, 59.89, 77.49, 83.08), id="osnet, precision"),
        pytest.param("osnet_x0_25_msmt17", "trapezoid", (32.41, 6.73, 59.89, 77.49, 83.08), id="osnet, trapezoid"),
    ],
)
def test_scores_on_real_embeddings(name, ap, percent):
    result = evaluate(*load(name), ap=ap)
    got = [100 * score for score in (result.mAP, result.mINP, *map(result.rank, (1, 5, 10)))]
    assert got == pytest.approx(percent, abs=0.02)
    assert (result.n_valid, result.n_dropped) == (3368, 0)
