"""Search for the nearest neighbours of tracklets on the workers of a Ray cluster, exactly."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from reid.core.atomic import atomic_file
from reid.core.errors import DataError
from reid.embedding.ray_cluster import RayCluster
from reid.embedding.stream import Cluster, Unit, make_unit
from reid.evaluation.features import MEMORY_LIMIT, centred, prepare_one
from reid.evaluation.neighbours import Edges, Neighbours, merge_edges, nearest_in_part

ROWS_PER_PART = 10_000
"""Tracklets per unit of work, on average: the most that an interruption loses."""

_NONE = -1
"""`other` of rows that contain the largest distance of an item."""


class SharedFeatures:
    """Features that a worker reads from a disk of all machines."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"There is no {path}. Put --out on a disk that every machine can read.")
        self.features = torch.from_numpy(np.load(path))

    def describe(self) -> dict[str, Any]:
        """Return what must be equal on all machines."""
        return {"features": hashlib.blake2b(self.features.numpy().tobytes(), digest_size=16).hexdigest()}


def find_neighbours_on_ray(
    features: NDArray[np.float32], k: int, *, folder: Path, workers: int = 0, cluster: Cluster | None = None
) -> Neighbours:
    """Return what `find_neighbours(features, k)` does, computed by the workers of a cluster.

    Each worker computes some of the blocks of distances and writes the edges that may matter to Parquet files in
    `folder`, which all machines must reach. An interrupted search continues. The folder is removed at the end.

    Args:
        features: `[N, D]`.
        k: number of neighbours besides the item itself.
        folder: for features and edges.
        workers: see `RayCluster`.
        cluster: computes instead of `RayCluster`.

    Raises:
        DataError: a feature is NaN or infinite.
        ReidError: as `RayCluster.run`.
    """
    x = centred(prepare_one(features, "item", "euclidean").clone())
    n, k = len(x), min(k, len(x) - 1)
    path = folder / "features.npy"
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, x.numpy())
    path, count = path.absolute(), max(1, -(-n // ROWS_PER_PART))
    meta = SharedFeatures(path).describe()
    place = folder / f"edges-{meta['features']}-{k}"
    units = [make_unit(f"{part} of {count}".encode(), part, count, k) for part in range(count)]
    (cluster or RayCluster(partial(SharedFeatures, path), workers)).run(_find_part, units, place, meta)
    parts = [_edges(pq.read_table(file), n) for file in sorted(place.glob("*.parquet"))]
    result = merge_edges(x, k, parts)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _find_part(shared: SharedFeatures, unit: Unit) -> pa.Table:
    part, count, k = pickle.loads(unit["content"])
    found = nearest_in_part(shared.features, k, part, count, MEMORY_LIMIT)
    every = np.arange(len(found.largest), dtype=np.int32)
    columns = {
        "item": np.concatenate([found.item, every]),
        "other": np.concatenate([found.other, np.full_like(every, _NONE)]),
        "squared_distance": np.concatenate([found.value, found.largest]),
    }
    return pa.table(columns)


def _edges(table: pa.Table, n: int) -> Edges:
    item, other, value = (table[name].to_numpy() for name in ("item", "other", "squared_distance"))
    edge = other != _NONE
    largest = np.zeros(n, np.float32)
    largest[item[~edge]] = value[~edge]
    return Edges(item[edge], other[edge], value[edge], largest)
