"""Crops decoded once into one memory-mapped uint8 array; or decoded from their files again and again.

A store's folder holds `index.parquet` (one row a crop; its schema metadata holds the settings and the name of the
data file) and `crops-<token>.u8` (raw RGB). While a store is being built, `building.parquet` stands beside them and
names the data file that is being filled: a build that was killed goes on from there. Writing `index.parquet` whole
is the last step, so a reader sees the old store or the new one. Readers in other processes keep the old data file
mapped until they close it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from reid.core.atomic import atomic_file
from reid.core.console import console, progress_bar
from reid.core.errors import ReidError
from reid.data.crops import Crops, SkippedFile
from reid.data.images import MAX_PIXELS, UnreadableImage, decode, probe, resize

FORMAT = 1
_TO_DO, _DONE, _BAD = 0, 1, 2
_SETTINGS_KEY = b"reid.store"
_CHUNK = 256
_FLUSH_SECONDS = 2.0
_DISK_MARGIN = 64 * 2**20


class PackedStore:
    """Every crop decoded once, in one uint8 file that workers and ranks map together. Made by `build`.

    Attributes:
        size: (height, width) of every crop; None when they are native and differ.
        kept: `[N]` bool, False where the file could not be read and `unreadable="skip"` was said.
        unreadable: those files, with the reasons.
    """

    def __init__(self, index: _Index, rows: NDArray[np.int64]) -> None:
        self._index, self._rows = index, rows
        status = index.status[rows]
        self.kept: NDArray[np.bool_] = status == _DONE
        self.unreadable = tuple(SkippedFile(index.paths[i], index.reasons[i]) for i in rows[~self.kept])
        self._flat = np.asarray(np.memmap(index.data, np.uint8, "r")) if index.n_bytes else np.zeros(0, np.uint8)
        shapes = (
            [index.settings["size"]] if index.settings["size"] else np.unique(index.shapes[rows[self.kept]], axis=0)
        )
        self.size: tuple[int, int] | None = (int(shapes[0][0]), int(shapes[0][1])) if len(shapes) == 1 else None
        self._array: NDArray[np.uint8] | None = None
        self._slots = np.zeros(0, np.int64)
        if self.size is not None and (index.offsets % (n := self.size[0] * self.size[1] * 3) == 0).all():
            whole = len(self._flat) // n
            self._array = self._flat[: whole * n].reshape(whole, *self.size, 3)
            self._slots = index.offsets // n

    @classmethod
    def build(
        cls,
        crops: Crops,
        folder: str | Path,
        *,
        size: tuple[int, int] | None,
        workers: int = 0,
        unreadable: str = "error",
    ) -> PackedStore:
        """Open the store of `crops` in `folder`, after decoding what is not in it yet.

        A store that is whole and fresh (same files in the same order, with the same sizes and modification times,
        and the same settings) opens at once. When some files changed, came, went or moved, only what is not in the
        old store is decoded; with other settings all is. A folder serves one set of crops at one size: give another
        set its own folder, or each build undoes the other. When several processes call this at once, one builds and
        the others wait.

        Args:
            size: (height, width) that every crop is resized to (area average when neither side grows, else
                bilinear); None keeps each at its own size.
            workers: decoding threads; 0 takes one for each CPU this process may use.
            unreadable: "error", or "skip" to keep unreadable images out (see `kept`).

        Raises:
            ReidError: images that cannot be read (with "error"), no crops, or a folder or disk that cannot hold the
                store. What was decoded until then is kept and not decoded again.
        """
        _check_choice("unreadable", unreadable, ("error", "skip"))
        _check_size(size)
        if len(crops) == 0:
            raise ReidError(f"There is no crop to pack into {folder}.")
        folder = Path(folder)
        settings = {
            "format": FORMAT,
            "size": None if size is None else [int(size[0]), int(size[1])],
            "interpolation": "area when neither side grows, else bilinear",
            "channels": "rgb",
            "exif_orientation": "ignored",
            "max_pixels": MAX_PIXELS,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                index = _build(list(map(str, crops.paths)), folder, settings, size, workers)
        except OSError as error:
            raise ReidError(
                f"Cannot build the packed store in {folder}: {error.strerror or error}. Free some space or give a "
                "folder you may write to, and start again: what was decoded so far is kept."
            ) from error
        store = cls(index, np.arange(len(crops)))
        if unreadable == "error":
            _refuse(store.unreadable, len(crops))
        return store

    def __len__(self) -> int:
        """The number of crops, unreadable ones included."""
        return len(self._rows)

    def take(self, index: ArrayLike) -> PackedStore:
        """A store of these rows (index array or boolean mask) over the same file."""
        return PackedStore(self._index, self._rows[_rows(index)])

    def read(self, index: ArrayLike, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """RGB `[B, H, W, 3]` uint8 of the rows `index [B]`, a new array; resized to `size` when given.

        Raises:
            ReidError: a row that is not there or could not be read; crops of several sizes and no `size`.
        """
        index = _checked(index, self.kept, self.unreadable)
        rows = self._rows[index]
        if self._array is not None and size in (None, self.size):
            return np.take(self._array, self._slots[rows], axis=0)
        size = size or self.size
        if size is None:
            raise ReidError("This store keeps crops of several sizes; say read(index, size=(height, width)).")
        out = np.empty((len(rows), *size, 3), np.uint8)
        for target, row in zip(out, rows, strict=True):
            resize(self._index.pixels(self._flat, row), size, out=target)
        return out


class FileStore:
    """The same interface with nothing stored: each read decodes the files again, in threads.

    For sets that do not fit on the disk twice. On opening, each file's header and end are checked (not its content).

    Attributes:
        size: (height, width) of every crop read.
        kept, unreadable: as in `PackedStore`.
    """

    def __init__(self, crops: Crops, *, size: tuple[int, int], workers: int = 0, unreadable: str = "error") -> None:
        _check_choice("unreadable", unreadable, ("error", "skip"))
        _check_size(size)
        self.size = (int(size[0]), int(size[1]))
        self._paths = crops.paths
        threads = _workers(workers)
        self._pool = ThreadPoolExecutor(threads, "reid-decode")
        self._parts = threads if threads == 1 else 4 * threads  # so that none waits long for the last
        reasons: list[str] = []
        with progress_bar() as bar:
            task = bar.add_task("Checking images", total=len(crops))
            for reason in self._pool.map(_why_unreadable, map(str, crops.paths)):
                reasons.append(reason)
                bar.advance(task)
        self.kept: NDArray[np.bool_] = np.array([not reason for reason in reasons], dtype=bool)
        self._reasons = np.array(reasons, dtype=object)
        self.unreadable = tuple(
            SkippedFile(str(path), reason) for path, reason in zip(crops.paths, reasons, strict=True) if reason
        )
        if unreadable == "error":
            _refuse(self.unreadable, len(crops))

    def __len__(self) -> int:
        """The number of crops, unreadable ones included."""
        return len(self._paths)

    def take(self, index: ArrayLike) -> FileStore:
        """A store of these rows (index array or boolean mask)."""
        taken: FileStore = object.__new__(FileStore)
        taken.size, taken._pool, taken._parts = self.size, self._pool, self._parts
        rows = _rows(index)
        taken._paths, taken._reasons, taken.kept = self._paths[rows], self._reasons[rows], self.kept[rows]
        taken.unreadable = tuple(
            SkippedFile(str(path), reason) for path, reason in zip(taken._paths, taken._reasons, strict=True) if reason
        )
        return taken

    def read(self, index: ArrayLike, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """RGB `[B, H, W, 3]` uint8 of the rows `index [B]`; see `PackedStore.read`.

        Raises:
            ReidError: a row that is not there, or a file that does not decode now.
        """
        index = _checked(index, self.kept, self.unreadable)
        size = size or self.size
        out = np.empty((len(index), *size, 3), np.uint8)

        def some(places: range) -> None:
            for place in places:
                out[place] = decode(self._paths[index[place]], size)

        parts = [range(start, len(index), self._parts) for start in range(min(self._parts, len(index)))]
        for _ in self._pool.map(some, parts):
            pass
        return out


Store = PackedStore | FileStore


def open_store(
    crops: Crops,
    *,
    kind: str,
    size: tuple[int, int],
    folder: str | Path | None,
    workers: int = 0,
    unreadable: str = "error",
) -> Store:
    """`PackedStore.build` in `folder` (kind "packed"), or a `FileStore` (kind "files", which needs no folder).

    Raises:
        ReidError: another kind, or "packed" without a folder; and as the two say.
    """
    _check_choice("kind", kind, ("packed", "files"))
    if kind == "files":
        return FileStore(crops, size=size, workers=workers, unreadable=unreadable)
    if folder is None:
        raise ReidError("A packed store needs a folder to stand in; name one, or use kind 'files'.")
    return PackedStore.build(crops, folder, size=size, workers=workers, unreadable=unreadable)


def without_unreadable(crops: Crops, store: Store) -> tuple[Crops, Store]:
    """Crops and store without the rows that could not be read, row for row the same."""
    if store.kept.all():
        return crops, store
    return crops.take(store.kept), store.take(store.kept)


@dataclass(eq=False)
class _Index:
    """What `index.parquet` and `building.parquet` hold: columns of length N, and which data file they speak of."""

    settings: dict[str, Any]
    data: Path
    paths: list[str]
    bytes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    status: NDArray[np.int8]
    reasons: list[str]
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int64]

    @property
    def n_bytes(self) -> int:
        """The length of the data file."""
        return int((self.offsets + self.shapes.prod(axis=1) * 3).max(initial=0))

    def pixels(self, flat: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """One crop `[H, W, 3]` of the mapped data file."""
        height, width = self.shapes[row]
        start = self.offsets[row]
        return flat[start : start + height * width * 3].reshape(height, width, 3)

    def same_files(self, other: _Index) -> bool:
        """Whether both speak of the same files in the same order, none changed."""
        return (
            self.paths == other.paths
            and np.array_equal(self.bytes, other.bytes)
            and np.array_equal(self.mtimes, other.mtimes)
        )

    def readable_again(self) -> bool:
        """Whether a file that the system would not give us before may be read now."""
        return any(
            self.reasons[i].startswith("cannot be read") and os.access(self.paths[i], os.R_OK)
            for i in np.flatnonzero(self.status == _BAD)
        )

    def write(self, path: Path) -> None:
        """Write to `path`, whole or not at all."""
        columns = {
            "path": pa.array([os.fsencode(path) for path in self.paths], pa.binary()),
            "bytes": self.bytes,
            "mtime_ns": self.mtimes,
            "status": self.status,
            "reason": pa.array(self.reasons, pa.string()),
            "offset": self.offsets,
            "height": self.shapes[:, 0],
            "width": self.shapes[:, 1],
        }
        about = json.dumps({**self.settings, "n": len(self.paths), "data": self.data.name})
        with atomic_file(path) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata({_SETTINGS_KEY: about}), temporary)

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> _Index | None:
        """The index at `path`; None when there is none, it is damaged, or it was made with other settings."""
        try:
            table = pq.read_table(path)
            about = json.loads(table.schema.metadata[_SETTINGS_KEY])
            data = path.with_name(Path(about.pop("data")).name)
            del about["n"]
            index = cls(
                about,
                data,
                [os.fsdecode(path) for path in table["path"].to_pylist()],
                table["bytes"].to_numpy(),
                table["mtime_ns"].to_numpy(),
                table["status"].to_numpy().copy(),
                table["reason"].to_pylist(),
                table["offset"].to_numpy(),
                np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1),
            )
            return index if about == settings and data.stat().st_size == index.n_bytes else None
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
            return None


def _build(
    paths: list[str], folder: Path, settings: dict[str, Any], size: tuple[int, int] | None, workers: int
) -> _Index:
    wanted = _stat(paths, settings, folder / f"crops-{secrets.token_hex(4)}.u8")
    whole = _Index.load(folder / "index.parquet", settings)
    if whole and whole.same_files(wanted) and not whole.readable_again():
        return whole
    begun = _Index.load(folder / "building.parquet", settings)
    with ThreadPoolExecutor(_workers(workers), "reid-decode") as pool:
        try:
            if begun and begun.same_files(wanted):
                _fill(begun, folder, size, pool)
                index = begun
            else:
                index = _lay_out(wanted, size, pool)
                _make_room(index, folder)
                _fill(index, folder, size, pool, reuse=[old for old in (whole, begun) if old])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    index.write(folder / "index.parquet")
    (folder / "building.parquet").unlink(missing_ok=True)
    _tidy(folder, index)
    return index


def _stat(paths: list[str], settings: dict[str, Any], data: Path) -> _Index:
    """An index in which nothing is decoded yet; a file that is not there has -1 bytes."""
    n = len(paths)
    found = np.full((n, 2), -1, dtype=np.int64)
    for i, path in enumerate(paths):
        with contextlib.suppress(OSError):
            info = os.stat(path)
            found[i] = info.st_size, info.st_mtime_ns
    nothing = np.zeros(n, dtype=np.int64)
    return _Index(
        settings, data, paths, found[:, 0].copy(), found[:, 1].copy(), np.zeros(n, np.int8), [""] * n, nothing,
        np.zeros((n, 2), np.int64),
    )  # fmt: skip


def _lay_out(index: _Index, size: tuple[int, int] | None, pool: ThreadPoolExecutor) -> _Index:
    """Give every crop its place in the data file; at native size the headers say how large each is."""
    status, reasons = index.status.copy(), list(index.reasons)
    shapes = np.zeros((len(index.paths), 2), np.int64)
    if size is not None:
        shapes[:] = size
    else:
        for i, found in enumerate(pool.map(_shape_or_reason, index.paths)):
            if isinstance(found, str):
                status[i], reasons[i] = _BAD, found
            else:
                shapes[i] = found
    lengths = shapes.prod(axis=1) * 3
    return replace(index, status=status, reasons=reasons, shapes=shapes, offsets=np.cumsum(lengths) - lengths)


def _make_room(index: _Index, folder: Path) -> None:
    """Refuse before the disk runs full, and make the data file."""
    free = shutil.disk_usage(folder).free
    if free < index.n_bytes + _DISK_MARGIN:
        raise ReidError(
            f"The packed store of {len(index.paths):,} crops needs {index.n_bytes / 1e9:.2f} GB, but {folder} has "
            f"{free / 1e9:.2f} GB free. Free some space, give a folder on another disk, pack at a smaller size, or "
            "read the crops from their files (kind 'files')."
        )
    with open(index.data, "wb") as file:
        file.truncate(index.n_bytes)


def _fill(
    index: _Index, folder: Path, size: tuple[int, int] | None, pool: ThreadPoolExecutor, reuse: Sequence[_Index] = ()
) -> None:
    """Copy what `reuse` holds already and decode the rest, noting progress so that a killed build can go on."""
    saved = time.monotonic()
    lock = threading.Lock()

    def save(file: BinaryIO) -> None:
        nonlocal saved
        file.flush()
        os.fsync(file.fileno())
        index.write(folder / "building.parquet")
        saved = time.monotonic()

    def put(file: BinaryIO, row: int, pixels: NDArray[np.uint8]) -> None:
        with lock:
            file.seek(int(index.offsets[row]))
            file.write(np.ascontiguousarray(pixels).data)

    def one(file: BinaryIO, row: int) -> None:
        try:
            pixels = decode(index.paths[row], size)
            if pixels.shape[:2] != tuple(index.shapes[row]):
                raise UnreadableImage(index.paths[row], "changed while it was being read, or its header is wrong")
        except UnreadableImage as error:
            index.status[row], index.reasons[row] = _BAD, error.reason
            return
        put(file, row, pixels)
        index.status[row] = _DONE

    with open(index.data, "rb+") as file:
        try:
            for old in reuse:
                _copy(old, index, lambda row, pixels: put(file, row, pixels))
            left = np.flatnonzero(index.status == _TO_DO)
            with progress_bar() as bar:
                task = bar.add_task("Packing crops", total=len(index.paths), completed=len(index.paths) - len(left))
                for start in range(0, len(left), _CHUNK):
                    chunk = left[start : start + _CHUNK]
                    for _ in pool.map(lambda row: one(file, row), chunk.tolist()):
                        bar.advance(task)
                    if time.monotonic() - saved > _FLUSH_SECONDS:
                        save(file)
        finally:
            pool.shutdown(cancel_futures=True)
            with contextlib.suppress(OSError, ReidError):
                save(file)
        file.flush()
        os.fsync(file.fileno())


def _copy(old: _Index, new: _Index, put: Callable[[int, NDArray[np.uint8]], None]) -> None:
    """Take from `old` every crop that is still the same file, unchanged."""
    if not old.n_bytes:
        return
    flat = np.memmap(old.data, np.uint8, "r")
    row_of = {
        key: row
        for row, key in enumerate(zip(old.paths, old.bytes.tolist(), old.mtimes.tolist(), strict=True))
        if old.status[row] == _DONE
    }
    for row, key in enumerate(zip(new.paths, new.bytes.tolist(), new.mtimes.tolist(), strict=True)):
        source = row_of.get(key)
        if source is not None and new.status[row] == _TO_DO and (old.shapes[source] == new.shapes[row]).all():
            put(row, old.pixels(flat, source))
            new.status[row] = _DONE


def _tidy(folder: Path, index: _Index) -> None:
    """Remove the data files of earlier builds."""
    for path in folder.glob("crops-*.u8"):
        if path != index.data:
            with contextlib.suppress(OSError):  # where an open file cannot be removed, the next build does it
                path.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock when its holder ends, however it ends."""
    with open(folder / ".lock", "a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with contextlib.suppress(OSError):
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print(f"Another process is building {folder}; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shape_or_reason(path: str) -> tuple[int, int] | str:
    try:
        return probe(path)
    except UnreadableImage as error:
        return error.reason


def _why_unreadable(path: str) -> str:
    found = _shape_or_reason(path)
    return found if isinstance(found, str) else ""


def cores() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(workers: int) -> int:
    if workers < 0:
        raise ReidError(f"workers is {workers}; it must be 0 (one for each CPU) or more.")
    return workers or cores()


def _refuse(unreadable: Sequence[SkippedFile], n: int) -> None:
    if unreadable:
        lines = "".join(f"\n  {odd.path}: {odd.reason}" for odd in unreadable[:10])
        more = f"\n  … and {len(unreadable) - 10:,} more" if len(unreadable) > 10 else ""
        raise ReidError(
            f"{len(unreadable):,} of {n:,} images cannot be read:{lines}{more}\n"
            "Mend or remove these files, or say unreadable 'skip' to go on without them."
        )


def _rows(index: ArrayLike) -> NDArray[np.int64] | NDArray[np.bool_]:
    rows = np.asarray(index)
    return rows if rows.dtype == np.bool_ else rows.astype(np.int64)


def _checked(index: ArrayLike, kept: NDArray[np.bool_], unreadable: Sequence[SkippedFile]) -> NDArray[np.int64]:
    rows = np.asarray(index, dtype=np.int64)
    if rows.ndim != 1:
        raise ReidError(f"Rows to read are an array {rows.shape}; they must be one column [B].")
    outside = (rows < 0) | (rows >= len(kept))
    if outside.any():
        raise ReidError(f"Row {rows[outside][0]} is not in the store, which has rows 0 to {len(kept) - 1}.")
    bad = rows[~kept[rows]]
    if len(bad):
        odd = unreadable[int((~kept[: bad[0]]).sum())]
        raise ReidError(f"Row {bad[0]} could not be read and was left out: {odd.path}: {odd.reason}.")
    return rows


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ReidError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}.")


def _check_size(size: tuple[int, int] | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1 or size[0] * size[1] > MAX_PIXELS):
        raise ReidError(f"size is {size}; it must be (height, width), each at least 1 pixel.")
