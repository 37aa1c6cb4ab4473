"""A learned metric on disk: one NPZ of plain arrays, and what it makes of a table of embeddings."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.atomic import atomic_file
from reid.core.errors import ReidError
from reid.embedding.table import Embeddings

FORMAT = 1


@dataclass(frozen=True)
class LearnedMetric:
    """A linear map of features of length 1, after which they are made of length 1 again and compared by cosine."""

    factor: NDArray[np.float32]
    """L, `[R, D]`."""
    about: Mapping[str, Any]
    """Plain JSON values: `method`, `model` (whose features it is of; empty if unknown) and what it was fitted on."""

    @property
    def id(self) -> str:
        """The method and a digest of the numbers."""
        return f"{self.about['method']}:{hashlib.sha256(self.factor.tobytes()).hexdigest()[:8]}"

    def transform(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[N, D]` to `[N, R]`, each of length 1; a row of zeros stays zeros, NaN stays NaN."""
        return unit(unit(features) @ self.factor.T)

    def describe(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """What the meta of an `Embeddings` becomes: another model in name, so that no calibration is taken for its own.

        Raises:
            ReidError: it was fitted on features of another model.
        """
        model, fitted = str(meta.get("model") or ""), str(self.about.get("model") or "")
        if model and fitted and model != fitted:
            raise ReidError(
                f"The learned metric was fitted on features of model {fitted!r}, and these are of {model!r}. Fit it "
                "anew with `reid fit-metric` on features of this model."
            )
        changed = {"dimension": len(self.factor), "metric": "cosine", "normalised": True, "learned_metric": self.id}
        return {**meta, **changed, "model": f"{model}+{self.id}"}

    def apply(self, table: Embeddings) -> Embeddings:
        """The table with its features transformed; the other columns as they are.

        Raises:
            ReidError: features of another size or of another model.
        """
        if table.dimension != self.factor.shape[1]:
            raise ReidError(
                f"The learned metric was fitted on features of {self.factor.shape[1]} numbers, and these have "
                f"{table.dimension}. Fit it anew with `reid fit-metric` on features of this model."
            )
        changed = copy(table)
        changed.features = self.transform(table.features)
        changed.meta = self.describe(table.meta)
        return changed


def unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (features / np.where(norms == 0, 1, norms)).astype(np.float32)
    return scaled


def save_metric(metric: LearnedMetric, path: str | Path) -> Path:
    """Write it as NPZ, whole or not at all, and return the path.

    Raises:
        ReidError: it cannot be written, or the name does not end in .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ReidError(f"A learned metric is an .npz file; got {path}.")
    about = json.dumps({"format": FORMAT, **metric.about}, allow_nan=False)
    with atomic_file(path) as temporary:
        np.savez(temporary, factor=metric.factor.astype(np.float32), about=np.array(about))
    return path


def load_metric(path: str | Path) -> LearnedMetric:
    """Read what `save_metric` wrote. Nothing in it is unpickled.

    Raises:
        ReidError: missing, damaged, or of a newer format.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            factor, about = np.asarray(arrays["factor"]), json.loads(str(arrays["about"]))
        version = int(about.pop("format"))
    except FileNotFoundError as error:
        raise ReidError(f"There is no learned metric {path}. Make one with `reid fit-metric`.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ReidError(f"{path} is no learned metric: {error}. Make it anew with `reid fit-metric`.") from error
    if version > FORMAT:
        raise ReidError(f"{path} is of format {version}; this version reads up to {FORMAT}. Install a newer one.")
    if factor.ndim != 2 or 0 in factor.shape or factor.dtype != np.float32 or not np.isfinite(factor).all():
        raise ReidError(f"{path} does not hold finite float32 numbers [rank, D]. Make it anew with `reid fit-metric`.")
    if not isinstance(about.get("method"), str):
        raise ReidError(f"{path} does not say by which method it was made. Make it anew with `reid fit-metric`.")
    return LearnedMetric(factor, about)
