"""A table of one's own: CSV or Parquet with the columns `path`, `pid` [, `camid`, `track`, `frame`, `split`].

It is how own crops come in, and not of people only: leave `camid` out for faces, products or signatures.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.errors import ReidError
from reid.data.crops import Benchmark, Crops
from reid.data.layouts.scanning import what_is_in
from reid.data.splits import hold_out, query_and_gallery

COLUMNS = ("path", "pid", "camid", "track", "frame", "split")
REQUIRED = ("path", "pid")
PARTS = ("train", "query", "gallery", "test")
SUFFIXES = (".csv", ".parquet")
JUNK = -1
LOOKED_AT = 16
"""So many images are looked for when a table is read, to notice a wrong folder at once; `reid check` looks for all."""


def read(root: str | Path, *, fraction: float = 0.2, seed: int = 0, cross_camera: bool | None = None) -> Benchmark:
    """Read a table; paths in it are relative to the table's folder, or absolute.

    Args:
        root: the file, or a folder with exactly one table in it (or with one named `table.csv` or `table.parquet`).
        fraction: of the identities, to be scored on, where there is no `split` column.
        seed: of the split by identity.
        cross_camera: whether a query's own camera is left out of its matches; as a rule, where two cameras are known.

    `pid`, `camid`, `track`: whole numbers are kept; in a column that holds anything else every value is text, and is
    numbered from 0 in sorted order of the texts (the same texts always get the same numbers). An empty `camid`, `track`
    or `frame` is unknown. pid -1 is junk: dropped and counted.
    `split` is train, query or gallery; or train or test, and `query_and_gallery` divides test. Without a `split`
    column, `hold_out` splits by identity.

    Raises:
        ReidError: file, row (in CSV its line; in Parquet counted from 1), column, value and what to do.
    """
    file = _find(root)
    rows = _Rows(file)
    pids = rows.numbers("pid", text=True, required=True)
    columns = (rows.numbers("camid", text=True), rows.numbers("track", text=True), rows.numbers("frame", text=False))
    name = file.parent.name if file.stem == "table" else file.stem
    crops = Crops.from_columns(rows.paths(pids), pids, *columns, source=name)
    split = rows.split()

    good = crops.pids != JUNK
    crops, split = crops.take(good), None if split is None else split[good]
    if not len(crops):
        raise ReidError(f"{file} has no usable row: {len(good)} rows, all of them junk (pid -1).")
    _look_for_images(file, crops)

    cameras = np.unique(crops.camids[crops.camids != UNKNOWN])
    warnings = []
    if cross_camera is None:
        cross_camera = len(cameras) > 1
        if len(cameras) == 1:
            warnings.append(f"every known camera is {cameras[0]}, so queries are matched within their own camera too")
    elif cross_camera and len(cameras) < 2:
        raise ReidError(f"{file}: cross_camera needs two cameras in the column 'camid', and there are {len(cameras)}.")
    train, query, gallery = _parts(file, crops, split, fraction, seed, cross_camera)
    warnings += [
        f"the table has no {part} rows" for part, rows_of in (("train", train), ("query", query)) if not len(rows_of)
    ]
    n_junk = int((~good).sum())
    return Benchmark(name, str(file.parent), train, query, gallery, cross_camera, n_junk, warnings=tuple(warnings))


def _parts(
    file: Path, crops: Crops, split: NDArray[np.object_] | None, fraction: float, seed: int, cross_camera: bool
) -> tuple[Crops, Crops, Crops]:
    """Train, query and gallery as the column `split` says, or by identity."""
    if split is None:
        return hold_out(crops, fraction=fraction, seed=seed, cross_camera=cross_camera)
    train, query, gallery, test = (crops.take(split == part) for part in PARTS)
    if len(test):
        if len(query) or len(gallery):
            raise ReidError(
                f"{file}: the column 'split' has both 'test' and 'query' or 'gallery'; use one way or the other."
            )
        query, gallery = query_and_gallery(test, np.random.default_rng(seed), cross_camera=cross_camera)
        if not len(query):
            need = "two cameras" if cross_camera else "two crops"
            raise ReidError(f"{file}: no identity of split 'test' is in at least {need}, so none can be a query.")
    if bool(len(query)) != bool(len(gallery)):
        there, lacking = ("query", "gallery") if len(query) else ("gallery", "query")
        raise ReidError(f"{file}: the column 'split' has {there!r} rows but no {lacking!r} row; scoring needs both.")
    return train, query, gallery


def _find(root: str | Path) -> Path:
    """The table's file, absolute."""
    root = Path(root).expanduser().absolute()
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise ReidError(f"{root} is not a table: its name must end in {' or '.join(SUFFIXES)}.")
        return root
    if not root.is_dir():
        raise ReidError(f"There is no file or folder {root}. Give a .csv or .parquet file, or the folder it lies in.")
    named = [root / f"table{suffix}" for suffix in SUFFIXES if (root / f"table{suffix}").is_file()]
    tables = named or sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(tables) == 1:
        return tables[0]
    there = ", ".join(table.name for table in tables) if tables else what_is_in(root)
    raise ReidError(
        f"{root} holds {len(tables) or 'no'} table{'' if len(tables) == 1 else 's'} (.csv or .parquet). "
        f"In it: {there}. Give the file itself."
    )


def _look_for_images(file: Path, crops: Crops) -> None:
    """Raise where none of a few images exists: the paths are relative to another folder."""
    few = crops.paths[np.unique(np.linspace(0, len(crops) - 1, LOOKED_AT).astype(np.int64))]
    if not any(os.path.exists(path) for path in few):
        raise ReidError(
            f"{file}: none of {len(few)} images looked for is there, such as {few[0]}. Paths in the column 'path' must "
            f"be absolute, or relative to {file.parent}."
        )


class _Rows:
    """The columns of a table's file, with errors that name the row as its reader sees it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.table = _read_csv(file) if file.suffix.lower() == ".csv" else _read_parquet(file)
        names = self.table.column_names
        for name in REQUIRED:
            if name not in names:
                raise ReidError(
                    f"{file} has no column {name!r}; it has {', '.join(map(repr, names)) or 'none'}. Line 1 names "
                    f"the columns, separated by commas: {', '.join(COLUMNS)}; {' and '.join(REQUIRED)} are needed."
                )
        for name in COLUMNS:
            if names.count(name) > 1:
                raise ReidError(f"{file} has {names.count(name)} columns named {name!r}; keep one.")
        if not self.table.num_rows:
            raise ReidError(f"{file} has no rows below its column names.")

    def numbers(self, name: str, *, text: bool, required: bool = False) -> NDArray[np.int64]:
        """A column as `[N]` int64; `text` allows values that are not numbers; an empty one is `UNKNOWN` or an error."""
        if name not in self.table.column_names:
            return np.full(self.table.num_rows, UNKNOWN)
        column = self.table[name]
        if pa.types.is_floating(column.type):
            column = self._whole(name, column)
        words = pc.utf8_trim_whitespace(self._text(name, column))
        empty = pc.fill_null(pc.equal(words, ""), True)
        if required:
            self._refuse(name, empty, "is empty", f"every row needs a {name}")
        words = pc.if_else(empty, None, words)
        numeric = pc.match_substring_regex(words, r"^[+-]?[0-9]{1,18}$")
        if pc.all(numeric, min_count=0).as_py():
            values = pc.fill_null(words.cast(pa.int64()), UNKNOWN)
            self._refuse(name, pc.less(values, UNKNOWN), "is below -1", "use whole numbers from 0 on, or text")
            return values.to_numpy().astype(np.int64)
        if not text:
            self._refuse(name, pc.invert(pc.fill_null(numeric, True)), "is not a whole number", "mend or empty it")
        known = np.sort(np.array(words.drop_null().unique().to_pylist(), dtype=object))
        codes = pc.fill_null(pc.index_in(words, value_set=pa.array(known, pa.string())), UNKNOWN)
        codes = pc.if_else(pc.is_null(words), UNKNOWN, codes)
        return codes.to_numpy().astype(np.int64)

    def paths(self, pids: NDArray[np.int64]) -> list[str]:
        """The column `path`, absolute. A path that stands for two identities is an error."""
        column = self._text("path", self.table["path"])
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
        self._refuse("path", empty, "is empty", "every row needs an image")
        codes = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        first = np.unique(codes, return_index=True)[1][codes]
        other = np.flatnonzero(pids != pids[first])
        if len(other):
            row = int(other[0])
            raise ReidError(
                f"{self.file}, {self._row(row)}: the image {column[row].as_py()!r} has another pid than in "
                f"{self._row(int(first[row]))}. Give every image one identity."
            )
        folder = str(self.file.parent)
        return [os.path.join(folder, path) for path in column.to_pylist()]

    def split(self) -> NDArray[np.object_] | None:
        """The column `split` in small letters, or None."""
        if "split" not in self.table.column_names:
            return None
        words = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(self._text("split", self.table["split"]), "")))
        known = pc.is_in(words, value_set=pa.array(PARTS))
        self._refuse("split", pc.invert(known), "is none of " + ", ".join(PARTS), "use one of them in every row")
        return np.array(words.to_pylist(), dtype=object)

    def _text(self, name: str, column: Any) -> Any:
        try:
            return column.cast(pa.string())
        except pa.ArrowException as error:
            raise ReidError(
                f"{self.file}: column {name!r} holds {column.type}; it must hold numbers or text."
            ) from error

    def _whole(self, name: str, column: Any) -> Any:
        """A column of floats as integers, NaN as null (so pandas writes integers where a value is missing)."""
        column = pc.if_else(pc.is_nan(column), None, column)
        broken = pc.or_(pc.not_equal(column, pc.floor(column)), pc.invert(pc.is_finite(column)))
        self._refuse(name, pc.fill_null(broken, False), "is not a whole number", "use whole numbers or text")
        return column.cast(pa.int64())

    def _refuse(self, name: str, bad: Any, why: str, mend: str) -> None:
        """Raise naming the first row where `bad` holds, and how many more there are."""
        rows = np.flatnonzero(np.asarray(bad.to_numpy(), dtype=bool))
        if not len(rows):
            return
        value = self.table[name][int(rows[0])].as_py()
        more = f" ({len(rows) - 1:,} more rows are like it)" if len(rows) > 1 else ""
        raise ReidError(f"{self.file}, {self._row(int(rows[0]))}, column {name!r}: {value!r} {why}; {mend}.{more}")

    def _row(self, row: int) -> str:
        """Row `row`, counted from 0, in the words of who looks into the file: for CSV its line."""
        if self.file.suffix.lower() != ".csv":
            return f"row {row + 1}"
        lines = [n for n, line in enumerate(self.file.read_bytes().splitlines(), start=1) if line.strip()]
        return f"row {lines[row + 1]}"


def _read_csv(file: Path) -> Any:
    """Every column as text: `0001` and `1` are told apart only where a column is not all numbers."""
    try:
        with pyarrow.csv.open_csv(file) as reader:
            names = reader.schema.names
        options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        return pyarrow.csv.read_csv(file, convert_options=options)
    except (pa.ArrowException, OSError) as error:
        raise ReidError(
            f"{file} cannot be read as CSV: {error}. Use UTF-8, commas, and as many values in each line."
        ) from error


def _read_parquet(file: Path) -> Any:
    try:
        names = pyarrow.parquet.read_schema(file).names
        return pyarrow.parquet.read_table(file, columns=[name for name in COLUMNS if name in names])
    except (pa.ArrowException, OSError) as error:
        raise ReidError(f"{file} cannot be read as Parquet: {error}. Write it anew.") from error
