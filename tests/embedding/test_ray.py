"""Embedding on a Ray cluster equals one process, and survives killed workers and drivers."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from reid import Embeddings
from reid.core.errors import DataError
from reid.data.crop_list import read_crop_list
from reid.embedding.ray_cluster import RayCluster
from reid.embedding.stream import embed_to_parquet
from tests.embedding.test_stream import REPOSITORY, Fast, draw, same

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
def bucket():
    """Object storage on loopback with a bucket `crops`; None without moto. Workers inherit its address."""
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield None
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    values = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (values | {"DEFAULT_REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}).items():
            patch.setenv(f"AWS_{name}", value)
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="crops")
        client.address = address
        yield client
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket):
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


class Slow(Logged):
    """Takes .2 s for a batch, and `kill -9` ends the process of the tenth batch once."""

    def __init__(self, log, kill_once=False):
        super().__init__(log)
        self.kill_once = kill_once

    def embed_batch(self, images):
        time.sleep(0.2)
        flag = Path(f"{self.log}.killed")
        if self.kill_once and not flag.exists() and len(calls(self.log)) >= 10:
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_batch(images)


def calls(log):
    """Return (process, number of images) of each finished batch."""
    return [tuple(map(int, line.split())) for line in Path(log).read_text().splitlines()] if Path(log).exists() else []


@pytest.mark.slow
def test_killed_worker_is_replaced(cluster, tmp_path):
    paths = draw(tmp_path / "crops", 80)
    embed_to_parquet(Fast(batch_size=BATCH), paths, tmp_path / "one.parquet")
    log = str(tmp_path / "calls")
    on_ray = RayCluster(partial(Slow, log, kill_once=True), workers=1)
    embed_to_parquet(Fast(batch_size=BATCH), paths, tmp_path / "t.parquet", cluster=on_ray, shard_size=8)
    same(Embeddings.load(tmp_path / "one.parquet"), Embeddings.load(tmp_path / "t.parquet"))
    assert Path(f"{log}.killed").exists()
    assert len({process for process, _ in calls(log)}) == 2
    assert 80 <= sum(images for _, images in calls(log)) <= 80 + 8  # at most the unit that was interrupted, again


DRIVER = """
import os, sys
from functools import partial
from tests.embedding.test_ray import BATCH, Slow
from tests.embedding.test_stream import Fast
from reid.embedding.ray_cluster import RayCluster
from reid.embedding.stream import embed_to_parquet

folder, log = sys.argv[1:]
cluster = RayCluster(partial(Slow, log), workers=1)
done = embed_to_parquet(Fast(batch_size=BATCH), folder + "/crops", folder + "/t.parquet", cluster=cluster, shard_size=8)
print("finished before:", done.finished)
"""


@pytest.mark.slow
def test_killed_job_continues_from_rays_checkpoints(cluster, tmp_path):
    paths = draw(tmp_path / "crops", 80)
    embed_to_parquet(Fast(batch_size=BATCH), paths, tmp_path / "one.parquet")
    address = cluster.get_runtime_context().gcs_address
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(REPOSITORY)}

    def start(log):
        command = [sys.executable, "-c", DRIVER, str(tmp_path), str(tmp_path / log)]
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)

    first = start("first")
    finished = lambda: len(list(tmp_path.glob("t.parquet.shards/*/finished/*[0-9].parquet")))  # noqa: E731
    deadline = time.monotonic() + 500
    while finished() < 3 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.poll() is None, "the job ended before it could be killed"
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = finished()
    second = start("second")
    printed, _ = second.communicate(timeout=500)
    assert second.returncode == 0
    assert kept >= 3
    again = sum(images for _, images in calls(tmp_path / "second"))
    assert 80 - 8 * (kept + 2) <= again <= 80 - 8 * kept  # a unit may have been committed as the job died
    assert int(printed.rsplit(":", 1)[1]) >= 8 * kept
    same(Embeddings.load(tmp_path / "one.parquet"), Embeddings.load(tmp_path / "t.parquet"))


@pytest.mark.slow
def test_object_storage(cluster, bucket, tmp_path):
    if bucket is None:
        pytest.skip("moto is not installed: pip install 'moto[server]'")
    paths = draw(tmp_path / "crops", 12)
    for path in paths:
        bucket.upload_file(path, "crops", f"day/{Path(path).name}")
    lines = [f"s3://crops/day/{Path(path).name}" for path in paths]
    bucket.put_object(Bucket="crops", Key="list.csv", Body="\n".join(["path", *lines, "day/none.png"]).encode())
    found = read_crop_list("s3://crops/list.csv")
    assert found.crops.paths.tolist() == [*lines, "s3://crops/day/none.png"]
    embed_to_parquet(Fast(batch_size=BATCH), paths, tmp_path / "files.parquet")
    files = Embeddings.load(tmp_path / "files.parquet")
    on_ray = RayCluster(partial(Fast, batch_size=BATCH))
    for name, cluster_of_run in (("one", None), ("ray", on_ray)):
        out, options = tmp_path / f"{name}.parquet", {"cluster": cluster_of_run, "shard_size": 8}
        by_whom = "" if cluster_of_run is None else r"Worker \S+, process \d+: "
        with pytest.raises(DataError, match=rf"^{by_whom}s3://crops/day/none.png does not exist"):
            embed_to_parquet(Fast(batch_size=BATCH), found.crops, out, **options)
        done = embed_to_parquet(Fast(batch_size=BATCH), found.crops, out, unreadable="skip", **options)
        got = Embeddings.load(out)
        np.testing.assert_array_equal(got.features, files.features)
        assert (got.paths.tolist(), done.left_out) == (lines, ("s3://crops/day/none.png: does not exist",))
        # Ray ends a failed job at once: the other unit, of 8 crops, may have been written or not.
        assert done.finished in ((12,) if cluster_of_run is None else (0, 8))
