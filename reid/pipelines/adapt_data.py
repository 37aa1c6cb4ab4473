"""The crops that `adapt` learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reid.core.arrays import UNKNOWN
from reid.core.console import warn
from reid.core.errors import ConfigError, DataError
from reid.data.crops import Crops
from reid.data.layouts import load_benchmark
from reid.embedding.table import Embeddings
from reid.pipelines.settings import AdaptSettings


def target_crops(settings: AdaptSettings) -> Crops:
    """Return the crops that the settings name.

    Raises:
        ReidError: not exactly one input, or it cannot be used.
    """
    embeddings, root = settings.embeddings, settings.crops
    if settings.data is not None and embeddings is None and root is None:
        benchmark = load_benchmark(settings.data)
        for text in benchmark.warnings:
            warn(text)
        return benchmark.train
    if settings.data is not None or embeddings is None or root is None:
        raise ConfigError("Pass the tracks: --data LAYOUT:ROOT, or --embeddings FILE with --crops DIR.")
    return crops_of_embeddings(embeddings, root)


def crops_of_embeddings(path: Path, root: Path) -> Crops:
    """Return the crops that a table of embeddings describes; its features are not used.

    Raises:
        DataError: a column is missing.
    """
    table = Embeddings.load(path)
    columns = {"path": table.paths, "camid": table.camids, "track": table.tracks, "frame": table.frames}
    missing = [name for name, values in columns.items() if values is None]
    if missing or table.paths is None or table.tracks is None:
        raise DataError(f"{path} has no column {', '.join(missing)}. Embed a table of crops with these columns.")
    if (table.tracks == UNKNOWN).any():
        raise DataError(f"{path}: {int((table.tracks == UNKNOWN).sum())} rows have track -1 (unknown). Remove them.")
    paths = [str(root / name) for name in table.paths]
    return Crops.from_columns(paths, np.zeros(len(table)), table.camids, table.tracks, table.frames, source=path.stem)
