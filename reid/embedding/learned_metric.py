"""`LearnedMetric`: a linear map of features, fitted on labelled embeddings and stored as one NPZ file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import unit_rows
from reid.core.atomic import atomic_file
from reid.core.errors import ConfigError, DataError, ModelError
from reid.core.reading import parse_json
from reid.embedding.table import Embeddings

FORMAT = 1
_FIT_AGAIN = "Fit it again with `reid metric fit`"


@dataclass(frozen=True)
class LearnedMetric:
    """Linear map of L2-normalised features. The result is normalised again and compared by cosine.

    Attributes:
        factor: `[R, D]` float32.
        about: plain JSON values: `method`, `model` (whose features it was fitted on; empty if unknown) and others.
    """

    factor: NDArray[np.float32]
    about: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The method and a digest of the numbers."""
        return f"{self.about['method']}:{hashlib.sha256(self.factor.tobytes()).hexdigest()[:8]}"

    def transform(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `[N, D]` features as `[N, R]`, L2-normalised. A row of zeros stays zero, NaN stays NaN."""
        return unit_rows(unit_rows(features) @ self.factor.T)

    def describe(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `meta` of transformed `Embeddings`. The model id changes, so another calibration is needed.

        Raises:
            ModelError: the metric was fitted on features of another model.
        """
        model, fitted = str(meta.get("model") or ""), str(self.about.get("model") or "")
        if model and fitted and model != fitted:
            raise ModelError(f"The metric was fitted on features of model {fitted!r}, not of {model!r}. {_FIT_AGAIN}.")
        changed = {"dimension": len(self.factor), "metric": "cosine", "normalised": True, "learned_metric": self.id}
        return {**meta, **changed, "model": f"{model}+{self.id}"}

    def apply(self, table: Embeddings) -> Embeddings:
        """Return the table with transformed features and the same other columns.

        Raises:
            ModelError: features of another dimension or of another model.
        """
        if table.dimension != self.factor.shape[1]:
            fitted = self.factor.shape[1]
            raise ModelError(f"The metric was fitted on dimension {fitted}, not {table.dimension}. {_FIT_AGAIN}.")
        changed = copy(table)
        changed.features = self.transform(table.features)
        changed.meta = self.describe(table.meta)
        return changed

    def save(self, path: str | Path) -> Path:
        """Write an NPZ file, completely or not at all, and return the path.

        Raises:
            ConfigError: the name does not end in .npz.
            DataError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ConfigError(f"A learned metric is stored as .npz, but the name is {path}. Change the suffix.")
        about = json.dumps({"format": FORMAT, **self.about}, allow_nan=False)
        with atomic_file(path) as temporary:
            np.savez(temporary, factor=self.factor.astype(np.float32), about=np.array(about))
        return path

    @classmethod
    def load(cls, path: str | Path) -> LearnedMetric:
        """Read a file that `save` wrote. Nothing in it is unpickled.

        Raises:
            DataError: missing, damaged, or of a newer format.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                factor, about = np.asarray(arrays["factor"]), parse_json(str(arrays["about"]), str(path))
            version = int(about.pop("format"))
            finite = factor.ndim == 2 and factor.size > 0 and factor.dtype == np.float32 and np.isfinite(factor).all()
            if version <= FORMAT and not (finite and isinstance(about.get("method"), str)):
                raise ValueError("not a metric")
        except FileNotFoundError as error:
            raise DataError(f"There is no learned metric {path}. Create one with `reid metric fit`.") from error
        except Exception as error:  # NumPy and zipfile raise many types on damaged files
            needed = "finite float32 numbers [rank, D] and the name of a method"
            raise DataError(f"{path} is not a learned metric: it must contain {needed}. {_FIT_AGAIN}.") from error
        if version > FORMAT:
            raise DataError(f"{path} has format {version}; this version reads up to {FORMAT}. Install a newer version.")
        return cls(factor, about)
