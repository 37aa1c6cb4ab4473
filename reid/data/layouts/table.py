"""Own crops: a CSV or Parquet table with the columns `path`, `pid` [, `camid`, `track`, `frame`, `split`].

Objects need not be people: leave `camid` out for faces, products or signatures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.errors import DataError
from reid.data.crops import Benchmark, Crops
from reid.data.layouts.own_crops import OWN_SPLITS, divide
from reid.data.layouts.scanning import existing_folder, list_folder

COLUMNS = ("path", "pid", "camid", "track", "frame", "split")
REQUIRED = ("path", "pid")
SUFFIXES = (".csv", ".parquet")
_REAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$"
MAX_ROWS = 10_000_000
"""A small Parquet file can claim any number of equal rows."""
SAMPLE = 16
"""Number of images looked for when a table is read, to notice a wrong folder early; `reid data check` checks all."""


def read(root: str | Path, *, fraction: float = 0.2, seed: int = 0, cross_camera: bool | None = None) -> Benchmark:
    """Read a table. Its paths are relative to the table's folder, or absolute.

    Args:
        root: the file, or a folder with exactly one table in it (or with one named `table.csv` or `table.parquet`).
        fraction: of the identities that are held out to score on, if there is no `split` column.
        seed: of the random choices.
        cross_camera: whether gallery images of the query's identity and camera are excluded; by default they are if at
            least two cameras are known.

    `pid`, `camid`, `track`: integers are kept. If a column contains anything else, all its values are text and are
    numbered from 0 in sorted order, so equal texts always have equal numbers. An empty `camid`, `track` or `frame` is
    unknown, and so is -1. pid -1 is junk (dropped and counted). -1 in a column of text is a warning.
    `split` is train, query or gallery; or train or test, which is divided by `query_and_gallery`. Without a `split`
    column, `hold_out` splits by identity.

    Raises:
        DataError: naming file, row (the line of a CSV; counted from 1 in Parquet), column and value.
    """
    file = _find(root)
    rows = TableRows(file)
    pids = rows.numbers("pid", text=True, required=True)
    columns = (rows.numbers("camid", text=True), rows.numbers("track", text=True), rows.numbers("frame", text=False))
    name = file.parent.name if file.stem == "table" else file.stem
    crops = Crops.from_columns(rows.paths(pids), pids, *columns, source=name, names=rows.names)
    sample = crops.paths[np.unique(np.linspace(0, len(crops) - 1, SAMPLE).astype(np.int64))]
    if not any(os.path.exists(path) for path in sample):
        raise DataError(
            f"{file}: none of {len(sample)} images exists, such as {sample[0]}. Use paths in the column 'path' that "
            f"are absolute, or relative to {file.parent}."
        )
    return divide(
        crops, rows.split(), file, fraction=fraction, seed=seed, cross_camera=cross_camera, warnings=rows.warnings
    )


def _find(root: str | Path) -> Path:
    """Return the absolute path of the table's file."""
    root = Path(root).expanduser().absolute()
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise DataError(f"{root} is not a table: its name must end in {' or '.join(SUFFIXES)}.")
        return root
    root = existing_folder(root, "a .csv or .parquet table")
    named = [root / f"table{suffix}" for suffix in SUFFIXES if (root / f"table{suffix}").is_file()]
    tables = named or sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(tables) == 1:
        return tables[0]
    content = ", ".join(table.name for table in tables) if tables else list_folder(root)
    raise DataError(
        f"{root} contains {len(tables) or 'no'} tables (.csv or .parquet), but one is needed. It contains {content}. "
        "Pass the file itself."
    )


class TableRows:
    """The columns of a table file. Errors name the row as an editor or a data frame shows it.

    Args:
        file: a .csv or .parquet file.
        columns: names of columns to read; others are ignored.
        required: those of them that the file must have.

    Raises:
        DataError: as `read`.
    """

    def __init__(self, file: Path, columns: Sequence[str] = COLUMNS, required: Sequence[str] = REQUIRED) -> None:
        self.file = file
        self.warnings: list[str] = []
        self.names: dict[str, tuple[str, ...]] = {}
        self.table = _read_table(file, columns)
        names = self.table.column_names
        for name in required:
            if name not in names:
                verb = "are" if len(required) > 1 else "is"
                raise DataError(
                    f"{file} has no column {name!r}; it has {', '.join(map(repr, names)) or 'none'}. Line 1 names "
                    f"the columns, separated by commas: {', '.join(columns)}; {' and '.join(required)} {verb} required."
                )
        for name in columns:
            if names.count(name) > 1:
                raise DataError(f"{file} has {names.count(name)} columns named {name!r}. Keep one.")
        if not self.table.num_rows:
            raise DataError(f"{file} has no rows below its column names.")

    def numbers(self, name: str, *, text: bool, required: bool = False) -> NDArray[np.int64]:
        """Return a column as `[N]` int64. `text` allows values that are not numbers; empty is `UNKNOWN` or an error."""
        if name not in self.table.column_names:
            return np.full(self.table.num_rows, UNKNOWN)
        column = self.table[name]
        if pa.types.is_floating(column.type):
            # pandas writes integers as floats if a value is missing
            column = pc.if_else(pc.is_nan(column), None, column)
            exact = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
            self._refuse(name, pc.invert(pc.fill_null(exact, True)), "is not an integer", "use integers or text")
            column = column.cast(pa.int64())
        values = pc.utf8_trim_whitespace(self._text(name, column))
        empty = pc.fill_null(pc.equal(values, ""), True)
        if required:
            self._refuse(name, empty, "is empty", f"every row needs a {name}")
        values = pc.if_else(empty, None, values)
        numeric = pc.match_substring_regex(values, r"^[+-]?[0-9]{1,18}$")
        if pc.all(numeric, min_count=0).as_py():
            numbers = pc.fill_null(values.cast(pa.int64()), UNKNOWN)
            self._refuse(name, pc.less(numbers, UNKNOWN), "is below -1", "use integers from 0 on, or text")
            return numbers.to_numpy().astype(np.int64)
        if not text:
            self._refuse(name, pc.invert(pc.fill_null(numeric, True)), "is not an integer", "correct or empty it")
        marked = pc.fill_null(pc.equal(values, str(UNKNOWN)), False)
        if number := pc.sum(marked).as_py():
            meaning = "junk (dropped)" if required else "unknown"
            self.warnings.append(f"column {name!r} contains text, and {number:,} times -1, which is read as {meaning}")
            values = pc.if_else(marked, None, values)
        known = np.sort(np.array(values.drop_null().unique().to_pylist(), dtype=object))
        self.names[f"{name}s"] = tuple(known)
        codes = pc.fill_null(pc.index_in(values, value_set=pa.array(known, pa.string())), UNKNOWN)
        return pc.if_else(pc.is_null(values), UNKNOWN, codes).to_numpy().astype(np.int64)

    def texts(self, name: str, fix: str) -> Any:
        """Return a column of text without spaces around it. An empty value is an error with this fix."""
        column = pc.utf8_trim_whitespace(self._text(name, self.table[name]))
        self._refuse(name, pc.fill_null(pc.equal(column, ""), True), "is empty", fix)
        return column

    def reals(self, name: str) -> NDArray[np.float64]:
        """Return a column as `[N]` finite numbers."""
        column = pc.utf8_trim_whitespace(self._text(name, self.table[name]))
        numeric = pc.fill_null(pc.match_substring_regex(column, _REAL), False)
        self._refuse(name, pc.invert(numeric), "is not a number", "correct it or leave out the row")
        return column.cast(pa.float64()).to_numpy()

    def paths(self, pids: NDArray[np.int64]) -> list[str]:
        """Return the column `path`, absolute. A path with two identities is an error."""
        column = self.texts("path", "every row needs an image")
        folder = str(self.file.parent)
        from_windows = pc.filter(column, pc.match_substring(column, "\\"))
        if len(from_windows) and not os.path.exists(os.path.join(folder, from_windows[0].as_py())):
            column = pc.replace_substring(column, "\\", "/")
        codes = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        first = np.unique(codes, return_index=True)[1][codes]
        other = np.flatnonzero(pids != pids[first])
        if len(other):
            row = int(other[0])
            raise DataError(
                f"{self.file}, {self._row(row)}: the image {column[row].as_py()!r} has another pid than in "
                f"{self._row(int(first[row]))}. Give every image one identity."
            )
        return [os.path.join(folder, path) for path in column.to_pylist()]

    def split(self) -> NDArray[np.object_] | None:
        """Return the column `split` in lower case, or None."""
        if "split" not in self.table.column_names:
            return None
        values = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(self._text("split", self.table["split"]), "")))
        known = pc.is_in(values, value_set=pa.array(OWN_SPLITS))
        self._refuse("split", pc.invert(known), "is none of " + ", ".join(OWN_SPLITS), "use one of them in every row")
        return np.array(values.to_pylist(), dtype=object)

    def _text(self, name: str, column: Any) -> Any:
        try:
            return column.cast(pa.string())
        except pa.ArrowException as error:
            raise DataError(
                f"{self.file}: column {name!r} contains {column.type}; it must contain numbers or text."
            ) from error

    def _refuse(self, name: str, bad: Any, problem: str, fix: str) -> None:
        """Raise an error for the first row where `bad` is true, with the number of other such rows."""
        rows = np.flatnonzero(np.asarray(bad.to_numpy(), dtype=bool))
        if not len(rows):
            return
        value = self.table[name][int(rows[0])].as_py()
        more = f" ({len(rows) - 1:,} more rows like it)" if len(rows) > 1 else ""
        raise DataError(f"{self.file}, {self._row(int(rows[0]))}, column {name!r}: {value!r} {problem}; {fix}.{more}")

    def _row(self, row: int) -> str:
        """Name the row with index `row` as an editor shows it: for CSV by its line."""
        if self.file.suffix.lower() != ".csv":
            return f"row {row + 1}"
        lines = [n for n, line in enumerate(self.file.read_bytes().splitlines(), start=1) if line.strip()]
        return f"row {lines[row + 1]}"


def _read_table(file: Path, columns: Sequence[str]) -> Any:
    """Read a file. In a CSV every column is text: `0001` and `1` differ only in columns that are not all numbers."""
    is_csv = file.suffix.lower() == ".csv"
    try:
        if not is_csv:
            with pyarrow.parquet.ParquetFile(file) as opened:
                if opened.metadata.num_rows > MAX_ROWS:
                    raise DataError(f"{file} has {opened.metadata.num_rows:,} rows; at most {MAX_ROWS:,} are read.")
                return opened.read(columns=[name for name in columns if name in opened.schema_arrow.names])
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
        start, header = next(((i, line.decode()) for i, line in enumerate(lines) if line.strip()), (0, ""))
        separator = max(",;\t", key=header.count)
        names = [name.strip().strip('"').strip() for name in header.split(separator)]
        return pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=start + 1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        fix = "Use UTF-8, and the same number of values in each line." if is_csv else "Write the file again."
        raise DataError(f"{file} cannot be read as {'CSV' if is_csv else 'Parquet'}: {error}. {fix}") from error
