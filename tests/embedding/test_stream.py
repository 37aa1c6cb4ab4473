from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from reid import Embedder, Embeddings
from reid.core.errors import ReidError
from reid.data.crops import Crops
from reid.embedding import stream, table
from reid.embedding.shards import Shards, make_shard, shard_folder
from reid.embedding.stream import embed_to_parquet, temporary_folder
from reid.models import build_model
from reid.models.preprocessing import Preprocessing

N = 23
REPOSITORY = Path(__file__).parents[2]


class Fast:
    """Stand-in for an `Embedder`; a feature is a random projection of the mean colours of a 4×2 grid."""

    device, threads = "cpu", 2
    embed_batches = Embedder.embed_batches

    def __init__(self, dimension=16, batch_size=4, name="fast", fail_after=None, flip=False):
        self.dimension, self.batch_size, self.name, self.flip = dimension, batch_size, name, flip
        self.preprocessing = Preprocessing(size=(16, 8), mean=(0, 0, 0), std=(1, 1, 1))
        self._to = np.random.default_rng(0).standard_normal((24, dimension)).astype(np.float32)
        self.images, self.fail_after = 0, fail_after

    def describe(self):
        return {"model": self.name, "dimension": self.dimension, "metric": "cosine", "flip": self.flip}

    def embed_batch(self, images):
        if self.fail_after is not None and self.images >= self.fail_after:
            raise KeyboardInterrupt
        self.images += len(images)
        features = images.reshape(-1, 4, 4, 2, 4, 3).mean((2, 4), dtype=np.float32).reshape(-1, 24) @ self._to
        return features / np.linalg.norm(features, axis=1, keepdims=True)


def draw(folder, n=N, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [str(folder / f"{number:05d}.png") for number in range(n)]
    for path in paths:
        cv2.imwrite(path, rng.integers(0, 256, (*rng.integers(8, 40, 2), 3), dtype=np.uint8))
    return paths


@pytest.fixture
def paths(tmp_path):
    return draw(tmp_path / "crops")


def whole(paths, **options):
    """Return the embeddings of one uninterrupted run."""
    out = Path(paths[0]).parent.parent / "whole.parquet"
    embed_to_parquet(Fast(), paths, out, **options)
    return Embeddings.load(out)


def same(a, b):
    np.testing.assert_array_equal(a.features, b.features)
    for name in ("pids", "camids", "tracks", "frames", "paths"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        assert left is None or left.tolist() == right.tolist()


@pytest.mark.slow
def test_file_equals_embedder_table(tmp_path):
    model = build_model("light10", height=64, width=32)
    embedder = Embedder(model, batch_size=4)
    paths = draw(tmp_path / "crops", 9)
    sources = [
        tmp_path / "crops",
        paths,
        Crops.from_columns(paths, np.arange(9) // 2, camids=np.arange(9) % 3),
        Crops.from_columns(paths[::-1], np.arange(9), frames=[-1] * 8 + [4]),
    ]
    for images in sources:
        done = embed_to_parquet(embedder, images, tmp_path / "t.parquet")
        got, table = Embeddings.load(tmp_path / "t.parquet"), embedder.table(images)
        same(got, table)
        assert got.meta == table.meta
        assert (done.rows, done.finished, done.left_out, done.notes) == (9, 0, (), ())
        assert not temporary_folder(tmp_path / "t.parquet").exists()


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 3, 100], ids=lambda rows: f"{rows} rows at a time")
@pytest.mark.parametrize("shard_size", [1, 7, 1024], ids=lambda rows: f"shards of {rows}")
def test_result_does_not_depend_on_shard_and_row_group_size(paths, tmp_path, monkeypatch, groups, shard_size):
    expected = whole(paths)
    monkeypatch.setattr(table, "_rows_per_group", lambda dimension: groups)
    embed_to_parquet(Fast(), paths, tmp_path / "t.parquet", shard_size=shard_size)
    same(Embeddings.load(tmp_path / "t.parquet"), expected)


@pytest.mark.parametrize("after", [0, 4, 12, 20])
def test_interrupted_run_resumes_to_identical_features(paths, tmp_path, after):
    out = tmp_path / "t.parquet"
    with pytest.raises(KeyboardInterrupt):
        embed_to_parquet(Fast(fail_after=after), paths, out, shard_size=8)
    assert not out.exists()
    second = Fast()
    done = embed_to_parquet(second, paths, out)
    assert (done.finished, second.images) == (after, N - after)
    same(Embeddings.load(out), whole(paths))


KILLED = """
import sys, time
from tests.embedding.test_stream import Fast
from reid.embedding.stream import embed_to_parquet

class Slow(Fast):
    def embed_batch(self, images):
        time.sleep(0.3)
        return super().embed_batch(images)

embed_to_parquet(Slow(), sys.argv[1], sys.argv[2], shard_size=4)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by a POSIX signal")
def test_killed_run_resumes(paths, tmp_path):
    out = tmp_path / "t.parquet"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "crops"), str(out)]
    run = subprocess.Popen(command, cwd=REPOSITORY, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.rglob("[0-9]*.parquet"))) < 2 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert run.poll() is None, "the run ended before it could be killed"
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    finished = 4 * len(list(tmp_path.rglob("[0-9]*.parquet")))
    assert not out.exists()
    second = Fast()
    done = embed_to_parquet(second, paths, out)
    assert done.finished == finished >= 8
    assert second.images == N - finished
    same(Embeddings.load(out), whole(paths))


def stopped(paths, out, **options):
    with pytest.raises(KeyboardInterrupt):
        embed_to_parquet(Fast(fail_after=16, **options), paths, out)


def test_only_new_and_changed_files_are_embedded(paths, tmp_path):
    out = tmp_path / "t.parquet"
    stopped(paths, out)
    cv2.imwrite(paths[3], np.full((9, 9, 3), 7, np.uint8))
    more = [*paths, *draw(tmp_path / "more", 2, seed=5)]
    second = Fast()
    done = embed_to_parquet(second, more, out)
    assert second.images == N - 15 + 2
    assert done.finished == 15
    assert done.notes == ("1 rows of an earlier run were not used: their files changed or are not in this run.",)
    np.testing.assert_allclose(Embeddings.load(out).features, whole(more).features, atol=1e-6)


@pytest.mark.parametrize("change", [{"name": "other"}, {"flip": True}, {"dimension": 8}], ids=str)
def test_shards_of_another_model_are_kept_and_reported(paths, tmp_path, change):
    out = tmp_path / "t.parquet"
    stopped(paths, out)
    left = list(temporary_folder(out).iterdir())
    second = Fast(**change)
    done = embed_to_parquet(second, paths, out)
    assert (second.images, done.finished) == (N, 0)
    assert list(temporary_folder(out).iterdir()) == left
    assert done.notes == (
        f"{left[0]} was not used: it belongs to another model, preprocessing, flip or video. "
        "Delete it if it is not needed.",
    )
    assert embed_to_parquet(Fast(), paths, out).finished == 16
    assert not temporary_folder(out).exists()


def test_repeated_path_is_embedded_once_and_keeps_its_rows(paths, tmp_path):
    order = [3, 0, 3, 3, 1, 0]
    fast = Fast()
    done = embed_to_parquet(fast, [paths[i] for i in order], tmp_path / "t.parquet")
    assert (fast.images, done.rows) == (3, 6)
    table = Embeddings.load(tmp_path / "t.parquet")
    assert table.paths.tolist() == [paths[i] for i in order]
    np.testing.assert_allclose(table.features, whole(paths).features[order], atol=1e-6)


def test_unreadable_files_are_an_error_before_embedding_or_skipped(paths, tmp_path):
    out = tmp_path / "t.parquet"
    Path(paths[2]).write_bytes(b"")
    Path(paths[9]).write_bytes(b"no image")
    fast = Fast()
    with pytest.raises(ReidError, match=rf"2 of {N} images cannot be read:\n.*00002\.png: is empty.*\n.*00009\.png"):
        embed_to_parquet(fast, paths, out)
    assert fast.images == 0
    done = embed_to_parquet(fast, paths, out, unreadable="skip")
    assert (done.rows, len(done.left_out)) == (N - 2, 2)
    assert done.left_out[0] == f"{paths[2]}: is empty (0 bytes)"
    table = Embeddings.load(out)
    assert table.meta["left_out"] == list(done.left_out)
    assert table.paths.tolist() == [path for i, path in enumerate(paths) if i not in (2, 9)]


def test_failed_file_is_tried_again(paths, tmp_path):
    out = tmp_path / "t.parquet"
    content = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(content[: len(content) // 2])
    with pytest.raises(KeyboardInterrupt):
        embed_to_parquet(Fast(fail_after=15), paths, out, unreadable="skip")
    Path(paths[1]).write_bytes(content)
    done = embed_to_parquet(Fast(), paths, out)
    assert (done.rows, done.left_out) == (N, ())
    np.testing.assert_allclose(Embeddings.load(out).features, whole(paths).features, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param([np.zeros((4, 4, 3), np.uint8)], "takes files", id="arrays"),
        pytest.param("{tmp}/none", "is not a folder", id="no folder"),
        pytest.param("{tmp}/empty", "contains no image", id="an empty folder"),
        pytest.param(["{tmp}/a.png", "{tmp}/b.png"], "None of the 2 images can be read. The first: .*a.png", id="none"),
        pytest.param(["a.png", "b\udce9.png"], r"row 1, 'b\\udce9.png', is not Unicode", id="bytes as a name"),
    ],
)
def test_invalid_input_is_an_error(tmp_path, images, message):
    (tmp_path / "empty").mkdir()
    given = (
        [image.format(tmp=tmp_path) if isinstance(image, str) else image for image in images]
        if isinstance(images, list)
        else images.format(tmp=tmp_path)
    )
    with pytest.raises(ReidError, match=message):
        embed_to_parquet(Fast(), given, tmp_path / "t.parquet", unreadable="skip")
    assert not (tmp_path / "t.parquet").exists()
    with pytest.raises(ReidError, match="Unknown value of unreadable 'maybe'"):
        embed_to_parquet(Fast(), Crops.from_columns([], []), tmp_path / "t.parquet", unreadable="maybe")


def test_unicode_file_names(tmp_path):
    names = ["ünï cødé", "日本", "a,\"b'", "#100% \n"]
    paths = []
    for name in names:
        paths += draw(tmp_path / name, 1)
    embed_to_parquet(Fast(), paths, tmp_path / "t.parquet")
    assert Embeddings.load(tmp_path / "t.parquet").paths.tolist() == paths


def test_no_crops_give_an_empty_file(tmp_path):
    done = embed_to_parquet(Fast(), Crops.from_columns([], []), tmp_path / "t.parquet")
    assert done.rows == 0
    assert Embeddings.load(tmp_path / "t.parquet").features.shape == (0, 16)


def test_nan_output_is_an_error_and_finished_rows_are_kept(paths, tmp_path):
    class Breaking(Fast):
        def embed_batch(self, images):
            return super().embed_batch(images) * (np.nan if self.images >= 12 else 1)

    with pytest.raises(ReidError, match=r"NaN or infinity for 4 of 4 images, the first .*00008\.png"):
        embed_to_parquet(Breaking(), paths, tmp_path / "t.parquet")
    assert embed_to_parquet(Fast(), paths, tmp_path / "t.parquet").finished == 8


@pytest.mark.slow
def test_memory_does_not_grow_with_the_features(tmp_path, monkeypatch):
    """The features take 3.1 MB in the first run and 12.6 MB in the second."""
    monkeypatch.setattr(table, "_rows_per_group", lambda dimension: 16)
    paths = draw(tmp_path / "crops", 384)
    peaks = []
    for n in (96, 384):
        fast = Fast(dimension=8192, batch_size=8)
        tracemalloc.start()
        embed_to_parquet(fast, paths[:n], tmp_path / "t.parquet", shard_size=16)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 384 * 8192 * 4 / 2


@pytest.mark.slow
def test_merge_reads_one_row_group_at_a_time(tmp_path, monkeypatch):
    """All rows are finished and the image files do not exist, so only the merge is left."""
    n, fast, out = 200_000, Fast(dimension=4, batch_size=4096), tmp_path / "t.parquet"
    crops = Crops.from_columns([f"/nowhere/{number:07d}.jpg" for number in range(n)], np.arange(n))
    keys, _ = stream._file_keys(crops.paths)
    meta = fast.describe()
    shards = Shards(shard_folder(temporary_folder(out), meta["model"], [stream._FORMAT, meta]), fast.dimension)
    features = np.arange(n, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    for start in range(0, n, 10_000):
        rows = slice(start, start + 10_000)
        shards.write(make_shard(keys[rows], features[rows], [""] * 10_000))
    asked, read = [], Shards.read

    def watch(self, positions, column):
        if column == "features":
            asked.append(len(positions))
        return read(self, positions, column)

    monkeypatch.setattr(Shards, "read", watch)
    monkeypatch.setattr(table, "_rows_per_group", lambda dimension: 3_000)
    done = embed_to_parquet(fast, crops, out)
    assert (done.rows, done.finished, fast.images) == (n, n, 0)
    assert max(asked) == 3_000
    assert sum(asked) == n
    loaded = Embeddings.load(out)
    np.testing.assert_array_equal(loaded.features[:, 0], np.arange(n))
    np.testing.assert_array_equal(loaded.pids, np.arange(n))
