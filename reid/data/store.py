"""Stores of crops: decoded once into one memory-mapped uint8 array, or decoded from their files at each read.

The folder of a packed store contains `index.parquet` (one row per crop; its schema metadata contains the settings and
the name of the data file) and `crops-<token>.u8` (raw RGB). During a build, `building.parquet` names the data file that
is being filled, so that an interrupted build can continue. `index.parquet` is replaced atomically in the last step:
readers see the old store or the new one. Readers in other processes keep the old data file mapped until they close it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from reid.core.atomic import atomic_file, check_free_space
from reid.core.console import progress_bar, track
from reid.core.errors import ConfigError, DataError, ReidError, check_choice, check_number
from reid.core.locks import exclusive
from reid.core.reading import parse_json
from reid.core.workers import available_cores
from reid.data.crops import Crops, SkippedFile, as_rows
from reid.data.images import MAX_PIXELS, UnreadableImage, decode, probe, resize

FORMAT = 1
_TO_DO, _DONE, _BAD = 0, 1, 2
_SETTINGS_KEY = b"reid.store"
_CHUNK = 256
_FLUSH_SECONDS = 2.0

_ROW = np.dtype([(name, np.int64) for name in ("bytes", "mtime_ns", "status", "offset", "height", "width")])
"""Numbers of a crop in the index: size and modification time of its file, status, and place in the data file."""


class PackedStore:
    """Every crop decoded once into one uint8 file, which all processes map. Created by `build`.

    Attributes:
        size: (height, width) of every crop; None if the crops have their native sizes, which differ.
        kept: `[N]` bool, False where the file could not be read and `unreadable` was "skip".
        unreadable: those files, with the reasons.
    """

    def __init__(self, index: _Index, rows: NDArray[np.int64]) -> None:
        self._index, self._rows = index, rows
        self.kept: NDArray[np.bool_] = index.rows["status"][rows] == _DONE
        self.unreadable = tuple(SkippedFile(index.paths[i], index.reasons[i]) for i in rows[~self.kept])
        self._flat = index.map_data()
        size = index.settings["size"]
        shapes = [size] if size else np.unique(index.shapes[rows[self.kept]], axis=0).tolist()
        self.size: tuple[int, int] | None = tuple(shapes[0]) if len(shapes) == 1 else None
        self._array: NDArray[np.uint8] | None = None
        self._slots = np.zeros(0, np.int64)
        if self.size is not None and (index.rows["offset"] % (n := self.size[0] * self.size[1] * 3) == 0).all():
            slots = len(self._flat) // n
            self._array = self._flat[: slots * n].reshape(slots, *self.size, 3)
            self._slots = index.rows["offset"] // n

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
        """Open the store of `crops` in `folder`, after decoding what it does not contain yet.

        A complete, current store (the same files in the same order, with the same sizes and modification times, and
        the same settings) opens without decoding. If files were changed, added, removed or moved, only those that the
        old store does not contain are decoded; other settings decode all. A folder is for one set of crops at one
        size: use another folder for another set, or each build replaces the other. If several processes call this
        simultaneously, one builds and the others wait.

        Args:
            crops: rows of the store.
            folder: of the store.
            size: (height, width) that every crop is resized to (area average if neither side grows, else bilinear);
                None keeps the native sizes.
            workers: decoding threads; 0 for one per CPU core of this process.
            unreadable: "error", or "skip" to leave unreadable images out (see `kept`).

        Raises:
            ConfigError: a setting out of range.
            DataError: images that cannot be read (with "error"), no crops, or no space. What was decoded until then
                is kept.
        """
        _check_settings(unreadable, size)
        if len(crops) == 0:
            raise DataError(f"There is no crop to pack into {folder}.")
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
            with exclusive(folder, wait=True):
                index = _build(list(map(str, crops.paths)), folder, settings, workers)
        except OSError as error:
            raise DataError(
                f"Cannot build the packed store in {folder}: {error.strerror or error}. Free some space or use a "
                "writable folder, then start again: the images decoded so far are kept."
            ) from error
        store = cls(index, np.arange(len(crops)))
        _check_unreadable(store, unreadable)
        return store

    def __len__(self) -> int:
        """The number of crops, unreadable ones included."""
        return len(self._rows)

    def take(self, index: ArrayLike) -> PackedStore:
        """Return a store of these rows (index array or boolean mask) over the same file."""
        return PackedStore(self._index, self._rows[as_rows(index)])

    def read(self, index: ArrayLike, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return RGB `[B, H, W, 3]` uint8 of the rows `index [B]`, a new array; resized to `size` if given.

        Raises:
            DataError: a row that does not exist or could not be read; crops of several sizes without `size`.
        """
        index = _checked(index, self.kept, self.unreadable)
        rows = self._rows[index]
        if self._array is not None and size in (None, self.size):
            return np.take(self._array, self._slots[rows], axis=0)
        size = size or self.size
        if size is None:
            raise DataError("This store contains crops of several sizes. Use read(index, size=(height, width)).")
        out = np.empty((len(rows), *size, 3), np.uint8)
        for target, row in zip(out, rows, strict=True):
            resize(self._index.pixels(self._flat, row), size, out=target)
        return out


class FileStore:
    """The same interface without a copy on disk: each read decodes the files again, in threads.

    Opening checks the header and the end of each file, not its content.

    Attributes:
        size: (height, width) of every crop read.
        kept, unreadable: as in `PackedStore`.
    """

    def __init__(self, crops: Crops, *, size: tuple[int, int], workers: int = 0, unreadable: str = "error") -> None:
        _check_settings(unreadable, size)
        self.size = (int(size[0]), int(size[1]))
        threads = _workers(workers)
        self._pool = ThreadPoolExecutor(threads, "reid-decode")
        self._parts = threads if threads == 1 else 4 * threads  # small parts, so that the threads end together
        found = self._pool.map(_shape_or_reason, map(str, crops.paths))
        reasons = [item if isinstance(item, str) else "" for item in track(found, "Checking images", len(crops))]
        self._select(crops.paths, np.array(reasons, dtype=object))
        _check_unreadable(self, unreadable)

    def _select(self, paths: NDArray[np.object_], reasons: NDArray[np.object_]) -> None:
        self._paths, self._reasons = paths, reasons
        self.kept: NDArray[np.bool_] = reasons == ""
        self.unreadable = tuple(map(SkippedFile, paths[~self.kept], reasons[~self.kept]))

    def __len__(self) -> int:
        """The number of crops, unreadable ones included."""
        return len(self._paths)

    def take(self, index: ArrayLike) -> FileStore:
        """Return a store of these rows (index array or boolean mask)."""
        taken, rows = copy.copy(self), as_rows(index)
        taken._select(self._paths[rows], self._reasons[rows])
        return taken

    def read(self, index: ArrayLike, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return RGB `[B, H, W, 3]` uint8 of the rows `index [B]`; see `PackedStore.read`.

        Raises:
            DataError: a row that does not exist, or a file that cannot be decoded any more.
        """
        index = _checked(index, self.kept, self.unreadable)
        size = size or self.size
        out = np.empty((len(index), *size, 3), np.uint8)

        def decode_part(places: range) -> None:
            for place in places:
                out[place] = decode(self._paths[index[place]], size)

        parts = [range(start, len(index), self._parts) for start in range(min(self._parts, len(index)))]
        for _ in self._pool.map(decode_part, parts):
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
    """Return `PackedStore.build` in `folder` (kind "packed"), or a `FileStore` (kind "files", without a folder).

    Raises:
        ConfigError: another kind, or "packed" without a folder.
        DataError: as the two stores.
    """
    check_choice("kind of store", kind, ("packed", "files"))
    if kind == "files":
        return FileStore(crops, size=size, workers=workers, unreadable=unreadable)
    if folder is None:
        raise ConfigError("A packed store needs a folder. Pass one, or use kind 'files'.")
    return PackedStore.build(crops, folder, size=size, workers=workers, unreadable=unreadable)


def without_unreadable(crops: Crops, store: Store) -> tuple[Crops, Store]:
    """Return crops and store without the rows that could not be read."""
    if store.kept.all():
        return crops, store
    return crops.take(store.kept), store.take(store.kept)


@dataclass(eq=False)
class _Index:
    """Content of `index.parquet` or `building.parquet`: `N` crops and the data file with their pixels."""

    settings: dict[str, Any]
    data: Path
    paths: list[str]
    reasons: list[str]
    rows: NDArray[Any]
    """`[N]` of `_ROW`."""

    @property
    def shapes(self) -> NDArray[np.int64]:
        """`[N, 2]` height and width."""
        return np.stack([self.rows["height"], self.rows["width"]], axis=1)

    @property
    def n_bytes(self) -> int:
        """The length of the data file."""
        return int((self.rows["offset"] + self.shapes.prod(axis=1) * 3).max(initial=0))

    @property
    def files(self) -> list[tuple[str, int, int]]:
        """Path, size and modification time of each file."""
        return list(zip(self.paths, self.rows["bytes"].tolist(), self.rows["mtime_ns"].tolist(), strict=True))

    def map_data(self) -> NDArray[np.uint8]:
        """Map the data file into memory, read-only."""
        return np.asarray(np.memmap(self.data, np.uint8, "r")) if self.n_bytes else np.zeros(0, np.uint8)

    def pixels(self, flat: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """Return one crop `[H, W, 3]` of the mapped data file."""
        start, height, width = self.rows[["offset", "height", "width"]][row].tolist()
        return flat[start : start + height * width * 3].reshape(height, width, 3)

    def readable_again(self) -> bool:
        """Return whether a file that could not be opened before can be opened now."""
        return any(
            self.reasons[i].startswith("cannot be read") and os.access(self.paths[i], os.R_OK)
            for i in np.flatnonzero(self.rows["status"] == _BAD)
        )

    def write(self, path: Path) -> None:
        """Write to `path`, completely or not at all."""
        columns = {
            "path": pa.array(list(map(os.fsencode, self.paths)), pa.binary()),
            "reason": pa.array(self.reasons, pa.string()),
            **{name: np.ascontiguousarray(self.rows[name]) for name in _ROW.names or ()},
        }
        about = json.dumps({**self.settings, "data": self.data.name})
        with atomic_file(path) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata({_SETTINGS_KEY: about}), temporary)

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> _Index | None:
        """Return the index at `path`; None if it is missing, damaged, or of other settings."""
        try:
            table = pq.read_table(path)
            about = parse_json(table.schema.metadata[_SETTINGS_KEY], str(path))
            data = path.with_name(Path(about.pop("data")).name)
            rows = np.empty(table.num_rows, _ROW)
            for name in _ROW.names or ():
                rows[name] = table[name].to_numpy()
            paths = [os.fsdecode(path) for path in table["path"].to_pylist()]
            index = cls(about, data, paths, table["reason"].to_pylist(), rows)
            if any((rows[name] < 0).any() for name in ("offset", "height", "width")):
                return None
            return index if about == settings and data.stat().st_size == index.n_bytes else None
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, pa.ArrowException):
            return None


def _build(paths: list[str], folder: Path, settings: dict[str, Any], workers: int) -> _Index:
    rows = np.zeros(len(paths), _ROW)
    rows["bytes"] = rows["mtime_ns"] = -1  # stays so for a missing file
    for i, path in enumerate(paths):
        with contextlib.suppress(OSError):
            info = os.stat(path)
            rows["bytes"][i], rows["mtime_ns"][i] = info.st_size, info.st_mtime_ns % 2**63  # int64 ends in 2262
    index = _Index(settings, folder / f"crops-{secrets.token_hex(4)}.u8", paths, [""] * len(paths), rows)
    complete = _Index.load(folder / "index.parquet", settings)
    if complete and complete.files == index.files and not complete.readable_again():
        _remove_others(complete)
        return complete
    begun = _Index.load(folder / "building.parquet", settings)
    with ThreadPoolExecutor(_workers(workers), "reid-decode") as pool:
        try:
            if begun and begun.files == index.files:
                index = begun
                _fill(index, pool)
            else:
                _lay_out(index, pool)
                _fill(index, pool, reuse=[old for old in (complete, begun) if old])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    index.write(folder / "index.parquet")
    _remove_others(index)
    return index


def _remove_others(index: _Index) -> None:
    """Remove what a complete store does not need; a process that was killed at this point leaves it."""
    for path in [index.data.with_name("building.parquet"), *index.data.parent.glob("crops-*.u8")]:
        if path != index.data:
            with contextlib.suppress(OSError):  # Windows cannot remove an open file; the next process does
                path.unlink()


def _lay_out(index: _Index, pool: ThreadPoolExecutor) -> None:
    """Give every crop its place in a new data file; native sizes are read from the headers."""
    rows = index.rows
    if index.settings["size"]:
        rows["height"], rows["width"] = index.settings["size"]
    else:
        for i, found in enumerate(pool.map(_shape_or_reason, index.paths)):
            if isinstance(found, str):
                rows["status"][i], index.reasons[i] = _BAD, found
            else:
                rows["height"][i], rows["width"][i] = found
    lengths = index.shapes.prod(axis=1) * 3
    rows["offset"] = np.cumsum(lengths) - lengths
    folder = index.data.parent
    other = "pack at a smaller size, or read the crops from their files (kind 'files')"
    check_free_space(folder, index.n_bytes, f"Packing {len(index.paths):,} crops", other)
    with open(index.data, "wb") as file:
        file.truncate(index.n_bytes)


def _fill(index: _Index, pool: ThreadPoolExecutor, reuse: Sequence[_Index] = ()) -> None:
    """Copy what `reuse` contains and decode the rest. Progress is saved so that an interrupted build can continue."""
    saved = time.monotonic()
    lock = threading.Lock()

    def save(file: BinaryIO) -> None:
        nonlocal saved
        file.flush()
        os.fsync(file.fileno())
        index.write(index.data.with_name("building.parquet"))
        saved = time.monotonic()

    def put(file: BinaryIO, row: int, pixels: NDArray[np.uint8]) -> None:
        with lock:
            file.seek(int(index.rows["offset"][row]))
            file.write(np.ascontiguousarray(pixels).data)
        index.rows["status"][row] = _DONE

    def decode_row(file: BinaryIO, row: int) -> None:
        try:
            pixels = decode(index.paths[row], index.settings["size"])
            if pixels.shape[:2] != (index.rows["height"][row], index.rows["width"][row]):
                raise UnreadableImage(index.paths[row], "changed during reading, or its header is wrong")
            put(file, row, pixels)
        except UnreadableImage as error:
            index.rows["status"][row], index.reasons[row] = _BAD, error.reason

    with open(index.data, "rb+") as file:
        try:
            for old in reuse:
                for row, pixels in _unchanged(old, index):
                    put(file, row, pixels)
            left = np.flatnonzero(index.rows["status"] == _TO_DO)
            with progress_bar() as bar:
                task = bar.add_task("Packing crops", total=len(index.paths), completed=len(index.paths) - len(left))
                for start in range(0, len(left), _CHUNK):
                    chunk = left[start : start + _CHUNK]
                    for _ in pool.map(lambda row: decode_row(file, row), chunk.tolist()):
                        bar.advance(task)
                    if time.monotonic() - saved > _FLUSH_SECONDS:
                        save(file)
        finally:
            pool.shutdown(cancel_futures=True)
            with contextlib.suppress(OSError, ReidError):
                save(file)
        file.flush()
        os.fsync(file.fileno())


def _unchanged(old: _Index, new: _Index) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield row and pixels of every crop whose file is the same and unchanged."""
    flat = old.map_data()
    row_of = {file: row for row, file in enumerate(old.files) if old.rows["status"][row] == _DONE}
    for row, file in enumerate(new.files):
        source = row_of.get(file)
        if source is not None and new.rows["status"][row] == _TO_DO:
            pixels = old.pixels(flat, source)
            if pixels.shape[:2] == (new.rows["height"][row], new.rows["width"][row]):
                yield row, pixels


def _shape_or_reason(path: str) -> tuple[int, int] | str:
    try:
        return probe(path)
    except UnreadableImage as error:
        return error.reason


def cache_folder() -> Path:
    """Return the folder of packed stores: `$REID_CACHE`, else `~/.cache/reid`.

    Raises:
        ConfigError: the variable is not set and there is no home directory.
    """
    try:
        return Path(os.environ.get("REID_CACHE") or Path.home() / ".cache/reid")
    except RuntimeError as error:
        raise ConfigError("There is no home directory for the cache. Set REID_CACHE to a writable folder.") from error


def is_store(folder: Path) -> bool:
    """Return whether a folder is a packed store, finished or not, and contains nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return any(re.fullmatch(r"crops-\w+\.u8", name) for name in names) and all(
        re.fullmatch(r"crops-\w+\.u8|(index|building)\.parquet|\..*", name) for name in names
    )


def _workers(workers: int) -> int:
    check_number("workers (0: one per CPU core)", workers)
    return workers or available_cores()


def _check_unreadable(store: Store, setting: str) -> None:
    files = store.unreadable
    if setting == "error" and files:
        lines = "".join(f"\n  {item.path}: {item.reason}" for item in files[:10])
        more = f"\n  … and {len(files) - 10:,} more" if len(files) > 10 else ""
        raise DataError(
            f"{len(files):,} of {len(store):,} images cannot be read:{lines}{more}\n"
            "Replace or remove these files, or use unreadable='skip' to continue without them."
        )


def _checked(index: ArrayLike, kept: NDArray[np.bool_], unreadable: Sequence[SkippedFile]) -> NDArray[np.int64]:
    rows = np.asarray(index, dtype=np.int64)
    if rows.ndim != 1:
        raise DataError(f"The rows to read have shape {rows.shape}; they must be one column [B].")
    outside = (rows < 0) | (rows >= len(kept))
    if outside.any():
        raise DataError(f"Row {rows[outside][0]} is not in the store, which has rows 0 to {len(kept) - 1}.")
    bad = rows[~kept[rows]]
    if len(bad):
        item = unreadable[int((~kept[: bad[0]]).sum())]
        raise DataError(f"Row {bad[0]} could not be read and was skipped: {item.path}: {item.reason}.")
    return rows


def _check_settings(unreadable: str, size: tuple[int, int] | None) -> None:
    check_choice("value of unreadable", unreadable, ("error", "skip"))
    if size is not None and (len(size) != 2 or min(size) < 1 or size[0] * size[1] > MAX_PIXELS):
        raise ConfigError(f"size is {size}; it must be (height, width), each at least 1 pixel.")
