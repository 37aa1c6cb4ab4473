"""The distributed store: the rows of a gallery in a collection of a Milvus server.

Milvus has no transactions, so the gallery's folder has two small files. `rows.json` says which rows count: those with a
key below its number. `adding.json` is the journal of an addition: after a crash the next write removes rows that were
not committed, or that were replaced.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.core.atomic import write_json
from reid.core.errors import DataError, first_line
from reid.core.reading import read_json
from reid.gallery.rows import UNKNOWN_TIME, feature_matrix, schema
from reid.gallery.scan import distances
from reid.gallery.scope import Scope
from reid.gallery.store import Equal, RowsChanged

STATE, JOURNAL = "rows.json", "adding.json"
TOKEN = "MILVUS_TOKEN"
"""Environment variable with the user and password (`user:password`) of a server that asks for them."""

KEY = "key"
MOST_PROPOSALS = 16_384
"""Largest number of rows that Milvus returns for a search."""

_NO_TIME = -9_000_000_000_000_000_000
"""Above `UNKNOWN_TIME` and below all times; Milvus cannot parse the smallest integer."""

_ERROR = 1e-4
"""Largest difference between a distance of Milvus and the one computed here."""

_ROWS_PER_PAGE = 10_000
_VALUES_IN_A_FILTER = 2000
_BYTES_PER_REQUEST = 16_000_000
_LONGEST_TEXT = 65_535
_SECONDS = 120.0


class Address(NamedTuple):
    """Server and collection of `milvus://host:port/name`."""

    uri: str
    name: str


def parse_address(address: str) -> Address:
    """Return the parts of an address; `milvus+tls://` encrypts the connection.

    Raises:
        ValueError: another text.

    Example:
        >>> parse_address("milvus://localhost:19530/shop")
        Address(uri='http://localhost:19530', name='shop')
    """
    parts = urlsplit(address)
    name = parts.path.removeprefix("/")
    scheme = {"milvus": "http", "milvus+tls": "https"}.get(parts.scheme)
    if scheme is None or not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{address!r} is not an address such as milvus://localhost:19530/shop")
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name) is None:
        raise ValueError(f"{name!r} in {address!r} is not the name of a collection: use letters, digits and _")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(f"{scheme}://{host}:{parts.port or 19530}", name)


def connect(address: str) -> Any:
    """Return a client of the server.

    Raises:
        DataError: pymilvus is not installed, or the server does not answer.
    """
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        text = f"{address} needs pymilvus. Install it with: pip install 'reid-toolkit[milvus]'"
        raise DataError(text) from error
    for name in ("pymilvus", "pymilvus.decorators"):  # it prints the traceback of errors that are handled here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _Errors(address):
        return MilvusClient(parse_address(address).uri, token=os.environ.get(TOKEN, ""), timeout=10)


class MilvusStore:
    """Rows of one gallery in Milvus.

    Texts are stored with "=" before them, so that the empty text means unknown. Unknown numbers are the smallest
    integer, or NaN.

    Args:
        folder: of the gallery.
        address: `milvus://host:port/name`.
        owner: text that identifies the gallery; a collection of another owner is refused.
    """

    erases_later: str | None = (
        "Milvus no longer returns these rows, but their bytes stay on its disks until its compaction and garbage "
        "collection have run (dataCoord.gc, by default after 3 hours). This cannot be checked from here."
    )

    def __init__(self, folder: Path, address: str, owner: str) -> None:
        self.folder, self.address, self.owner = folder, address, owner
        self.name = parse_address(address).name
        self._connected: Any = None
        self._is_checked = False

    @property
    def _client(self) -> Any:
        if self._connected is None:
            self._connected = connect(self.address)
        return self._connected

    def check_new(self) -> None:
        """Raise an error if the collection exists, or the server does not answer."""
        with _Errors(self.address):
            if self._client.has_collection(self.name):
                raise DataError(f"{self.address} exists already. Use another name for the collection.")

    def _state(self) -> dict[str, int]:
        path = self.folder / STATE
        return read_json(path) if path.is_file() else {"version": 0, "removed": 0, "keys": 0, "dimension": 0}

    def _change(self, **values: int) -> None:
        write_json(self.folder / STATE, {**self._state(), **values})

    def version(self) -> int:
        """Return a number that changes with the rows; 0 if nothing was ever added."""
        return int(self._state()["version"])

    def columns(self) -> list[str]:
        """Return the names of the columns; none if nothing was ever added."""
        return schema(1).names if self._state()["keys"] else []

    def add_columns(self, wanted: pa.Schema) -> None:
        """Do nothing: every collection has all columns."""

    def count(self) -> int:
        """Return the number of rows."""
        state, journal = self._state(), self._journal()
        if not state["keys"] or (journal[KEY] < state["keys"] and journal["replaced"]):
            return sum(len(batch) for batch in self.read([KEY]))
        with _Errors(self.address):
            where = f"{KEY} < {state['keys']}"
            counted = self._client.query(
                self.name, filter=where, output_fields=["count(*)"], consistency_level="Strong", timeout=_SECONDS
            )
        return int(counted[0]["count(*)"])

    def read(self, columns: Sequence[str], equal: Equal | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches, by key.

        Args:
            columns: names; `KEY` is the number of a row.
            equal: only rows with these values.
        """
        conditions = [f"{name} == {_literal(value)}" for name, value in (equal or {}).items()]
        yield from self._pages(columns, conditions)

    def _pages(self, columns: Sequence[str], conditions: Sequence[str]) -> Iterator[pa.RecordBatch]:
        state = self._state()
        for start in range(0, state["keys"], _ROWS_PER_PAGE):
            page = f"{KEY} >= {start} and {KEY} < {start + _ROWS_PER_PAGE}"
            yield from self._query(columns, " and ".join([page, *conditions]))
        self._check_unchanged(state["version"])

    def _check_unchanged(self, version: int) -> None:
        if self._state()["removed"] > version:
            raise RowsChanged(f"{self.folder}: rows were removed meanwhile. Try again.")

    def rows_of(self, ids: Sequence[str], columns: Sequence[str], key: str = "id") -> pa.Table | None:
        """Return the rows with some ids, in any order; None if nothing was ever added."""
        wanted = [key, *(set(columns) - {key})]
        batches = [batch for where in _conditions(key, ids) for batch in self._query(wanted, where)]
        return pa.Table.from_batches(batches) if batches else None

    def _query(self, columns: Sequence[str], where: str) -> Iterator[pa.RecordBatch]:
        state, journal = self._state(), self._journal()
        if not state["keys"]:
            return
        known = _arrow_schema(state["dimension"])
        replaced = set(journal["replaced"]) if journal[KEY] < state["keys"] else set()
        needed = {*columns, KEY, *(("tracklet",) if replaced else ())}
        with _Errors(self.address):
            self._check_owner()
            found = self._client.query(
                self.name,
                filter=f"{KEY} < {state['keys']} and {where}",
                output_fields=sorted(needed),
                consistency_level="Strong",
                timeout=_SECONDS,
            )
        rows = [row for row in found if not (row[KEY] < journal[KEY] and row.get("tracklet", "=")[1:] in replaced)]
        arrays = [_decode([row[name] for row in rows], known.field(name).type) for name in columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema([known.field(name) for name in columns]))

    def nearest(
        self,
        keys: NDArray[np.int64],
        allowed: NDArray[np.bool_],
        queries: NDArray[np.float32],
        scope: Scope,
        enough: int,
        within: float | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows nearest to some queries and their distances; Milvus proposes, and float32 products decide.

        Milvus is asked for more until none of the missing rows can be among the nearest. Where it would have to propose
        more than it can, all features of the scope are read and compared.

        Args:
            keys: `[N]` of the rows, ascending.
            allowed: `[N]` whether a row is in the scope.
            queries: `[Q, D]` unit rows.
            scope: for the filter of Milvus.
            enough: number of nearest rows.
            within: largest distance that matters.

        Raises:
            RowsChanged: rows were removed since `keys` were read.
        """
        state = self._state()
        where = condition(scope, round(1000 * time.time()))
        limit = 2 * enough + 64

        def compare(found: NDArray[np.int64], features: NDArray[np.float16]) -> tuple[Any, Any]:
            rows = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
            is_valid = allowed[rows] & (keys[rows] == found)
            return rows[is_valid], distances(features[is_valid], queries)

        if not allowed.any():
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        while limit <= MOST_PROPOSALS:
            found, features, reach = self._propose(queries, limit, f"{KEY} < {state['keys']} and {where}")
            rows, near = compare(found, features)
            reach -= _ERROR
            if reach == np.inf or (near < reach).sum() >= enough or (within is not None and within < reach):
                self._check_unchanged(state["version"])
                return rows, near
            limit *= 4
        parts = [
            compare(batch[KEY].to_numpy(), feature_matrix(batch["features"]))
            for batch in self._pages([KEY, "features"], [where])
        ]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([near for _, near in parts])

    def _propose(
        self, queries: NDArray[np.float32], limit: int, where: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float16], float]:
        """Return keys `[L]` and features `[L, D]` of near rows, and the distance up to which none is missing."""
        with _Errors(self.address):
            self._check_owner()
            found = self._client.search(
                self.name,
                data=queries,
                filter=where,
                limit=limit,
                output_fields=["features"],
                search_params={"metric_type": "IP"},
                consistency_level="Strong",
                timeout=_SECONDS,
            )
        features = {hit["id"]: hit["entity"]["features"] for hits in found for hit in hits}
        reach = min((1 - hits[-1]["distance"] for hits in found if len(hits) == limit), default=np.inf)
        matrix = np.array(list(features.values()), np.float32).astype(np.float16).reshape(-1, queries.shape[1])
        return np.array(list(features), np.int64), matrix, float(reach)

    def upsert(self, rows: pa.Table, replaced: Sequence[str]) -> None:
        """Add rows, and replace all rows of some tracklets, completely or not at all.

        Args:
            rows: as `schema`.
            replaced: those tracklets of the rows that are in the table already.
        """
        dimension = rows.schema.field("features").type.list_size
        state = self._state()
        first = state["keys"]
        with _Errors(self.address, "The gallery is unchanged."):
            self._ensure(dimension)
            if self._client.query(self.name, filter=f"{KEY} >= {first}", limit=1, consistency_level="Strong"):
                raise DataError(
                    f"{self.address} has rows that {self.folder} does not know. Use the folder that wrote them: a "
                    "gallery in Milvus has exactly one folder."
                )
            write_json(self.folder / JOURNAL, {KEY: first, "replaced": sorted(replaced)})
            size = max(1, min(_ROWS_PER_PAGE, len(rows) * _BYTES_PER_REQUEST // max(2 * rows.nbytes, 1)))
            for start in range(0, len(rows), size):
                part = rows.slice(start, size).combine_chunks()
                values = {name: _encode(part[name]) for name in part.column_names}
                values[KEY] = range(first + start, first + start + len(part))
                names = list(values)
                data = [dict(zip(names, row, strict=True)) for row in zip(*values.values(), strict=True)]
                self._client.insert(self.name, data, timeout=_SECONDS)
        version = state["version"] + 1
        removed = {"removed": version} if replaced else {}
        self._change(version=version, keys=first + len(rows), dimension=dimension, **removed)
        self.finish()

    def fill(self, batches: Iterator[pa.RecordBatch], kind: pa.Schema) -> None:
        """Write the first rows.

        Args:
            batches: of rows.
            kind: their schema.
        """
        self.upsert(pa.Table.from_batches(list(batches), kind), [])

    def finish(self) -> None:
        """Complete or remove an addition that was interrupted."""
        if not (self.folder / JOURNAL).is_file():
            return
        journal = self._journal()
        with _Errors(self.address, "The next command that writes completes this."):
            if self._client.has_collection(self.name):
                self._check_owner()
                if journal[KEY] < self._state()["keys"]:
                    for where in _conditions("tracklet", journal["replaced"]):
                        self._delete(f"{KEY} < {journal['key']} and {where}")
                else:
                    self._delete(f"{KEY} >= {journal['key']}")
        (self.folder / JOURNAL).unlink()

    def delete(self, tracklets: Sequence[str]) -> None:
        """Delete the rows of some tracklets."""
        if self._state()["keys"]:
            with _Errors(self.address, "The tracklets are hidden, and the next command that writes removes them."):
                self._check_owner()
                for where in _conditions("tracklet", tracklets):
                    self._delete(where)
            version = self.version() + 1
            self._change(version=version, removed=version)

    def _delete(self, where: str) -> None:
        self._client.delete(self.name, filter=where, timeout=_SECONDS)

    def purge(self) -> None:
        """Ask Milvus to rewrite its files without deleted rows. It does so later, see `erases_later`."""
        if self._state()["keys"]:
            with _Errors(self.address, "The tracklets are hidden, and the next command that writes removes them."):
                self._client.flush(self.name, timeout=_SECONDS)
                self._client.compact(self.name, timeout=_SECONDS)

    def _journal(self) -> dict[str, Any]:
        path = self.folder / JOURNAL
        try:
            return read_json(path)
        except DataError:
            if path.is_file():
                raise
            return {KEY: 0, "replaced": []}  # none, or completed by another process meanwhile

    def _check_owner(self) -> None:
        if self._is_checked:
            return
        described = self._client.describe_collection(self.name)
        if described.get("description") != self.owner:
            raise DataError(
                f"{self.address} is of another gallery than {self.folder}. Check the address and the folder."
            )
        self._is_checked = True

    def _ensure(self, dimension: int) -> None:
        """Create the collection if it does not exist."""
        if self._client.has_collection(self.name):
            self._check_owner()
            return
        from pymilvus import DataType

        fields = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=self.owner)
        for field in _arrow_schema(dimension):
            kind = field.type
            if field.name == KEY:
                fields.add_field(KEY, DataType.INT64, is_primary=True)
            elif field.name == "features":
                fields.add_field(field.name, DataType.FLOAT_VECTOR, dim=dimension)
            elif pa.types.is_fixed_size_list(kind):
                fields.add_field(field.name, DataType.ARRAY, element_type=DataType.FLOAT, max_capacity=kind.list_size)
            elif pa.types.is_floating(kind):
                fields.add_field(field.name, DataType.FLOAT)
            elif pa.types.is_string(kind) or pa.types.is_binary(kind):
                fields.add_field(field.name, DataType.VARCHAR, max_length=_LONGEST_TEXT)
            else:
                fields.add_field(field.name, DataType.INT64)
        index = self._client.prepare_index_params()
        index.add_index("features", index_type="FLAT", metric_type="IP")
        self._client.create_collection(self.name, schema=fields, index_params=index, consistency_level="Strong")


def condition(scope: Scope, now: int) -> str:
    """Return the condition of Milvus for rows in a scope that have not expired at `now` (milliseconds since 1970).

    Example:
        >>> condition(Scope(cameras=['door "A"']), 5)
        '(expires < -9000000000000000000 or expires > 5) and camera in ["=door \\\\"A\\\\""]'
    """
    parts = [f"(expires < {_NO_TIME} or expires > {now})"]
    if scope.cameras is not None:
        parts.append(f"camera in [{', '.join(map(_literal, scope.cameras))}]")
    if scope.after is not None or scope.before is not None:
        parts.append(f"start > {_NO_TIME}")
    if scope.after is not None:
        parts.append(f"end >= {scope.after}")
    if scope.before is not None:
        parts.append(f"start <= {scope.before}")
    return " and ".join(parts)


def _literal(value: str | int | None) -> str:
    """Return a value as Milvus writes it, so that no name can change the meaning of a condition."""
    if isinstance(value, int):
        return str(value)
    return json.dumps("" if value is None else "=" + value, ensure_ascii=False)


def _conditions(name: str, values: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(values), _VALUES_IN_A_FILTER):
        yield f"{name} in [{', '.join(map(_literal, values[start : start + _VALUES_IN_A_FILTER]))}]"


def _arrow_schema(dimension: int) -> pa.Schema:
    return pa.schema([pa.field(KEY, pa.int64(), nullable=False), *schema(dimension)])


def _encode(column: pa.ChunkedArray) -> Sequence[Any]:
    """Return the values of a column as Milvus stores them."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        if not pa.types.is_float16(kind.value_type):
            return [value or [] for value in column.to_pylist()]
        return list(feature_matrix(column).astype(np.float32))
    if pa.types.is_string(kind):
        return ["" if value is None else "=" + value for value in column.to_pylist()]
    if pa.types.is_binary(kind):
        return ["" if value is None else "=" + base64.b64encode(value).decode() for value in column.to_pylist()]
    if pa.types.is_floating(kind):
        return column.fill_null(np.nan).to_pylist()
    return column.cast(pa.int64()).fill_null(UNKNOWN_TIME).to_pylist()


def _decode(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        if pa.types.is_float16(kind.value_type):
            flat = np.array(values, np.float32).astype(np.float16).reshape(-1)
            return pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size)
        return pa.array([list(value) or None for value in values], kind)
    read: dict[Callable[[pa.DataType], bool], Callable[[Any], Any]] = {
        pa.types.is_string: lambda value: value[1:] if value else None,
        pa.types.is_binary: lambda value: base64.b64decode(value[1:]) if value else None,
        pa.types.is_floating: lambda value: None if np.isnan(value) else value,
    }
    for is_kind, convert in read.items():
        if is_kind(kind):
            return pa.array(map(convert, values), kind)
    numbers = np.array(values, np.int64)
    return pa.array(np.where(numbers == UNKNOWN_TIME, 0, numbers), pa.int64(), mask=numbers == UNKNOWN_TIME).cast(kind)


class _Errors:
    """Context in which errors of pymilvus become DataErrors; `state` describes the gallery after one."""

    def __init__(self, address: str, state: str = "") -> None:
        self.address, self.state = address, state

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        import grpc
        from pymilvus.exceptions import MilvusException

        if isinstance(error, MilvusException | grpc.RpcError | OSError):
            text = " ".join(filter(None, [f"{self.address}: {first_line(error)[:200]}.", self.state]))
            raise DataError(f"{text} Start the server, or check the address and {TOKEN}.") from error
