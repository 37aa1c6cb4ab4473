"""`Embeddings`: features and who, where and when they are of. What stands after it needs no model."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import UNKNOWN
from reid.core.atomic import atomic_file
from reid.core.errors import ReidError
from reid.data.crops import Crops

FORMAT = 1
_METADATA_KEY = b"reid"
_FEATURES = "features"
_INTEGERS = {"pids": "pid", "camids": "camid", "tracks": "track", "frames": "frame"}
_PATHS = "path"
_QUALITY = "quality"
_CAMERA = "camera"
_NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of a file name that are not UTF-8
_GROUP_BYTES = 2**24


class Embeddings:
    """`N` features of one model, with any of the columns that say what they are of.

    On disk it is one Parquet file that any reader opens: `features` (fixed-size list of float32), and, where known,
    `pid`, `camid`, `track`, `frame` (int64), `path` (string) and `quality` (float32). `meta` and the format's version
    lie in the schema's metadata under the key `reid`, as JSON. Other columns in a file are left unread.

    Attributes:
        features: `[N, D]` float32.
        pids, camids, tracks, frames: `[N]` int64, or None when the table does not have the column.
        paths: `[N]` str objects, or None.
        quality: `[N]` float32 in 0..1, how good a picture each feature is of (its weight in a mean), or None.
        meta: plain JSON values. `Embedder` writes `model` (an id of the weights), `preprocessing`, `dimension`,
            `metric` (the one the features are meant for), `normalised` and `flip`.
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
        """Check and take the columns; float features become float32, integer columns int64.

        Raises:
            ReidError: features that are not `[N, D]` numbers, or a column of another length or kind, by name.
        """
        self.features = _matrix(features)
        n = len(self.features)
        self.pids = _integers("pids", pids, n)
        self.camids = _integers("camids", camids, n)
        self.tracks = _integers("tracks", tracks, n)
        self.frames = _integers("frames", frames, n)
        self.paths: NDArray[np.object_] | None = None
        if paths is not None:
            if len(paths) != n:
                raise ReidError(f"Embeddings: column 'paths' has {len(paths)} rows, but there are {n} features.")
            self.paths = np.empty(n, dtype=object)
            self.paths[:] = [str(path) for path in paths]
        self.quality = _shares(quality, n)
        self.meta: dict[str, Any] = dict(meta or {})

    @classmethod
    def from_crops(cls, features: ArrayLike, crops: Crops, meta: Mapping[str, Any] | None = None) -> Embeddings:
        """Features with the columns of their crops; a column that is unknown throughout is left out."""
        columns = {name: getattr(crops, name) for name in known_columns(crops)}
        return cls(features, paths=crops.paths, meta=meta, **columns)

    def __len__(self) -> int:
        """The number of features."""
        return len(self.features)

    def __repr__(self) -> str:
        columns = [name for name, values in self._columns().items() if values is not None]
        return f"Embeddings({len(self)} × {self.dimension}, columns: {', '.join(columns) or 'none'})"

    @property
    def dimension(self) -> int:
        """`D`."""
        return int(self.features.shape[1])

    def take(self, index: ArrayLike) -> Embeddings:
        """The rows of an index array or boolean mask, in that order."""
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        columns = {name: None if values is None else values[index] for name, values in self._columns().items()}
        return Embeddings(self.features[index], **columns, meta=self.meta)

    def check_same_model(self, other: Embeddings, names: tuple[str, str] = ("one", "the other")) -> None:
        """Refuse features between which no distance means anything.

        Where one side does not say its model, as features of others may not, the dimension alone is compared.

        Args:
            other: what this is to be compared with.
            names: of the two, for the message: files, for instance.

        Raises:
            ReidError: another dimension, another model (`meta["model"]`), or another preprocessing for one model.
        """
        here, there = names
        if self.dimension != other.dimension:
            raise ReidError(
                f"Cannot join embeddings of {self.dimension} dimensions ({here}) with {other.dimension} ({there}): "
                "they come from different models. Embed both with one model."
            )
        for key, what in (("model", "model"), ("preprocessing_hash", "preprocessing")):
            own, given = self.meta.get(key), other.meta.get(key)
            if None not in (own, given) and own != given:
                raise ReidError(
                    f"Cannot join embeddings of {what} {own!r} ({here}) with those of {given!r} ({there}): distances "
                    f"between them mean nothing. Embed both with one {what}."
                )

    @classmethod
    def concat(cls, parts: Sequence[Embeddings], names: Sequence[str] = ()) -> Embeddings:
        """All rows of the parts, in order. `meta` keeps what all parts say alike.

        Args:
            parts: one or more.
            names: of the parts, for messages: their files, for instance; else they are counted.

        Raises:
            ReidError: no part; parts that are not comparable (see `check_same_model`); a column that only some have.
        """
        if not parts:
            raise ReidError("No embeddings to join: give at least one part.")
        first = parts[0]
        called = list(names) or [f"part {number}" for number in range(1, len(parts) + 1)]
        for part, name in zip(parts[1:], called[1:], strict=True):
            first.check_same_model(part, (called[0], name))
        columns: dict[str, Any] = {}
        for name in first._columns():
            values = [part._columns()[name] for part in parts]
            have = [one for one, value in zip(called, values, strict=True) if value is not None]
            if have and len(have) < len(parts):
                raise ReidError(
                    f"Cannot join embeddings: only {', '.join(have)} of {len(parts)} have the column {name!r}."
                )
            columns[name] = np.concatenate(values) if have else None
        meta = {
            key: value
            for key, value in first.meta.items()
            if all(key in part.meta and part.meta[key] == value for part in parts)
        }
        return cls(np.concatenate([part.features for part in parts]), **columns, meta=meta)

    def check(self) -> Embeddings:
        """The table itself, when every feature is a finite number.

        Raises:
            ReidError: naming the rows (from 0) that hold NaN or infinity, and the path of the first where known.
        """
        bad = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(bad):
            shown = ", ".join(map(str, bad[:10])) + (", …" if len(bad) > 10 else "")
            where = "" if self.paths is None else f" (the first is of {self.paths[bad[0]]})"
            raise ReidError(
                f"{len(bad)} of {len(self)} features hold NaN or infinity, in rows {shown}{where}. "
                "Embed those crops anew, or leave the rows out with take()."
            )
        return self

    def save(self, path: str | Path) -> Path:
        """Write the table as Parquet, whole or not at all, and return the path.

        Raises:
            ReidError: cannot be written, or `meta` holds what JSON cannot.
        """
        return save_stream(path, [self], self.meta)

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        """Read a table written by `save`, or by anyone who writes the columns named above.

        `features` may be a fixed-size list or a list of any float type, if all rows are of one length. NaN is not
        looked for: see `check`. A column `camera` of names, where there is no `camid`, is numbered in their order, and
        the names go into `meta["camera_names"]`.

        Raises:
            ReidError: missing or not Parquet; no `features`; rows of different length or empty; a missing value or a
                wrong type in a column; a newer format.
        """
        path = Path(path)
        if not path.is_file():
            raise ReidError(f"There is no embeddings file {path}.")
        try:
            schema = pq.read_schema(path)
            known = [
                name for name in (_FEATURES, *_INTEGERS.values(), _CAMERA, _PATHS, _QUALITY) if name in schema.names
            ]
            if _FEATURES not in known:
                raise ReidError(
                    f"{path} has no column {_FEATURES!r} (a list of floats in each row). "
                    f"It has: {', '.join(schema.names) or 'none'}."
                )
            table = pq.read_table(path, columns=known)
        except (pa.ArrowException, OSError) as error:
            raise ReidError(
                f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}. Write it anew with `reid embed`."
            ) from error
        meta = _read_meta(path, (schema.metadata or {}).get(_METADATA_KEY))
        columns: dict[str, Any] = {}
        for name, column in _INTEGERS.items():
            if column in known:
                columns[name] = _read_integers(path, column, table.column(column))
        if _CAMERA in known and "camids" not in columns:
            names, camids = _read_names(path, table.column(_CAMERA))
            columns["camids"], meta = camids, {**meta, "camera_names": names}
        if _PATHS in known:
            columns["paths"] = _whole(path, _PATHS, table.column(_PATHS)).to_pylist()
        if _QUALITY in known:
            columns["quality"] = _read_quality(path, table.column(_QUALITY))
        return cls(_read_features(path, table.column(_FEATURES)), **columns, meta=meta)

    def _columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*_INTEGERS, "paths", "quality")}

    def _arrow(self) -> pa.Table:
        flat = pa.array(np.ascontiguousarray(self.features).reshape(-1), type=pa.float32())
        columns = {_FEATURES: pa.FixedSizeListArray.from_arrays(flat, self.dimension)}
        for name, column in _INTEGERS.items():
            values = self._columns()[name]
            if values is not None:
                columns[column] = pa.array(values, type=pa.int64())
        if self.paths is not None:
            check_paths(self.paths)
            columns[_PATHS] = pa.array(self.paths, type=pa.string())
        if self.quality is not None:
            columns[_QUALITY] = pa.array(self.quality, type=pa.float32())
        return pa.table(columns)


def rows_per_group(dimension: int) -> int:
    """Rows of a row group in a file: what is read or written at a time."""
    return max(1, _GROUP_BYTES // (4 * dimension))


def save_stream(path: str | Path, chunks: Iterable[Embeddings], meta: Mapping[str, Any]) -> Path:
    """Write tables of equal columns one after the other as one file, whole or not at all; one at a time is in memory.

    Args:
        path: the Parquet file.
        chunks: at least one; their own `meta` is not looked at. Each begins a new row group.
        meta: of the file.

    Raises:
        ReidError: as `Embeddings.save`.
    """
    try:
        note = json.dumps({"format": FORMAT, "meta": dict(meta)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReidError(f"Embeddings.meta must be plain JSON values: {error}.") from error
    with atomic_file(path) as temporary, contextlib.ExitStack() as stack:
        writer = None
        for chunk in chunks:
            table = chunk._arrow()
            if writer is None:
                schema = table.schema.with_metadata({_METADATA_KEY: note.encode()})
                writer = stack.enter_context(pq.ParquetWriter(temporary, schema, use_dictionary=[_PATHS]))
            writer.write_table(table.cast(writer.schema), row_group_size=rows_per_group(chunk.dimension))
    return Path(path)


def known_columns(crops: Crops) -> list[str]:
    """The columns of a table that crops fill: `pids`, and those that are not unknown throughout."""
    return ["pids", *(name for name in ("camids", "tracks", "frames") if (getattr(crops, name) != UNKNOWN).any())]


def check_paths(paths: NDArray[np.object_]) -> None:
    """Refuse names that are no Unicode text, as a file system may hold.

    Raises:
        ReidError: with the first such row.
    """
    odd = next((row for row, path in enumerate(paths) if _NO_TEXT.search(path)), None)
    if odd is not None:
        raise ReidError(
            f"The path in row {odd}, {paths[odd]!r}, is not Unicode text, which Parquet needs. Rename the file."
        )


def _matrix(features: ArrayLike) -> NDArray[np.float32]:
    try:
        array = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ReidError(f"Features must be numbers [N, D], every row of one length: {error}.") from error
    if array.ndim != 2 or array.shape[1] == 0:
        raise ReidError(f"Features must be [N, D] with D of 1 or more; got shape {list(array.shape)}.")
    return array


def _integers(name: str, values: ArrayLike | None, n: int) -> NDArray[np.int64] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (n,):
        raise ReidError(f"Embeddings: column {name!r} has shape {list(array.shape)}, but there are {n} features.")
    if n and not np.issubdtype(array.dtype, np.integer):
        raise ReidError(f"Embeddings: column {name!r} must hold integers; it holds {array.dtype}.")
    return array.astype(np.int64)


def _shares(values: ArrayLike | None, n: int) -> NDArray[np.float32] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (n,):
        raise ReidError(f"Embeddings: column 'quality' has shape {list(array.shape)}, but there are {n} features.")
    if n and not (np.issubdtype(array.dtype, np.number) and ((array >= 0) & (array <= 1)).all()):
        raise ReidError("Embeddings: column 'quality' must hold numbers from 0 to 1, without NaN.")
    return array.astype(np.float32)


def _read_meta(path: Path, note: bytes | None) -> dict[str, Any]:
    if note is None:
        return {}
    try:
        stored = json.loads(note)
        version, meta = int(stored["format"]), dict(stored["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise ReidError(f"{path}: the schema metadata under 'reid' is not what `Embeddings.save` writes.") from error
    if version > FORMAT:
        raise ReidError(f"{path} is of format {version}; this version reads up to {FORMAT}. Install a newer one.")
    return meta


def _whole(path: Path, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    if values.null_count:
        row = next(i for i, missing in enumerate(values.is_null().to_pylist()) if missing)
        raise ReidError(f"{path}: column {column!r} has no value in row {row} (of {values.null_count} such rows).")
    return values


def _read_integers(path: Path, column: str, values: pa.ChunkedArray) -> NDArray[np.int64]:
    if not pa.types.is_integer(values.type):
        raise ReidError(f"{path}: column {column!r} must hold integers; it holds {values.type}.")
    numbers: NDArray[np.int64] = _whole(path, column, values).to_numpy().astype(np.int64)
    return numbers


def _read_names(path: Path, values: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise ReidError(f"{path}: column {_CAMERA!r} must hold names; it holds {values.type}. Numbers go in 'camid'.")
    names, numbers = np.unique(np.array(_whole(path, _CAMERA, values).to_pylist(), dtype=object), return_inverse=True)
    return [str(name) for name in names], numbers.astype(np.int64)


def _read_quality(path: Path, values: pa.ChunkedArray) -> NDArray[np.float32]:
    if not pa.types.is_floating(values.type):
        raise ReidError(f"{path}: column {_QUALITY!r} must hold floats from 0 to 1; it holds {values.type}.")
    numbers: NDArray[np.float32] = _whole(path, _QUALITY, values).to_numpy().astype(np.float32)
    if len(numbers) and not ((numbers >= 0) & (numbers <= 1)).all():
        row = int(np.flatnonzero(~((numbers >= 0) & (numbers <= 1)))[0])
        raise ReidError(f"{path}: column {_QUALITY!r} is {numbers[row]} in row {row}; it must be from 0 to 1.")
    return numbers


def _read_features(path: Path, values: pa.ChunkedArray) -> NDArray[np.float32]:
    kind = values.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise ReidError(f"{path}: column {_FEATURES!r} must hold a list of floats in each row; it holds {kind}.")
    _whole(path, _FEATURES, values)
    if pa.types.is_fixed_size_list(kind):
        dimension = kind.list_size
    elif len(values) == 0:
        raise ReidError(f"{path} has no rows, and its lists do not tell the dimension; use a fixed-size list.")
    else:
        lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in values.chunks])
        dimension = int(lengths[0])
        odd = np.flatnonzero(lengths != dimension)
        if len(odd):
            raise ReidError(
                f"{path}: features differ in length: {dimension} in row 0, {lengths[odd[0]]} in row {odd[0]}."
            )
    flat = pa.chunked_array([chunk.flatten() for chunk in values.chunks], type=kind.value_type)
    if flat.null_count:
        row = next(i for i, missing in enumerate(flat.is_null().to_pylist()) if missing) // dimension
        raise ReidError(f"{path}: the features of row {row} have a missing value.")
    # A copy of its own: Arrow's memory cannot be written to, which torch complains of.
    return np.array(flat.to_numpy(), dtype=np.float32).reshape(len(values), dimension)
