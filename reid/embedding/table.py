"""`Embeddings`: features with the columns that say what they are of. Evaluation, matching and search start here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import UNKNOWN, check_finite, float_column, integer_column, text_column
from reid.core.atomic import atomic_file
from reid.core.errors import DataError, ModelError, first_line
from reid.core.reading import failed_download, parse_json
from reid.data.crops import Crops

FORMAT = 1
_METADATA_KEY = b"reid"
_FEATURES = "features"
_CAMERA = "camera"
_ROW_GROUP_BYTES = 2**24
_SURROGATE = re.compile("[\ud800-\udfff]")  # bytes of a file name that are not UTF-8
_COLUMNS = {
    "pids": ("pid", pa.int64()),
    "camids": ("camid", pa.int64()),
    "tracks": ("track", pa.int64()),
    "frames": ("frame", pa.int64()),
    "paths": ("path", pa.string()),
    "quality": ("quality", pa.float32()),
}
"""Name in the file and Arrow type of each optional attribute of `Embeddings`."""
_NAMES = {"pids": "pid_names", "camids": "camera_names", "tracks": "track_names"}
"""Key of `Embeddings.meta` with the names of a column's numbers."""


class Embeddings:
    """Table of N features of one model, with optional columns that describe them.

    It is stored as one Parquet file: `features` (fixed-size list of float32) and, where known, `pid`, `camid`, `track`,
    `frame` (int64), `path` (string) and `quality` (float32). The schema metadata contains, under the key `reid`, the
    format version and `meta` as JSON. Other columns of a file are ignored.

    Attributes:
        features: `[N, D]` float32.
        pids, camids, tracks, frames: `[N]` int64, or None if unknown.
        paths: `[N]` str objects, or None if unknown.
        quality: `[N]` float32 in 0..1, the weight of a feature in a mean, or None.
        meta: plain JSON values. `Embedder` writes `model` (an id of the weights), `preprocessing`, `dimension`,
            `metric` (the metric the features are meant for), `normalised` and `flip`. Where numbers replace texts,
            `pid_names`, `camera_names` and `track_names` are the lists of the texts of number 0, 1, …

    Example:
        >>> import tempfile
        >>> table = Embeddings([[1.0, 0.0], [0.6, 0.8]], pids=[7, 8], camids=[1, 2])
        >>> table
        Embeddings(2 × 2, columns: pids, camids)
        >>> path = table.save(tempfile.mkdtemp() + "/query.parquet")
        >>> Embeddings.load(path).take([1]).pids
        array([8])
    """

    def __init__(
        self,
        features: ArrayLike,
        pids: ArrayLike | None = None,
        camids: ArrayLike | None = None,
        tracks: ArrayLike | None = None,
        frames: ArrayLike | None = None,
        paths: Sequence[str | Path] | NDArray[np.object_] | None = None,
        meta: Mapping[str, Any] | None = None,
        quality: ArrayLike | None = None,
    ) -> None:
        """Check the columns and convert them to float32, int64 and str.

        Raises:
            DataError: features that are not `[N, D]` numbers, or a column of another length or type.
        """
        self.features = _matrix(features)
        n = len(self.features)

        def integers(name: str, values: ArrayLike | None) -> NDArray[np.int64] | None:
            return None if values is None else integer_column(f"Embeddings.{name}", values, n)

        self.pids, self.camids = integers("pids", pids), integers("camids", camids)
        self.tracks, self.frames = integers("tracks", tracks), integers("frames", frames)
        self.paths = None if paths is None else text_column("Embeddings.paths", paths, n)
        self.quality: NDArray[np.float32] | None = None
        if quality is not None:
            self.quality = float_column("Embeddings.quality", quality, n, low=0, high=1).astype(np.float32)
        self.meta: dict[str, Any] = dict(meta or {})

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self.features)

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} × {self.dimension}, columns: {', '.join(self._columns()) or 'none'})"

    @property
    def dimension(self) -> int:
        """D, the length of a feature."""
        return int(self.features.shape[1])

    def take(self, index: ArrayLike) -> Embeddings:
        """Return the rows of an index array or boolean mask, in that order."""
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        columns = {name: values[index] for name, values in self._columns().items()}
        return Embeddings(self.features[index], **columns, meta=self.meta)

    def check_same_model(self, other: Embeddings, names: tuple[str, str] = ("one", "the other")) -> None:
        """Raise an error if distances between the two tables are meaningless.

        If the model of one table is unknown, only the dimension is compared.

        Args:
            other: the table to compare with.
            names: of the two tables, for the error message, such as their files.

        Raises:
            ModelError: another dimension, another model (`meta["model"]`), or another preprocessing of one model.
        """
        keys = ("model", "preprocessing_hash")
        values = [(self.dimension, other.dimension), *((self.meta.get(key), other.meta.get(key)) for key in keys)]
        for text, (a, b) in zip(("dimension", "model", "preprocessing"), values, strict=True):
            if None not in (a, b) and a != b:
                difference = f"{text} {a!r} ({names[0]}) with those of {b!r} ({names[1]})"
                raise ModelError(f"Cannot compare embeddings of {difference}. Embed both with one model.")

    @classmethod
    def concat(cls, tables: Sequence[Embeddings], names: Sequence[str] = ()) -> Embeddings:
        """Return all rows of the tables, in order. `meta` keeps the values on which all tables agree.

        Identities, cameras and tracks with names are joined by name, see `share_codes`.

        Args:
            tables: one or more tables.
            names: of the tables, for error messages, such as their files; by default their numbers.

        Raises:
            DataError: no table, a column that only some tables have, or as `share_codes`.
            ModelError: tables that cannot be compared, see `check_same_model`.
        """
        if not tables:
            raise DataError("No embeddings to join: pass at least one table.")
        first = tables[0]
        names = list(names) or [f"table {number}" for number in range(1, len(tables) + 1)]
        for table, name in zip(tables[1:], names[1:], strict=True):
            first.check_same_model(table, (names[0], name))
        tables = cls.share_codes(tables, names)
        first = tables[0]
        columns: dict[str, Any] = {}
        for column in dict.fromkeys(column for table in tables for column in table._columns()):
            values = [getattr(table, column) for table in tables]
            having = [name for name, value in zip(names, values, strict=True) if value is not None]
            if len(having) < len(tables):
                raise DataError(f"Only {', '.join(having)} of {len(tables)} tables have {column!r}. Add it to all.")
            columns[column] = np.concatenate(values)
        meta = dict(item for item in first.meta.items() if all(item in table.meta.items() for table in tables))
        return cls(np.concatenate([table.features for table in tables]), **columns, meta=meta)

    @classmethod
    def share_codes(cls, tables: Sequence[Embeddings], names: Sequence[str] = ()) -> list[Embeddings]:
        """Return the tables with numbers that mean the same in all of them: equal names get equal numbers.

        This concerns pids, camids and tracks with names (`meta["pid_names"]`, `meta["camera_names"]`,
        `meta["track_names"]`). -1 (unknown, junk) is kept, and so are columns that have names in no table.

        Args:
            tables: tables that are compared or joined.
            names: of the tables, for error messages; by default their numbers.

        Raises:
            DataError: numbers have names in one table and none in another, so that they cannot be compared; names that
                are not a list of different texts; or a number without a name.

        Example:
            >>> one = Embeddings([[1.0]], camids=[0], meta={"camera_names": ["door"]})
            >>> other = Embeddings([[1.0]], camids=[0], meta={"camera_names": ["hall"]})
            >>> [table.camids.tolist() for table in Embeddings.share_codes([one, other])]
            [[0], [1]]
        """
        names = list(names) or [f"table {number}" for number in range(1, len(tables) + 1)]
        shared = [copy(table) for table in tables]
        for column, key in _NAMES.items():
            known = [table._names_of(column, f"{name}: ") for table, name in zip(tables, names, strict=True)]
            every = list(dict.fromkeys(text for texts in known for text in texts or ()))
            number = {text: code for code, text in enumerate(every)}
            for table, name, texts in zip(shared, names, known, strict=True):
                values = getattr(table, column)
                if not every or values is None or (values == UNKNOWN).all():
                    continue
                if texts is None:
                    named = next(other for other, found in zip(names, known, strict=True) if found)
                    raise DataError(
                        f"The {column} of {named} have names ({', '.join(every[:3])}, …), those of {name} are numbers "
                        f"without names: whether they are the same is unknown. Embed both in the same way, or set "
                        f"meta[{key!r}] of {name}."
                    )
                setattr(table, column, np.array([UNKNOWN, *map(number.__getitem__, texts)])[values + 1])
            if every:
                for table in shared:
                    table.meta = {**table.meta, key: every}
        return shared

    def _names_of(self, column: str, source: str = "") -> list[str] | None:
        """Return the names of the numbers of a column, if they have names; `source` begins the error messages."""
        key, values = _NAMES[column], getattr(self, column)
        texts = self.meta.get(key)
        if texts is None:
            return None
        if not isinstance(texts, list) or set(map(type, texts)) - {str} or len(set(texts)) < len(texts):
            raise DataError(f"{source}meta[{key!r}] must be a list of different texts. Correct it.")
        if values is not None and len(values) and not UNKNOWN <= values.min() <= values.max() < len(texts):
            number = values.max() if values.max() >= len(texts) else values.min()
            raise DataError(f"{source}{column} contain {number}, but meta[{key!r}] has {len(texts)} names. Correct it.")
        return texts

    def check(self) -> Embeddings:
        """Return the table if every feature is finite.

        Raises:
            DataError: lists the rows (from 0) that contain NaN or infinity, and the first path if known.
        """
        fix = "Embed those crops again, or leave the rows out with take()."
        check_finite(self.features, labels=self.paths, fix=fix)
        return self

    def save(self, path: str | Path, root: str | Path | None = None) -> Path:
        """Write the table as Parquet, completely or not at all, and return the path.

        Args:
            path: the Parquet file.
            root: folder of the images. Absolute `paths`, and those in `meta["left_out"]`, are written relative to it
                (`saved_folder`), so that the file does not reveal where the images are. `load` with the same `root`
                makes them complete again. By default `paths` are written as they are.

        Raises:
            DataError: the file cannot be written, or `meta` contains values that JSON cannot represent.
        """
        if self.paths is None or root is None:
            return save_chunks(path, [self], self.meta)
        folder = saved_folder(self.paths, root)
        columns: dict[str, Any] = {**self._columns(), "paths": [text.removeprefix(folder) for text in self.paths]}
        meta = self.meta
        if "left_out" in meta:
            meta = meta | {"left_out": [str(text).removeprefix(folder) for text in meta["left_out"]]}
        return save_chunks(path, [Embeddings(self.features, **columns)], meta)

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> Embeddings:
        """Read a table that `save`, or any other program, wrote with the columns listed above.

        `features` may be a fixed-size list or a list of any numeric type if all rows have the same length. NaN is
        accepted; see `check`. If there is a column `camera` with names and no `camid`, cameras are numbered in the
        order of their names, and the names are stored in `meta["camera_names"]`.

        Args:
            path: the Parquet file.
            root: folder of the images, which is put in front of relative `paths`; they are unchanged by default.

        Raises:
            DataError: missing or not Parquet; no `features`; rows of different length or empty; a missing value or a
                wrong type in a column; numbers without a name in a column with names; a newer format.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"There is no embeddings file {path}.")
        try:
            with open(path, "rb") as file:
                if problem := failed_download(file.read(64)):
                    raise DataError(f"{path} {problem}")
            schema = pq.read_schema(path)
            wanted = (_FEATURES, _CAMERA, *(name for name, _ in _COLUMNS.values()))
            table = pq.read_table(path, columns=[name for name in wanted if name in schema.names])
        except (pa.ArrowException, OSError) as error:
            text = first_line(error)
            raise DataError(f"{path} cannot be read as Parquet: {text}. Write it again with `reid embed`.") from error
        if _FEATURES not in schema.names:
            raise DataError(f"{path} has no column {_FEATURES!r}. It has: {', '.join(schema.names) or 'none'}.")
        try:
            meta = _read_meta((schema.metadata or {}).get(_METADATA_KEY))
            columns: dict[str, Any] = {
                attribute: _read_column(table, name, kind)
                for attribute, (name, kind) in _COLUMNS.items()
                if name in table.column_names
            }
            if _CAMERA in table.column_names and "camids" not in columns:
                names, columns["camids"] = np.unique(_read_column(table, _CAMERA, pa.string()), return_inverse=True)
                meta["camera_names"] = names.tolist()
            if root is not None and "paths" in columns:
                columns["paths"] = [os.path.join(root, text) for text in columns["paths"]]
            read = cls(_read_features(table), **columns, meta=meta)
            for column in _NAMES:
                read._names_of(column)
        except (DataError, pa.ArrowException) as error:
            raise DataError(f"{path}: {error}") from error
        return read

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns that the table has, by attribute."""
        return {name: getattr(self, name) for name in _COLUMNS if getattr(self, name) is not None}

    def _to_arrow(self) -> pa.Table:
        flat = pa.array(np.ascontiguousarray(self.features).reshape(-1), type=pa.float32())
        columns = {_FEATURES: pa.FixedSizeListArray.from_arrays(flat, self.dimension)}
        if self.paths is not None:
            check_paths(self.paths)
        for attribute, values in self._columns().items():
            name, kind = _COLUMNS[attribute]
            columns[name] = pa.array(values, type=kind)
        return pa.table(columns)


def saved_folder(paths: Iterable[str], root: str | Path) -> str:
    """Return the folder, with a separator at its end, that absolute paths are saved relative to; "" without any.

    It is `root` if all absolute paths are inside, else the deepest folder that contains all.

    Example:
        >>> saved_folder(["/data/market/query/a.jpg", "/data/market/query/b.jpg"], "/data/market")
        '/data/market/'
        >>> saved_folder(["/data/market/query/a.jpg", "/data/other/b.jpg"], "/data/market")
        '/data/'
    """
    folders = {os.path.dirname(path) for path in paths if os.path.isabs(path)}
    if not folders:
        return ""
    folder = os.path.commonpath(folders)
    if Path(folder).is_relative_to(top := os.path.abspath(root)):
        folder = top
    return os.path.join(folder, "")


def save_chunks(path: str | Path, chunks: Iterable[Embeddings], meta: Mapping[str, Any]) -> Path:
    """Write tables with the same columns to one file, completely or not at all; one table at a time is in memory.

    Args:
        path: the Parquet file.
        chunks: at least one table; their `meta` is ignored. Each begins a new row group.
        meta: of the file.

    Raises:
        DataError: as `Embeddings.save`.
    """
    try:
        note = json.dumps({"format": FORMAT, "meta": dict(meta)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"Embeddings.meta must contain plain JSON values: {error}.") from error
    tables = (chunk._to_arrow() for chunk in chunks)
    first = next(tables)
    schema = first.schema.with_metadata({_METADATA_KEY: note.encode()})
    size = _rows_per_group(schema.field(_FEATURES).type.list_size)
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, use_dictionary=["path"]) as writer:
        for table in chain([first], tables):
            writer.write_table(table.cast(schema), row_group_size=size)
    return Path(path)


def save_rows(
    path: str | Path, rows: NDArray[np.int64], read: Callable[[NDArray[np.int64]], Embeddings], meta: Mapping[str, Any]
) -> Path:
    """Write the rows that `read` returns to one file, one row group at a time.

    Args:
        path: the Parquet file.
        rows: `[M]`, what `read` is called with, in pieces; with an empty array if M is 0.
        read: from row numbers to a table.
        meta: of the file.

    Raises:
        DataError: as `Embeddings.save`.
    """
    size = _rows_per_group(read(rows[:0]).dimension)
    pieces = (rows[start : start + size] for start in range(0, max(len(rows), 1), size))
    return save_chunks(path, map(read, pieces), meta)


def known_columns(crops: Crops, *, labelled: bool) -> dict[str, Any]:
    """Return the columns of crops: `paths`, and if `labelled`, `pids` and other columns with a known value."""
    others = [name for name in ("camids", "tracks", "frames") if (getattr(crops, name) != UNKNOWN).any()]
    return {name: getattr(crops, name) for name in ("paths", *(["pids", *others] if labelled else ()))}


def known_names(crops: Crops, *, labelled: bool) -> dict[str, Any]:
    """Return the names of the numbers in the columns of crops, for `Embeddings.meta`."""
    return {_NAMES[column]: list(texts) for column, texts in crops.names.items() if labelled}


def check_paths(paths: NDArray[np.object_]) -> None:
    """Raise an error for a path that is not Unicode text, which some file systems allow and Parquet does not.

    Raises:
        DataError: gives the first such row.
    """
    row = next((row for row, path in enumerate(paths) if _SURROGATE.search(path)), None)
    if row is not None:
        raise DataError(f"The path in row {row}, {paths[row]!r}, is not Unicode text. Rename the file.")


def _rows_per_group(dimension: int) -> int:
    return max(1, _ROW_GROUP_BYTES // (4 * dimension))


def _matrix(features: ArrayLike) -> NDArray[np.float32]:
    try:
        array = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"Features must be numbers [N, D] with rows of the same length: {error}.") from error
    if array.ndim != 2 or array.shape[1] == 0:
        raise DataError(f"Features must be [N, D] with D of 1 or more; got shape {list(array.shape)}.")
    return array


def _read_meta(note: bytes | None) -> dict[str, Any]:
    if note is None:
        return {}
    try:
        stored = parse_json(note, "the schema metadata")
        version, meta = int(stored["format"]), dict(stored["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("the schema metadata 'reid' was not written by `Embeddings.save`.") from error
    if version > FORMAT:
        raise DataError(f"the file has format {version}; this version reads up to {FORMAT}. Install a newer version.")
    return meta


def _read_column(table: pa.Table, name: str, kind: pa.DataType) -> NDArray[Any]:
    """Return a column without missing values as int64, float32 or text."""
    column, types = table[name], pa.types
    accepts, text = {
        pa.int64(): (types.is_integer, "integers"),
        pa.float32(): (types.is_floating, "floats"),
        pa.string(): (lambda given: types.is_string(given) or types.is_large_string(given), "text"),
    }[kind]
    if not accepts(column.type):
        raise DataError(f"column {name!r} must contain {text}; it contains {column.type}.")
    _check_filled(name, column)
    return column.cast(kind).to_numpy()


def _check_filled(name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(f"column {name!r} has no value in row {row} ({column.null_count} such rows).")


def _read_features(table: pa.Table) -> NDArray[np.float32]:
    column, types = table[_FEATURES], pa.types
    kind = column.type
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not lists or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        raise DataError(f"column {_FEATURES!r} must contain a list of floats in each row; it contains {kind}.")
    _check_filled(_FEATURES, column)
    if len(column) == 0 and not types.is_fixed_size_list(kind):
        raise DataError("the file has no rows, and its lists do not define the dimension. Use a fixed-size list.")
    lengths = pc.list_value_length(column).to_numpy()
    dimension = int(lengths[0]) if len(lengths) else kind.list_size
    row = int(np.argmax(lengths != dimension)) if len(lengths) else 0
    if row:
        raise DataError(f"features differ in length: {dimension} in row 0, {lengths[row]} in row {row}.")
    flat = pc.list_flatten(column)
    if flat.null_count:
        row = pc.index(flat.is_null(), True).as_py() // dimension
        raise DataError(f"the features of row {row} contain a missing value.")
    # A copy, because torch warns about Arrow's memory, which is read-only.
    return np.array(flat.to_numpy(), dtype=np.float32).reshape(len(column), dimension)
