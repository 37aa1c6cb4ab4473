"""Features that are finished, kept as they come: Parquet files in a folder, each written once and never changed."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reid.core.atomic import atomic_file
from reid.core.errors import ReidError

PART_SIZE = 1024
"""Rows in a part: what a kill loses at most."""

Keys = NDArray[np.bytes_]
"""`[N]` byte strings of one length (dtype S): what a row is known by, whatever run it was embedded in."""


class Batch(NamedTuple):
    """Images ready for the model, and what else is known of them.

    Attributes:
        rows: the row of each of the B images, as its source counts.
        images: uint8 `[B, h, w, 3]` RGB, of the model's size.
        names: of each image, for messages.
        failed: the rows that have no image, and why.
        columns: further values of the images, B each.
    """

    rows: list[int]
    images: NDArray[np.uint8]
    names: list[str]
    failed: dict[int, str]
    columns: Mapping[str, pa.Array] = {}


class Parts:
    """Finished rows by key; of a key that comes twice the last one written counts.

    A part has the columns `key`, `features` (zeros where there are none), `reason` (why not; else empty) and any that
    the caller adds. Without a folder the parts stay in memory.

    Attributes:
        folder: where the parts lie, or None.
        notes: in words, the parts that cannot be read, which count as absent.
    """

    def __init__(self, folder: Path | None, dimension: int) -> None:
        self.folder, self.dimension = folder, dimension
        self.notes: list[str] = []
        self._parts: list[Path | pa.Table] = []
        self._keys: list[Keys] = []
        self._failed: list[NDArray[np.bool_]] = []
        self._next = 0
        for path in sorted(folder.glob("[0-9]*.parquet")) if folder else ():  # hidden ones were never finished
            try:
                table = pq.read_table(path, columns=["key", "reason"])
                if pq.read_schema(path).field("features").type.list_size != dimension:
                    raise pa.ArrowInvalid("features of another dimension")
                self._add(path, table)
            except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
                self.notes.append(f"{path} cannot be read and is not used ({str(error).splitlines()[0]}).")
            self._next = max(self._next, int(path.name.split("-")[0]) + 1)

    def __len__(self) -> int:
        """The number of rows, failed ones and repeated keys included."""
        return sum(map(len, self._keys))

    def find(self, keys: Keys, *, failed: bool = True) -> NDArray[np.int64]:
        """The place `[N]` of each key, for `read`; -1 where it is not there, or failed and `failed` is False."""
        if not len(self):
            return np.full(len(keys), -1)
        own = np.concatenate(self._keys)
        if not failed:
            kept = np.flatnonzero(~np.concatenate(self._failed))
            own = own[kept]
            if not len(own):
                return np.full(len(keys), -1)
        order = np.argsort(own, kind="stable")
        at = order[np.searchsorted(own, keys, side="right", sorter=order) - 1]  # of equal keys the last
        place = np.where(own[at] == keys, at, -1)
        return place if failed else np.where(place >= 0, kept[place], -1)

    def others(self, keys: Keys) -> int:
        """How many rows have a key that is none of these."""
        return int(np.isin(np.concatenate(self._keys), keys, invert=True).sum()) if len(self) else 0

    def read(self, places: NDArray[np.int64], columns: Sequence[str]) -> dict[str, NDArray[Any]]:
        """These columns of the rows at `places [M]`, in that order; one part at a time is in memory.

        `features` is float32 `[M, D]`, text and bytes are objects.

        Raises:
            ReidError: a part that was whole when it was found cannot be read now.
        """
        starts = np.cumsum([0, *map(len, self._keys)])
        part = np.searchsorted(starts, places, side="right") - 1
        found: dict[str, NDArray[Any]] = {}
        for number in np.unique(part).tolist():
            own = part == number
            rows = places[own] - starts[number]
            for name, values in self._values(number, columns).items():
                if name not in found:
                    found[name] = np.empty((len(places), *values.shape[1:]), values.dtype)
                found[name][own] = values[rows]
        if not len(places):
            return {name: np.zeros((0, self.dimension) if name == "features" else 0, np.float32) for name in columns}
        return found

    def write(
        self,
        keys: Keys,
        features: NDArray[np.float32],
        reasons: Sequence[str],
        columns: Mapping[str, pa.Array],
    ) -> None:
        """Add a part: keys `[n]`, features `[n, D]`, reasons and further columns of n values, whole or not at all."""
        flat = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
        table = pa.table(
            {
                "key": pa.Array.from_buffers(
                    pa.binary(keys.dtype.itemsize), len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys))]
                ),
                "features": pa.FixedSizeListArray.from_arrays(flat, self.dimension),
                "reason": pa.array(reasons, type=pa.string()),
                **columns,
            }
        )
        if self.folder is None:
            self._add(table, table)
            return
        path = self.folder / f"{self._next:06d}-{secrets.token_hex(4)}.parquet"  # several processes may write
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary)
        self._next += 1
        self._add(path, table)

    def remove(self) -> None:
        """Delete the folder."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, part: Path | pa.Table, table: pa.Table) -> None:
        key = table.column("key").combine_chunks()
        width = key.type.byte_width
        raw = np.frombuffer(key.buffers()[1], np.uint8)[key.offset * width : (key.offset + len(key)) * width]
        self._keys.append(raw.view(f"S{width}").copy())
        self._failed.append(np.array([bool(reason) for reason in table.column("reason").to_pylist()], dtype=bool))
        self._parts.append(part)

    def _values(self, number: int, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
        part = self._parts[number]
        try:
            table = part.select(columns) if isinstance(part, pa.Table) else pq.read_table(part, columns=list(columns))
            return {name: self._array(name, table.column(name)) for name in columns}
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ReidError(
                f"{part} cannot be read: {str(error).splitlines()[0]}. Delete it and run again: its rows are "
                "embedded anew."
            ) from error

    def _array(self, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
        if name == "features":
            return column.combine_chunks().flatten().to_numpy().reshape(-1, self.dimension)
        return column.to_numpy()


def part_folder(within: Path, name: str, key: object) -> Path:
    """The folder of parts that `key` (plain JSON values) made, by a readable name: another key, another folder."""
    return within / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{digest_of(key)[:16]}"


def digest_of(value: object) -> str:
    """A hexadecimal SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fill(
    parts: Parts,
    keys: Keys,
    batches: Iterator[tuple[Batch, NDArray[np.float32]]],
    part_size: int = PART_SIZE,
) -> Iterator[list[int]]:
    """Write what comes to parts of at least `part_size` rows; the rows of each batch come out once they are embedded.

    What is finished when it ends, however it ends, is written.

    Args:
        parts: what is filled.
        keys: `[N]`, of the rows that the batches count.
        batches: each with the features of its images.
        part_size: rows in a part.
    """
    waiting: list[tuple[Batch, NDArray[np.float32]]] = []

    def write() -> None:
        if not waiting:
            return
        rows = [row for batch, _ in waiting for row in (*batch.rows, *batch.failed)]
        reasons = [why for batch, _ in waiting for why in (*[""] * len(batch.rows), *batch.failed.values())]
        features = np.zeros((len(rows), parts.dimension), np.float32)
        columns: dict[str, list[pa.Array]] = {name: [] for name in waiting[0][0].columns}
        start = 0
        for batch, own in waiting:
            features[start : start + len(own)] = own
            start += len(own) + len(batch.failed)
            for name, values in batch.columns.items():
                columns[name] += [values, pa.nulls(len(batch.failed), values.type).fill_null(_nothing(values.type))]
        waiting.clear()
        parts.write(keys[rows], features, reasons, {name: pa.concat_arrays(some) for name, some in columns.items()})

    try:
        count = 0
        for batch, features in batches:
            waiting.append((batch._replace(images=batch.images[:0]), features))
            count += len(batch.rows) + len(batch.failed)
            if count >= part_size:
                write()
                count = 0
            yield [*batch.rows, *batch.failed]
    finally:
        write()


def _nothing(kind: pa.DataType) -> Any:
    return b"" if pa.types.is_binary(kind) else 0
