"""What the layouts of users' own crops share (`folders` and `table`): identities, cameras and splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.errors import DataError
from reid.data.crops import SPLITS, Benchmark, Crops, SkippedFile
from reid.data.layouts.scanning import JUNK
from reid.data.splits import hold_out, query_and_gallery

OWN_SPLITS = (*SPLITS, "test")
"""`test` is divided into query and gallery."""


def divide(
    crops: Crops,
    split: NDArray[np.object_] | None,
    where: Path,
    *,
    fraction: float,
    seed: int,
    cross_camera: bool | None,
    skipped: Sequence[SkippedFile] = (),
    warnings: Sequence[str] = (),
) -> Benchmark:
    """Drop junk (pid -1) and divide the crops into train, query and gallery.

    Args:
        crops: `N` rows as a layout reads them, junk included; their source is the name of the data set.
        split: `[N]` a name in `OWN_SPLITS`, or None where the data set has no splits.
        where: file or folder that was read.
        fraction: of the identities that are held out to score on, where the data set has no splits.
        seed: of the random choices.
        cross_camera: whether gallery images of the query's identity and camera are excluded; None means that they are
            if at least two cameras are known.
        skipped, warnings: of the layout.

    Raises:
        DataError: no usable crop, fewer than two cameras with `cross_camera`, or splits that cannot be scored.
    """
    good = crops.pids != JUNK
    crops, notes = crops.take(good), list(warnings)
    if not len(crops):
        raise DataError(f"{where} has no usable crop: all {len(good)} are junk (pid -1).")
    cameras = np.unique(crops.camids[crops.camids != UNKNOWN])
    if cross_camera is None:
        cross_camera = len(cameras) > 1
        if len(cameras) == 1:
            notes.append(f"every known camera is {cameras[0]}, so queries are also matched in their own camera")
    elif cross_camera and len(cameras) < 2:
        raise DataError(
            f"{where}: cross_camera=true needs two known cameras, but there are {len(cameras)}. "
            "Remove this option, or add the cameras."
        )
    if split is None:
        parts = hold_out(crops, fraction=fraction, seed=seed, cross_camera=cross_camera)
    else:
        parts = _split(crops, split[good], where, seed, cross_camera)
    notes += [f"there are no {name} crops" for name, part in zip(SPLITS[:2], parts[:2], strict=True) if not len(part)]
    name, root, junk = crops.source_names[0], where if where.is_dir() else where.parent, int((~good).sum())
    return Benchmark(name, str(root), *parts, cross_camera, junk, skipped=tuple(skipped), warnings=tuple(notes))


def _split(
    crops: Crops, split: NDArray[np.object_], where: Path, seed: int, cross_camera: bool
) -> tuple[Crops, Crops, Crops]:
    train, query, gallery, test = (crops.take(split == name) for name in OWN_SPLITS)
    if len(test):
        if len(query) or len(gallery):
            raise DataError(f"{where} has the split 'test' and 'query' or 'gallery'. Use one or the other.")
        query, gallery = query_and_gallery(test, np.random.default_rng(seed), cross_camera=cross_camera)
        if not len(query):
            need = "two cameras" if cross_camera else "two crops"
            raise DataError(f"{where}: no identity of the split 'test' has {need}, so there is no query.")
    if bool(len(query)) != bool(len(gallery)):
        present, missing = ("query", "gallery") if len(query) else ("gallery", "query")
        raise DataError(f"{where} has {present!r} crops but no {missing!r} crops. Scoring needs both.")
    return train, query, gallery
