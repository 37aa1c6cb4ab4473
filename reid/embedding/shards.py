"""Shards: finished features in Parquet files of about a thousand rows, so that an interrupted run can resume."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reid.core.atomic import atomic_file
from reid.core.errors import DataError, first_line
from reid.embedding.batches import EmbeddedBatch

SHARD_SIZE = 1024
"""Default number of rows in a shard: the most that an interruption loses."""

Keys = NDArray[np.bytes_]
"""`[N]` byte strings of one length (dtype S) that identify rows across runs."""


class Shards:
    """Finished rows, found by key. If a key occurs more than once, the row written last is used.

    A shard has the columns `key`, `features` (zeros if the row failed), `reason` (why it failed, else empty) and those
    that the caller adds (null if the row failed).

    Args:
        folder: where the shards are stored; None keeps them in memory.
        dimension: D of the features.

    Attributes:
        notes: messages about shards that cannot be read. Their rows count as missing.
    """

    def __init__(self, folder: Path | None, dimension: int) -> None:
        self.folder, self.dimension = folder, dimension
        self.notes: list[str] = []
        self._shards: list[Path | pa.Table] = []
        self._keys: list[Keys] = []
        self._failed: list[NDArray[np.bool_]] = []
        self._next = 0
        for path in sorted(folder.glob("[0-9a-zA-Z]*.parquet")) if folder else ():  # unfinished files are hidden
            try:
                table = pq.read_table(path, columns=["key", "reason"])
                if pq.read_schema(path).field("features").type.list_size != dimension:
                    raise pa.ArrowInvalid("features of another dimension")
                self._add(path, table)
            except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
                self.notes.append(f"{path} cannot be read and is not used ({first_line(error)}).")
            number = path.name.split("-")[0]
            self._next = max(self._next, int(number) + 1 if number.isdecimal() else 0)

    def find(self, keys: Keys, *, failed: bool = True) -> NDArray[np.int64]:
        """Return the position `[N]` of each key, for `read`; -1 if it is missing.

        With `failed=False`, rows that failed count as missing.
        """
        known = np.concatenate([np.zeros(0, keys.dtype), *self._keys])
        rows = np.arange(len(known)) if failed else np.flatnonzero(~np.concatenate([np.zeros(0, bool), *self._failed]))
        if not len(rows):
            return np.full(len(keys), -1)
        order = np.argsort(known[rows], kind="stable")
        rows = rows[order]
        last = np.searchsorted(known[rows], keys, side="right") - 1
        return np.where(known[rows[last]] == keys, rows[last], -1)

    def count_others(self, keys: Keys) -> int:
        """Return the number of rows whose key is not among `keys`."""
        return int(sum(np.isin(known, keys, invert=True).sum() for known in self._keys))

    def read(self, positions: NDArray[np.int64], column: str) -> NDArray[Any]:
        """Return one column at `positions [M]`, in that order; one shard at a time is in memory.

        Returns:
            `features` as float32 `[M, D]`; other columns as `[M]`, text and bytes as objects.

        Raises:
            DataError: a shard that was complete when it was found cannot be read now.
        """
        starts = np.cumsum([0, *map(len, self._keys)])
        shard_of = np.searchsorted(starts, positions, side="right") - 1
        result = np.zeros((0, self.dimension) if column == "features" else 0, np.float32)
        for number in np.unique(shard_of).tolist():
            values = self._read_shard(self._shards[number], column)
            if len(result) < len(positions):
                result = np.empty((len(positions), *values.shape[1:]), values.dtype)
            chosen = shard_of == number
            result[chosen] = values[positions[chosen] - starts[number]]
        return result

    def write(self, shard: pa.Table) -> None:
        """Add the rows of `make_shard`. The file is written completely or not at all."""
        if self.folder is None:
            self._add(shard, shard)
            return
        path = self.folder / f"{self._next:06d}-{secrets.token_hex(4)}.parquet"  # several processes may write
        with atomic_file(path) as temporary:
            pq.write_table(shard, temporary)
        self._next += 1
        self._add(path, shard)

    def remove(self) -> None:
        """Delete the folder."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, shard: Path | pa.Table, table: pa.Table) -> None:
        key = table["key"].combine_chunks()
        width, end = key.type.byte_width, key.offset + len(key)
        self._keys.append(np.frombuffer(key.buffers()[1], f"S{width}", count=end)[key.offset :].copy())
        self._failed.append(pc.not_equal(table["reason"], "").to_numpy())
        self._shards.append(shard)

    def _read_shard(self, shard: Path | pa.Table, column: str) -> NDArray[Any]:
        try:
            values = (shard if isinstance(shard, pa.Table) else pq.read_table(shard, columns=[column]))[column]
        except (pa.ArrowException, OSError, KeyError) as error:
            text = first_line(error)
            raise DataError(f"{shard} cannot be read: {text}. Delete it and run the command again.") from error
        if column == "features":
            return pc.list_flatten(values).to_numpy().reshape(-1, self.dimension)
        return values.to_numpy()


def make_shard(keys: Keys, features: NDArray[np.float32], reasons: Sequence[str], **columns: pa.Array) -> pa.Table:
    """Return a table for `Shards.write`: keys `[n]`, features `[n, D]`, reasons and other columns of n values."""
    buffer = pa.py_buffer(np.ascontiguousarray(keys))
    flat = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
    return pa.table(
        {
            "key": pa.Array.from_buffers(pa.binary(keys.dtype.itemsize), len(keys), [None, buffer]),
            "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1]),
            "reason": pa.array(reasons, type=pa.string()),
            **columns,
        }
    )


def shard_folder(parent: Path, name: str, identity: object) -> Path:
    """Return the folder for shards made with `identity` (plain JSON values): a readable name and a digest."""
    return parent / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{json_digest(identity)[:16]}"


def json_digest(value: object) -> str:
    """Return the hexadecimal SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fill(
    shards: Shards, keys: Keys, batches: Iterator[EmbeddedBatch], shard_size: int = SHARD_SIZE
) -> Iterator[list[int]]:
    """Write batches to shards of at least `shard_size` rows, and yield the rows of each batch.

    Rows that are finished when the iteration ends, also by an exception, are written.

    Args:
        shards: where to write.
        keys: `[N]`, the key of each row that the batches refer to.
        batches: image batches and the features of their images.
        shard_size: number of rows in a shard.
    """
    waiting: list[pa.Table] = []
    try:
        for batch in batches:
            waiting.append(batch_table(keys, batch))
            if sum(map(len, waiting)) >= shard_size:
                shards.write(pa.concat_tables(waiting, promote_options="default"))
                waiting.clear()
            yield [*batch[0].rows, *batch[0].failed]
    finally:
        if waiting:
            shards.write(pa.concat_tables(waiting, promote_options="default"))


def batch_table(keys: Keys, batch: EmbeddedBatch) -> pa.Table:
    """Return the rows of a batch for `Shards.write`; `keys [N]` are those of all rows that batches refer to."""
    images, features = batch
    failed = list(images.failed)
    zeros = np.zeros((len(failed), features.shape[1]), np.float32)
    embedded = make_shard(keys[images.rows], features, [""] * len(images.rows), **images.columns)
    refused = make_shard(keys[failed], zeros, list(images.failed.values()))  # other columns become null
    return pa.concat_tables([embedded, refused], promote_options="default")
