"""The embedded store: one LanceDB table in the gallery's folder. One process writes at a time; any number read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from reid.core.errors import DataError, first_line

TABLE = "rows"
_IDS_IN_A_FILTER = 2000
_UNFINISHED = "The tracklets are hidden, and the next command that writes removes them."


class RowsChanged(DataError):
    """Rows were removed while they were read. Read them again."""


def import_lancedb() -> Any:
    """Return the module.

    Raises:
        DataError: it is not installed.
    """
    try:
        import lancedb
    except ImportError as error:
        raise DataError("A gallery needs LanceDB. Install it with: pip install 'reid-toolkit[gallery]'") from error
    logging.getLogger("lance").setLevel(logging.ERROR)
    return lancedb


def quoted(text: str) -> str:
    """Return a text as an SQL string, so that no name can change the meaning of a filter.

    Example:
        >>> quoted("O'Hare")
        "'O''Hare'"
    """
    return "'" + text.replace("'", "''") + "'"


Equal = Mapping[str, str | int]
"""Values that rows must have in some columns."""


class LanceStore:
    """Rows of one gallery in LanceDB.

    Args:
        folder: of the gallery; the table is the folder `rows.lance` in it.

    Attributes:
        erases_later: why bytes of deleted rows are left after `purge`; None if they are gone.
    """

    erases_later: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lancedb = import_lancedb()

    @property
    def _database(self) -> Any:
        return self._lancedb.connect(str(self.folder))

    def check_new(self) -> None:
        """Do nothing: the folder is checked by its user."""

    def _open(self) -> Any:
        """Return the newest version of the table; None if nothing was ever added."""
        if not (self.folder / f"{TABLE}.lance" / "_versions").is_dir():
            return None
        try:
            return self._database.open_table(TABLE)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{self.folder}: the rows cannot be read: {first_line(error)[:200]}. Restore the folder from a copy."
            ) from error

    def version(self) -> int:
        """Return a number that changes with the rows; 0 if nothing was ever added."""
        table = self._open()
        return 0 if table is None else int(table.version)

    def read(self, columns: Sequence[str], equal: Equal | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the newest version in batches.

        Args:
            columns: names.
            equal: only rows with these values.
        """
        conditions = [
            f"{name} = {quoted(value) if isinstance(value, str) else value}" for name, value in (equal or {}).items()
        ]
        yield from self._read(columns, " AND ".join(conditions))

    def _read(self, columns: Sequence[str], where: str) -> Iterator[pa.RecordBatch]:
        table = self._open()
        if table is None:
            return
        query = table.search().select(list(columns)).limit(None)
        try:
            yield from (query.where(where) if where else query).to_batches()
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"{self.folder}: the rows cannot be read: {first_line(error)[:200]}. Try again.") from error

    def rows_of(self, ids: Sequence[str], columns: Sequence[str], key: str = "id") -> pa.Table | None:
        """Return the rows with some ids, in any order; None if nothing was ever added."""
        batches = [
            batch for where in _conditions(key, ids) for batch in self._read([key, *(set(columns) - {key})], where)
        ]
        return pa.Table.from_batches(batches) if batches else None

    def columns(self) -> list[str]:
        """Return the names of the columns; none if nothing was ever added."""
        table = self._open()
        return [] if table is None else list(table.schema.names)

    def add_columns(self, wanted: pa.Schema) -> None:
        """Add the columns of a schema that are missing, without values."""
        table = self._open()
        missing = [] if table is None else [field for field in wanted if field.name not in table.schema.names]
        if table is not None and missing:
            with _WriteErrors(self.folder):
                table.add_columns(pa.schema(missing))

    def count(self) -> int:
        """Return the number of rows."""
        table = self._open()
        return 0 if table is None else int(table.count_rows())

    def upsert(self, rows: pa.Table, replaced: Sequence[str]) -> None:
        """Add rows, and replace all rows of some tracklets, completely or not at all.

        Args:
            rows: as `schema`.
            replaced: those tracklets of the rows that are in the table already.
        """
        with _WriteErrors(self.folder):
            table = self._open()
            if table is None:
                self._database.create_table(TABLE, rows)
            elif not replaced:
                table.add(rows)
            else:
                merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                old = f"tracklet IN ({', '.join(map(quoted, replaced))})"
                merge.when_not_matched_by_source_delete(old).execute(rows)

    def fill(self, batches: Iterator[pa.RecordBatch], kind: pa.Schema) -> None:
        """Write the first rows.

        Args:
            batches: of rows.
            kind: their schema.
        """
        with _WriteErrors(self.folder):
            self._database.create_table(TABLE, pa.RecordBatchReader.from_batches(kind, batches))

    def finish(self) -> None:
        """Do nothing: an addition is complete or absent."""

    def delete(self, tracklets: Sequence[str]) -> None:
        """Delete the rows of some tracklets. The bytes stay on the disk until `purge`."""
        table = self._open()
        if table is not None:
            with _WriteErrors(self.folder, _UNFINISHED):
                for where in _conditions("tracklet", tracklets):
                    table.delete(where)

    def purge(self) -> None:
        """Rewrite the files that contain deleted rows, and remove all older versions from the disk.

        No other process may write meanwhile. A process that is reading an older version may have to try again.
        """
        table = self._open()
        if table is not None:
            with _WriteErrors(self.folder, _UNFINISHED), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other processes cannot write, because the caller has the lock
                table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)


class _WriteErrors:
    """Context in which errors of LanceDB become DataErrors; `state` describes the gallery after one."""

    def __init__(self, folder: Path, state: str = "The gallery is unchanged.") -> None:
        self.folder, self.state = folder, state

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | RuntimeError):
            raise DataError(
                f"Cannot write {self.folder}: {first_line(error)[:200]}. {self.state} Free some space, or use a "
                "writable folder."
            ) from error


def _conditions(key: str, values: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(values), _IDS_IN_A_FILTER):
        yield f"{key} IN ({', '.join(map(quoted, values[start : start + _IDS_IN_A_FILTER]))})"
