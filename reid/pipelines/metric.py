"""Fit a distance on labelled embeddings, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reid.core.console import warn
from reid.core.errors import DataError
from reid.embedding.learned_metric import LearnedMetric
from reid.embedding.table import Embeddings
from reid.evaluation.features import prepare_one
from reid.evaluation.pairs import DISTRACTOR
from reid.losses import kissme, xqda
from reid.pipelines.settings import MetricSettings


def fit_metric_files(files: Sequence[Path], out: Path, settings: MetricSettings | None = None) -> LearnedMetric:
    """Fit a distance on embedding files taken together, and write it as an .npz file.

    Raises:
        DataError: as `fit_metric`, or `out` is not an .npz file.
    """
    if out.suffix != ".npz":
        raise DataError(f"--out {out} must end in .npz.")
    metric = fit_metric(Embeddings.concat([Embeddings.load(path) for path in files]), settings)
    metric.save(out)
    return metric


def fit_metric(table: Embeddings, settings: MetricSettings | None = None) -> LearnedMetric:
    """Fit a distance on the labelled rows, normalised to length 1.

    Rows with pid -1, and with pid 0 (distractors) unless the pids have names, are left out and counted in a warning.

    Raises:
        DataError: there is no pid or camid column, a feature has no direction (zero, not finite, above 1e19), or as
            `kissme` and `xqda`.
    """
    settings = settings or MetricSettings()
    if table.pids is None:
        raise DataError("A metric is learned from labels, but the embeddings have no pid column. Add one.")
    if table.camids is None and not settings.any_camera:
        raise DataError(
            "The embeddings have no camid column, so pairs across cameras are unknown. Add the column, or learn from "
            "all pairs with --any-camera (any_camera=True)."
        )
    unlabelled = (table.pids == -1) | ((table.pids == DISTRACTOR) & ("pid_names" not in table.meta))
    if unlabelled.any():
        warn(f"{int(unlabelled.sum()):,} of {len(table):,} rows are left out: their pid is -1 or 0 (distractors).")
    known = table.check().take(~unlabelled)
    assert known.pids is not None
    fit = {"kissme": kissme, "xqda": xqda}[settings.method]
    camids = None if settings.any_camera else known.camids
    features = prepare_one(known.features, "labelled", "cosine").numpy()
    layer = fit(features, known.pids, camids, dimensions=settings.dimensions, ridge=settings.ridge)
    about = {
        "method": settings.method,
        "model": str(table.meta.get("model") or ""),
        "rows": len(known),
        "identities": len(np.unique(known.pids)),
        "pairs": "all pairs" if settings.any_camera else "pairs across cameras",
        "ridge": settings.ridge,
    }
    return LearnedMetric(layer.factor.detach().numpy(), about)
