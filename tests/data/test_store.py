"""Tests of the packed store: content, updates, and interrupted builds."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.data import store as packed
from reid.data.crops import Crops
from reid.data.images import UnreadableImage, decode
from reid.data.store import FileStore, PackedStore, open_store, without_unreadable

Folder = Path


def write_image(path: Path, seed: int, height: int = 24, width: int = 12) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)


def make_crops(folder: Folder, n: int, sizes: Callable[[int], tuple[int, int]] = lambda i: (24, 12)) -> Crops:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04}.png" for i in range(n)]
    for i, path in enumerate(paths):
        write_image(path, i, *sizes(i))
    return Crops.from_columns(paths, np.arange(n) // 3)


def expected(crops: Crops, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    return np.stack([decode(path, size) for path in crops.paths])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that the store decodes from now on."""
    names: list[str] = []

    def counting(path: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        names.append(Path(path).name)
        return decode(path, size)

    monkeypatch.setattr(packed, "decode", counting)
    return names


def spoil(path: str | Path) -> None:
    """Cut a file in the middle."""
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((24, 12), id="the size they have"),
        pytest.param((12, 6), id="smaller"),
        pytest.param((40, 30), id="larger"),
        pytest.param(None, id="native"),
    ],
)
def test_both_stores_return_the_decoded_files(size: tuple[int, int] | None, tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 11)
    whole = expected(crops, size)
    rows = np.array([3, 10, 0, 3, 7])
    stores = [PackedStore.build(crops, tmp_path / "store", size=size), FileStore(crops, size=size or (24, 12))]
    for store in stores:
        assert len(store) == 11
        assert store.size == (size or (24, 12))
        assert store.kept.dtype == bool
        assert store.kept.all()
        assert store.unreadable == ()
        batch = store.read(rows)
        assert batch.dtype == np.uint8
        assert batch.flags.writeable
        assert batch.flags.c_contiguous
        assert type(batch) is np.ndarray
        np.testing.assert_array_equal(batch, whole[rows])
        assert store.read([]).shape == (0, *whole.shape[1:])
        np.testing.assert_array_equal(store.take([5, 2]).read([1, 0]), whole[[2, 5]])
        if size:
            assert store.take([]).read([]).shape == (0, *size, 3)
        np.testing.assert_array_equal(store.take(np.arange(11) % 2 == 1).read([0, 4]), whole[[1, 9]])


def test_native_crops_of_many_sizes_are_resized_when_read(tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 9, lambda i: (20 + i % 3 * 7, 9 + i % 2))
    store = PackedStore.build(crops, tmp_path / "store", size=None)
    assert store.size is None
    np.testing.assert_array_equal(store.read([8, 1, 4], (16, 8)), expected(crops, (16, 8))[[8, 1, 4]])
    with pytest.raises(ReidError, match=r"several sizes. Use read\(index, size="):
        store.read([0])
    pair = store.take([1, 7])
    assert pair.size == (27, 10)
    np.testing.assert_array_equal(pair.read([1]), expected(crops.take([7])))


def test_a_complete_store_opens_without_decoding(tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 10)
    PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    assert len(decoded) == 10
    store = PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    assert len(decoded) == 10
    np.testing.assert_array_equal(store.read(np.arange(10)), expected(crops))


def test_opening_a_complete_store_removes_what_a_killed_build_left(tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 5)
    PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    names = {path.name for path in (tmp_path / "store").iterdir()}
    for name in ("building.parquet", "crops-00000000.u8"):
        (tmp_path / "store" / name).write_bytes(b"left")
    decoded.clear()
    PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    assert {path.name for path in (tmp_path / "store").iterdir()} == names
    assert not decoded


def test_only_changed_files_are_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 10)
    old = PackedStore.build(crops, tmp_path / "store", size=None)
    before = expected(crops)
    decoded.clear()
    write_image(Path(crops.paths[4]), 99)
    os.utime(crops.paths[7], ns=(0, 1_234_567_890))
    store = PackedStore.build(crops, tmp_path / "store", size=None)
    assert sorted(decoded) == ["0004.png", "0007.png"]
    np.testing.assert_array_equal(store.read(np.arange(10)), expected(crops))
    np.testing.assert_array_equal(old.read(np.arange(10)), before, "an open store keeps what it had")
    assert len(list((tmp_path / "store").glob("crops-*.u8"))) == 1


@pytest.mark.parametrize(
    ("order", "n_decoded"),
    [
        pytest.param([3, 2, 1, 0], 0, id="another order, some gone"),
        pytest.param([0, 1, 2, 3, 4, 5, 6, 7], 2, id="two came"),
        pytest.param([5, 5, 1, 5], 0, id="one file in several rows"),
    ],
)
def test_added_removed_and_moved_files(order: list[int], n_decoded: int, tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 8)
    PackedStore.build(crops.take(np.arange(6)), tmp_path / "store", size=(10, 5))
    decoded.clear()
    store = PackedStore.build(crops.take(order), tmp_path / "store", size=(10, 5))
    assert len(decoded) == n_decoded
    np.testing.assert_array_equal(store.read(np.arange(len(order))), expected(crops.take(order), (10, 5)))


def test_other_settings_decode_everything(tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    crops = make_crops(tmp_path / "images", 5)
    PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    store = PackedStore.build(crops, tmp_path / "store", size=(12, 6))
    assert len(decoded) == 10
    assert store.read([0]).shape == (1, 12, 6, 3)
    monkeypatch.setattr(packed, "FORMAT", packed.FORMAT + 1)
    PackedStore.build(crops, tmp_path / "store", size=(12, 6))
    assert len(decoded) == 15


@pytest.mark.parametrize("harm", ["index cut", "index gone", "data cut", "data gone", "index of another kind"])
def test_a_damaged_store_is_built_again(harm: str, tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 5)
    folder = tmp_path / "store"
    PackedStore.build(crops, folder, size=(24, 12))
    (data,) = folder.glob("crops-*.u8")
    if harm == "index cut":
        spoil(folder / "index.parquet")
    elif harm == "index gone":
        (folder / "index.parquet").unlink()
    elif harm == "data cut":
        os.truncate(data, 100)
    elif harm == "data gone":
        data.unlink()
    else:
        pq.write_table(pq.read_table(folder / "index.parquet").replace_schema_metadata({}), folder / "index.parquet")
    decoded.clear()
    store = PackedStore.build(crops, folder, size=(24, 12))
    assert len(decoded) == 5
    np.testing.assert_array_equal(store.read(np.arange(5)), expected(crops))


def test_the_index_cannot_point_outside_its_folder(tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 2)
    folder = tmp_path / "store"
    PackedStore.build(crops, folder, size=(24, 12))
    (data,) = folder.glob("crops-*.u8")
    shutil.move(data, tmp_path / "outside.u8")
    table = pq.read_table(folder / "index.parquet")
    about = table.schema.metadata[b"reid.store"].replace(data.name.encode(), b"../outside.u8")
    pq.write_table(table.replace_schema_metadata({b"reid.store": about}), folder / "index.parquet")
    decoded.clear()
    PackedStore.build(crops, folder, size=(24, 12))
    assert len(decoded) == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("size", [pytest.param((24, 12), id="resized"), pytest.param(None, id="native")])
def test_an_interrupted_build_continues(
    stop: BaseException,
    size: tuple[int, int] | None,
    tmp_path: Path,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed, "_CHUNK", 10)
    crops = make_crops(tmp_path / "images", 50)
    counting = packed.decode

    def failing(path: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        if len(decoded) >= 33:
            raise stop
        return counting(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(packed, "decode", failing)
        with pytest.raises(KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else ReidError) as error:
            PackedStore.build(crops, tmp_path / "store", size=size, workers=1)
        if isinstance(stop, OSError):
            assert "No space left" in str(error.value)
            assert str(tmp_path / "store") in str(error.value)
    assert not (tmp_path / "store" / "index.parquet").exists()
    begun = list((tmp_path / "store").glob("crops-*.u8"))
    store = PackedStore.build(crops, tmp_path / "store", size=size)
    assert len(decoded) == 50, "nothing is decoded twice"
    assert list((tmp_path / "store").glob("crops-*.u8")) == begun, "no second data file, where the disk was full"
    np.testing.assert_array_equal(store.read(np.arange(50)), expected(crops))
    names = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert [name.split("-")[0] for name in names] == ["crops", "index.parquet"]


SLOW_BUILD = """
import sys, time
from pathlib import Path
from reid.data import images
from reid.data import store as packed
from reid.data.crops import Crops

folder, pause = Path(sys.argv[1]), float(sys.argv[2])
packed._CHUNK, packed._FLUSH_SECONDS = 5, 0.0

def slow(path, size=None):
    time.sleep(pause)
    with open(folder / "decoded.txt", "a") as log:
        log.write(path + "\\n")
    return images.decode(path, size)

packed.decode = slow
paths = sorted((folder / "images").glob("*.png"))
crops = Crops.from_columns(paths, range(len(paths)))
store = packed.PackedStore.build(crops, folder / "store", size=(24, 12), workers=1)
print(len(store), int(store.read(range(len(paths))).sum()))
"""


def start_build(folder: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(folder), str(pause)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_build_continues(tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 60)
    process = start_build(tmp_path, 0.02)
    log = tmp_path / "decoded.txt"
    deadline = time.monotonic() + 60
    while (not log.exists() or log.read_text().count("\n") < 20) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.communicate()
    before = log.read_text().count("\n")
    assert 20 <= before < 60
    store = PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    assert 60 - before <= len(decoded) <= 60 - before + 6, "at most the chunk in the making is lost"
    np.testing.assert_array_equal(store.read(np.arange(60)), expected(crops))


@pytest.mark.slow
def test_of_two_simultaneous_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 40)
    outputs = [process.communicate(timeout=60)[0] for process in [start_build(tmp_path, 0.01) for _ in range(2)]]
    assert {output.splitlines()[-1] for output in outputs} == {f"40 {expected(crops).sum()}"}
    assert (tmp_path / "decoded.txt").read_text().count("\n") == 40


def broken_crops(folder: Path, n: int = 30, n_broken: int = 12) -> Crops:
    crops = make_crops(folder, n)
    for i in range(n_broken):
        spoil(crops.paths[2 * i])
    Path(crops.paths[0]).unlink()
    Path(crops.paths[2]).write_bytes(b"")
    return crops


@pytest.mark.parametrize("kind", ["packed", "files"])
@pytest.mark.parametrize("size", [pytest.param((24, 12), id="resized"), pytest.param((48, 24), id="enlarged")])
def test_unreadable_images_are_an_error_that_lists_them(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    crops = broken_crops(tmp_path / "images")
    with pytest.raises(ReidError) as error:
        open_store(crops, kind=kind, size=size, folder=tmp_path / "store")
    text = str(error.value)
    assert "12 of 30 images cannot be read" in text
    assert "… and 2 more" in text
    assert f"{crops.paths[0]}: cannot be read: No such file" in text
    assert f"{crops.paths[2]}: is empty (0 bytes)" in text
    assert f"{crops.paths[4]}: is truncated" in text
    assert str(crops.paths[20]) not in text
    assert "'skip'" in text


@pytest.mark.parametrize("kind", ["packed", "files"])
def test_unreadable_images_can_be_skipped(kind: str, tmp_path: Path) -> None:
    crops = broken_crops(tmp_path / "images")
    store = open_store(crops, kind=kind, size=(24, 12), folder=tmp_path / "store", unreadable="skip")
    assert (~store.kept).sum() == len(store.unreadable) == 12
    assert [item.path for item in store.unreadable] == crops.paths[~store.kept].tolist()
    assert len(store) == 30
    with pytest.raises(ReidError, match=r"Row 4 could not be read .*0004\.png: is truncated"):
        store.read([1, 4])
    left, store = without_unreadable(crops, store)
    assert len(left) == len(store) == 18
    assert store.kept.all()
    assert store.unreadable == ()
    np.testing.assert_array_equal(store.read(np.arange(18)), expected(left))


def test_native_sizes_with_unreadable_images(tmp_path: Path) -> None:
    crops = broken_crops(tmp_path / "images")
    store = PackedStore.build(crops, tmp_path / "store", size=None, unreadable="skip")
    assert store.size == (24, 12)
    rows = np.flatnonzero(store.kept)
    np.testing.assert_array_equal(store.read(rows), expected(crops.take(rows)))


def test_unreadable_files_are_decoded_again_only_after_a_change(tmp_path: Path, decoded: list[str]) -> None:
    crops = broken_crops(tmp_path / "images")
    with pytest.raises(ReidError):
        PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    decoded.clear()
    PackedStore.build(crops, tmp_path / "store", size=(24, 12), unreadable="skip")
    assert decoded == []
    for i in range(12):
        write_image(Path(crops.paths[2 * i]), 2 * i)
    store = PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    assert len(decoded) == 12
    np.testing.assert_array_equal(store.read(np.arange(30)), expected(crops))


def test_a_file_is_read_again_after_its_permission_changed(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not change size and modification time."""
    crops = make_crops(tmp_path / "images", 4)

    def forbidden(path: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        if path == crops.paths[2]:
            raise UnreadableImage(path, "cannot be read: Permission denied")
        return decode(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(packed, "decode", forbidden)
        with pytest.raises(ReidError, match="Permission denied"):
            PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    store = PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    assert decoded == ["0002.png"]
    np.testing.assert_array_equal(store.read(np.arange(4)), expected(crops))


def test_a_store_without_readable_images(tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 3)
    for path in crops.paths:
        Path(path).write_bytes(b"")
    for size in (None, (4, 4)):
        store = PackedStore.build(crops, tmp_path / "store", size=size, unreadable="skip")
        assert not store.kept.any()
        with pytest.raises(ReidError, match="Row 1 could not be read"):
            store.read([1])


def test_a_full_disk_raises_an_error_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = make_crops(tmp_path / "images", 3)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ReidError, match=r"3 crops needs 0\.00 GB, but .*store has 0\.00 GB free.*kind 'files'"):
        PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    assert not list((tmp_path / "store").glob("*.u8"))


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["naïve 人.png", "with\nline.png", os.fsdecode(b"\xff\xfe.png")]
    try:
        for i, name in enumerate(names):
            write_image(folder / "x.png", i)
            (folder / "x.png").rename(folder / name)
    except OSError:
        pytest.skip("this file system refuses such names")
    crops = Crops.from_columns([folder / name for name in names], [0, 1, 2])
    PackedStore.build(crops, tmp_path / "store", size=(24, 12))
    np.testing.assert_array_equal(
        PackedStore.build(crops, tmp_path / "store", size=(24, 12)).read([0, 1, 2]), expected(crops)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"kind": "zip"}, "Unknown kind of store 'zip'. Known: files, packed", id="kind"),
        pytest.param({"unreadable": "ignore"}, "Unknown value of unreadable 'ignore'", id="unreadable"),
        pytest.param({"folder": None}, "needs a folder", id="no folder"),
        pytest.param({"size": (0, 4)}, r"size is \(0, 4\)", id="size"),
        pytest.param({"workers": -1}, r"workers .* must be 0 or more; got -1", id="workers"),
    ],
)
def test_wrong_settings_raise_an_error(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 2)
    good = {"kind": "packed", "size": (8, 4), "folder": tmp_path / "store"}
    with pytest.raises(ReidError, match=message):
        open_store(crops, **{**good, **settings})


def test_a_file_in_place_of_the_folder_raises_an_error(tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 2)
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ReidError, match=f"Cannot write {tmp_path / 'store'}"):
        PackedStore.build(crops, tmp_path / "store", size=(8, 4))
    with pytest.raises(ReidError, match="no crop to pack"):
        PackedStore.build(crops.take([]), tmp_path / "other", size=(8, 4))


@pytest.mark.parametrize("kind", ["packed", "files"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [([5], "Row 5 is not in the store, which has rows 0 to 2"), ([-1], "Row -1"), ([[0]], "must be one column")],
)
def test_rows_outside_the_store_raise_an_error(kind: str, rows: object, message: str, tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 3)
    store = open_store(crops, kind=kind, size=(8, 4), folder=tmp_path / "store")
    with pytest.raises(ReidError, match=message):
        store.read(rows)


def test_a_file_damaged_after_opening_raises_an_error(tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "images", 3)
    store = FileStore(crops, size=(8, 4))
    spoil(crops.paths[1])
    with pytest.raises(ReidError, match=r"0001\.png: is truncated"):
        store.read([0, 1])


def test_the_store_of_real_market_crops(market_root: Path, tmp_path: Path) -> None:
    paths = sorted((market_root / "query").glob("*.jpg"))[:600]
    crops = Crops.from_columns(paths, np.arange(len(paths)))
    store = PackedStore.build(crops, tmp_path / "store", size=None)
    assert store.size == (128, 64)
    np.testing.assert_array_equal(store.read(np.arange(600)), expected(crops))


def test_a_modification_time_after_2262_is_stored(tmp_path: Path, decoded: list[str]) -> None:
    crops = make_crops(tmp_path / "images", 3)
    os.utime(crops.paths[1], (1e10, 1e10))
    if os.stat(crops.paths[1]).st_mtime_ns < 2**63:
        pytest.skip("the file system has no such times")
    PackedStore.build(crops, tmp_path / "store", size=(8, 4))
    decoded.clear()
    PackedStore.build(crops, tmp_path / "store", size=(8, 4))
    assert decoded == []
