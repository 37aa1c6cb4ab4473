"""Embedding on a Ray cluster equals one process, and survives killed workers and drivers."""

from __future__ import annotations

import csv
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from reid import Embeddings
from reid.data.crop_list import read_crop_list
from reid.embedding.ray_cluster import RayCluster
from reid.embedding.stream import embed_to_parquet
from tests.embedding.test_stream import Fast, draw, same

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'reid-toolkit[ray]'")
BATCH = 4


class Logged(Fast):
    """Writes the process of each batch to a file."""

    def __init__(self, log, batch_size=BATCH, **options):
        super().__init__(batch_size=batch_size, **options)
        self.log = log

    def embed_batch(self, images):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {len(images)}\n")
        return super().embed_batch(images)


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(
        num_cpus=4, object_store_memory=200_000_000, include_dashboard=False, logging_level="critical",
        log_to_driver=False,
    )  # fmt: skip
    yield ray
    ray.shutdown()


def write_list(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.slow
def test_list_of_boxes_equals_one_process(cluster, tmp_path):
    paths = draw(tmp_path / "crops", 22)
    rows = [
        {"path": f"crops/{Path(p).name}", "camid": i % 3, "x": 1, "y": i % 4, "width": 6, "height": 7.5}
        for i, p in enumerate(paths)
    ]
    rows += [rows[3], rows[5] | {"x": 500}]  # a duplicate, and a box outside of the image
    found = read_crop_list(write_list(tmp_path / "list.csv", rows))
    options = {"pixels": found.pixels, "unreadable": "skip", "root": tmp_path}
    embed_to_parquet(Fast(batch_size=BATCH), found.crops, tmp_path / "one.parquet", **options)
    log = tmp_path / "calls"
    on_ray = RayCluster(partial(Logged, str(log)))
    done = embed_to_parquet(
        Fast(batch_size=BATCH), found.crops, tmp_path / "ray.parquet", cluster=on_ray, shard_size=8, **options
    )
    one, other = (Embeddings.load(tmp_path / name) for name in ("one.parquet", "ray.parquet"))
    same(one, other)
    assert one.meta == other.meta
    assert done.rows == 23
    assert len(done.left_out) == 1
    assert "outside" in done.left_out[0]
    assert sum(int(line.split()[1]) for line in log.read_text().splitlines()) == 22
    np.testing.assert_array_equal(one.features[3], one.features[22])
    assert not list(tmp_path.glob("*.shards"))
