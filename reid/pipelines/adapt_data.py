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
from reid.pipelines.from_tracks import cut_tracks
from reid.pipelines.settings import AdaptSettings, CutSettings


def target_crops(settings: AdaptSettings, folder: Path) -> Crops:
    """Return the crops that the settings name.

    Args:
        settings: one of the three inputs.
        folder: crops that are cut out of videos; written once, then read.

    Raises:
        ReidError: not exactly one input, or it cannot be used.
    """
    names = {"data": ("data",), "tracks": ("tracks", "videos"), "embeddings": ("embeddings", "crops")}
    given = {kind: [getattr(settings, name) for name in parts] for kind, parts in names.items()}
    kinds = [kind for kind, values in given.items() if any(value is not None for value in values)]
    if len(kinds) != 1 or None in given[kinds[0]]:
        raise ConfigError(
            "Pass exactly one of: --data LAYOUT:ROOT, or --tracks with --videos, or --embeddings with --crops."
        )
    first, *second = given[kinds[0]]
    if kinds == ["embeddings"]:
        return crops_of_embeddings(first, second[0])
    if kinds == ["tracks"] and not folder.exists():
        cut = cut_tracks(folder, CutSettings(tracks=first, videos=second[0], per_track=settings.per_track))
        for text in cut.warnings:
            warn(text)
    benchmark = load_benchmark(first if kinds == ["data"] else f"table:{folder}")
    for text in benchmark.warnings if kinds == ["data"] else ():
        warn(text)
    return benchmark.train


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
    return Crops.from_columns(
        paths, np.zeros(len(table), np.int64), table.camids, table.tracks, table.frames, source=path.stem
    )
