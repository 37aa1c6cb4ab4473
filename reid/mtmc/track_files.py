"""Read and write track files: MOTChallenge, AI City and DukeMTMC text, and Parquet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reid.core.errors import DataError, check_choice, first_line
from reid.core.reading import failed_download, parse_json
from reid.data.crops import SkippedFile
from reid.data.listing import list_entries, summarise
from reid.data.tracks import MAX_FRAME, MAX_PIXELS, Floats, Integers, Tracks, natural_sort_key, valid_boxes

FORMATS = {
    "mot": "MOTChallenge text, one file per camera: frame,id,x,y,w,h,conf,…",
    "aicity": "AI City text: camera id frame x y w h -1 -1",
    "duke": "DukeMTMC text: camera,id,frame,left,top,w,h,wx,wy",
    "parquet": "Parquet: columns camera, track, frame, x, y, w, h and optionally confidence",
}
"""Track file formats and their rows."""

DUPLICATES = ("error", "first", "confident")
_SUFFIXES = (".txt", ".parquet")
_GROUND_TRUTH = "mot with consider, class, visibility"
BOX_COLUMNS = ("x", "y", "w", "h")
_COLUMNS = ("camera", "track", "frame", *BOX_COLUMNS)
METADATA_KEY = b"reid"
_MAX_WHOLE = 2**53  # from it on, float64 cannot represent every whole number
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOTES = re.compile(r"(labels|classes|readme.*)\.txt", re.IGNORECASE)  # next to the tracks in exports of CVAT, Roboflow
_COMPANIONS = {"cameras.yaml", "seqinfo.ini", "img1", "det"}  # next to the tracks in this project's and MOTChallenge's
_MIN_PERCENT_ROWS = 10  # of fewer rows, column 7 is taken for a height
_LINES_PER_PART = 20_000  # lines parsed together where not all lines of a file are plain numbers
_ROWS_NAMED = 5  # rows that a warning names


@dataclass(frozen=True, eq=False)
class _Part:
    """Content of one file. `layout` is a key of FORMATS, `_GROUND_TRUTH`, or "" for an empty text file."""

    file: Path
    layout: str
    reason: str
    names: list[str]
    camera: Integers
    track: Integers
    frame: Integers
    boxes: Floats
    confidence: Floats
    lines: Integers
    warnings: tuple[str, ...] = ()

    def where(self, row: int) -> str:
        """Location of a row, for messages."""
        kind, note = ("row", " (from 0)") if self.layout == "parquet" else ("line", "")
        return f"{_short_name(self.file)} {kind} {self.lines[row]}{note}"


def read_tracks(
    path: str | Path,
    *,
    format: str = "auto",
    duplicates: str = "error",
    skip_untracked: bool = False,
    first_frame: int | None = None,
) -> Tracks:
    """Read track files of any format in `FORMATS`; the format is detected from their content.

    Args:
        path: A folder, of which all `.txt` and `.parquet` files are read (except hidden ones), or one file. A text file
            without a camera column is named like its camera. An empty one is a camera without tracks. A folder without
            track files may contain sequences, `NAME/gt/gt.txt` (MOTChallenge, CVAT), or be one: `gt/gt.txt`.
        format: A key of `FORMATS`, if the content is ambiguous.
        duplicates: How to handle several boxes of one id in one frame of one camera. Equal boxes count as one. For
            different ones, `"error"` raises, `"first"` keeps the first in the file, and `"confident"` keeps the one of
            highest confidence (the first of equals).
        skip_untracked: Whether rows with id −1 (untracked detections) are skipped and counted.
        first_frame: Number that the files give to the first frame of the recording; by default 0 if there is a frame 0,
            else 1.

    Returns:
        The tracks; `.format`, `.format_reason` and `.warnings` report what was found. Skipped and counted in
        `.warnings`: boxes without area, with NaN or with values beyond `MAX_PIXELS`, repeated rows, ground-truth rows
        that are marked as not to be considered (7th column 0), and with `skip_untracked` ids of −1.

    Raises:
        DataError: Nothing to read; files of different formats; an invalid line (named with its number and text); ids of
            −1 only, or without `skip_untracked`; different boxes of one id in one frame (see `duplicates`).
        ConfigError: Unknown `format` or `duplicates`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "door.txt").write_text("1,7,10,20,30,60,0.9\\n2,7,12,20,30,60,0.8\\n")
        ...     tracks = read_tracks(folder)
        >>> tracks.camera_names, tracks.track.tolist(), tracks.format_reason
        (('door',), [7, 7], 'mot: 7 columns, the 7th a confidence, commas')
    """
    path = Path(path)
    check_choice("track format", format, ["auto", *FORMATS])
    check_choice("value of duplicates", duplicates, DUPLICATES)
    files, warnings = _find_files(path)
    parts = [_read_file(file, format, skip_untracked) for file in files]
    layouts = {part.layout: part for part in reversed(parts) if part.layout}
    if len(layouts) > 1:
        found = "; ".join(
            f"{_short_name(part.file)} is {part.layout} ({part.reason})" for part in reversed(layouts.values())
        )
        raise DataError(
            f"{path} contains files of different formats: {found}. Keep files of one format in a folder, or set the "
            f"format ({', '.join(FORMATS)})."
        )
    layout, reason = next(((name, part.reason) for name, part in layouts.items()), ("", ""))
    if format != "auto":
        layout, reason = layout or format, f"as given; {reason}" if reason else "as given"
    elif not layout:
        layout, reason = "mot", "the files are empty"
    tracks = _joined(path, parts, warnings, duplicates, first_frame)
    name = "mot" if layout == _GROUND_TRUTH else layout
    return replace(tracks, format=name, format_reason=f"{layout}: {reason}")


def list_track_files(folder: Path) -> list[str]:
    """Return the names of the track files in a folder, in natural order."""
    names = [entry.name for entry in list_entries(folder) if entry.is_file and _is_track_file(entry.name)]
    return sorted(names, key=natural_sort_key)


def _is_track_file(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not _NOTES.fullmatch(name)


def _find_files(path: Path) -> tuple[list[Path], list[str]]:
    """Files to read, and warnings about those that are passed over."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise DataError(f"There are no tracks at {path}. Give a folder of track files, or one file.")
    entries = list_entries(path)
    files = [path / name for name in list_track_files(path)]
    used = {file.name for file in files} | _COMPANIONS
    if not files:
        sequences = [path, *(path / entry.name for entry in entries if entry.is_folder)]
        files = [file for folder in sequences if (file := folder / "gt" / "gt.txt").is_file()]
        used |= {file.relative_to(path).parts[0] for file in files}
    others = [
        SkippedFile(entry.path, entry.problem or ("a folder" if entry.is_folder else "another type of file"))
        for entry in entries
        if entry.name not in used
    ]
    warnings = [f"{path}: {len(others)} entries are not read as tracks: {summarise(others)}."] if others else []
    if not files:
        folders = sorted((entry.name for entry in entries if entry.is_folder), key=natural_sort_key)
        hint = f" It has the folders {', '.join(folders[:5])}: give one of them." if folders else ""
        raise DataError(
            f"{path} contains no .txt or .parquet file and no sequence NAME/gt/gt.txt, so there are no tracks to "
            f"read.{hint}"
        )
    return files, warnings


def _short_name(file: Path) -> str:
    """`cam01.txt`; `MOT17-02/gt/gt.txt` in a sequence."""
    return f"{camera_of_file(file)}/gt/{file.name}" if _in_sequence(file) else file.name


def _in_sequence(file: Path) -> bool:
    return (file.name, file.parent.name) == ("gt.txt", "gt")


def camera_of_file(file: Path) -> str:
    """Camera of a text file without a camera column: its name, or that of the sequence of `NAME/gt/gt.txt`.

    Example:
        >>> camera_of_file(Path("tracks/cam01.txt")), camera_of_file(Path("MOT17/MOT17-02/gt/gt.txt"))
        ('cam01', 'MOT17-02')
    """
    return file.absolute().parents[1].name if _in_sequence(file) else file.stem


def _read_file(file: Path, format: str, skip_untracked: bool) -> _Part:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}.") from error
    if problem := failed_download(data):
        raise DataError(f"{file} {problem}")
    is_parquet = data[:4] == b"PAR1"
    if format != "auto" and is_parquet != (format == "parquet"):
        found = "a Parquet file" if is_parquet else "not a Parquet file"
        raise DataError(f"{file} is {found}, but the format is given as {format}. Use format auto, or the right one.")
    part = _read_parquet(file) if is_parquet else _read_text(file, data, format)
    untracked = part.track == -1
    if not untracked.any():
        return part
    count = f"{int(untracked.sum()):,} of {len(untracked):,} rows"
    if not skip_untracked or untracked.all():
        fix = "" if untracked.all() else ", or leave these rows out with --skip-untracked (skip_untracked=True)"
        raise DataError(
            f"{file.parent / part.where(int(np.argmax(untracked)))}: the id is -1 ({count}), which marks untracked "
            f"detections. Run a tracker on each camera first, and use its output{fix}."
        )
    columns = ("camera", "track", "frame", "boxes", "confidence", "lines")
    kept: dict[str, Any] = {name: getattr(part, name)[~untracked] for name in columns}
    warning = f"{_short_name(file)}: {count} skipped: their id is -1 (untracked)."
    return replace(part, **kept, warnings=(*part.warnings, warning))


def _whole_numbers(
    name: str, values: NDArray[Any], where: Callable[[int], str], text: Callable[[int], str] | None = None
) -> Integers:
    """A column of whole numbers from 0, or −1 for ids, below 2⁶³.

    Args:
        name: Of the column.
        values: Integers or floats.
        where: Location of a row, for messages.
        text: Text of a row, from which a number is read that float64 may not represent; None if there is none.
    """
    lowest = -1 if name == "track" else 0
    highest = MAX_FRAME if name == "frame" else 2**63
    bad = ~((values >= lowest) & (values <= highest))
    if values.dtype.kind == "f":
        bad |= values != np.floor(values)
    numbers = np.where(bad | (values >= 2**63), 0, values).astype(np.int64)
    for row in np.flatnonzero(~bad & (values >= _MAX_WHOLE)).tolist():
        exact = Decimal(int(values[row]) if text is None else text(row))
        bad[row] = exact >= 2**63 or exact != int(exact)
        numbers[row] = 0 if bad[row] else int(exact)
    if bad.any():
        row = int(np.argmax(bad))
        limit = f"{MAX_FRAME} (use frame numbers, not time stamps)" if name == "frame" else "2^63 - 1"
        raise DataError(
            f"{where(row)}: the {'id' if name == 'track' else name} is {values[row]:g}; it must be a whole number from "
            f"0 to {limit}. Correct it."
        )
    return numbers


def _read_text(file: Path, data: bytes, format: str) -> _Part:
    data = data.removeprefix(_BYTE_ORDER_MARK)
    values, lines, separator = _numbers(file, data)
    camera_name = camera_of_file(file)
    if not len(values):
        none, names = lines, [] if format in ("aicity", "duke") else [camera_name]
        return _Part(file, "", "empty", names, none, none, none, np.zeros((0, 4)), np.zeros(0), none)
    layout, reason = _layout(file, values, separator, format)
    camera_first = layout in ("aicity", "duke")
    places = {"camera": 0, "track": 1, "frame": 2} if camera_first else {"frame": 0, "track": 1}

    def column(name: str) -> Integers:
        place = places[name]
        texts: list[bytes] = []

        def text(row: int) -> str:
            texts.extend(() if texts else data.splitlines())
            return _fields(texts[lines[row] - 1].decode(), separator)[place]

        return _whole_numbers(name, values[:, place], lambda row: f"{file}, line {lines[row]}", text)

    warnings = _class_warning(file, values) if layout == _GROUND_TRUTH else []
    keep = np.ones(len(values), dtype=bool)
    confidence = np.ones(len(values))
    camera, names = np.zeros(len(values), dtype=np.int64), [camera_name]
    if camera_first:
        numbers, camera = np.unique(column("camera"), return_inverse=True)
        names = [str(number) for number in numbers.tolist()]
    elif layout == _GROUND_TRUTH:
        keep = values[:, 6] != 0
        if not keep.all():
            ignored = int((~keep).sum())
            warnings.append(f"{ignored:,} ground-truth rows skipped: their 7th column (consider) is 0.")
    elif values.shape[1] > 6:
        confidence = np.where(values[:, 6] == -1, 1.0, values[:, 6])
    boxes = values[:, 3:7] if camera_first else values[:, 2:6]
    track, frame = column("track")[keep], column("frame")[keep]
    return _Part(
        file, layout, reason, names, camera[keep], track, frame, boxes[keep], confidence[keep], lines[keep],
        tuple(warnings),
    )  # fmt: skip


def _class_warning(file: Path, values: Floats) -> list[str]:
    """Report the classes of a ground truth of which `labels.txt` (CVAT) names more than one."""
    try:
        labels = (file.parent / "labels.txt").read_text("utf-8-sig", "replace").splitlines()
    except OSError:
        return []
    classes, counts = np.unique(values[:, 7], return_counts=True)
    if len(classes) < 2:
        return []
    names = dict(enumerate(labels, start=1))
    found = ", ".join(
        f"{names.get(int(number), int(number))} {count:,}" for number, count in zip(classes, counts, strict=True)
    )
    return [f"{_short_name(file)}: all classes are read as people: {found} rows."]


def _numbers(file: Path, data: bytes) -> tuple[Floats, Integers, str]:
    """Numbers of a text file `[n, columns]`, the line of each row (from 1), and the separator."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data:
        raise DataError(f"{file} is not plain text (it may be UTF-16). Save it as UTF-8 text.")
    texts = data.splitlines()
    first = next((text for _, text in _data_lines(texts)), None)
    if first is None:
        return np.zeros((0, 0)), np.zeros(0, dtype=np.int64), ""
    separator = next((mark for mark in ";,\t" if mark in first), " ")
    width = len(_fields(first, separator))
    values = _parse_numbers(data, separator, width)
    if values is not None and len(values) == len(texts):
        return values, np.arange(1, len(values) + 1), separator
    parts = []
    for start in range(0, len(texts), _LINES_PER_PART):
        part = texts[start : start + _LINES_PER_PART]
        values = _parse_numbers(b"\n".join(part), separator, width)
        if values is not None and len(values) == len(part):
            parts.append((values, np.arange(start + 1, start + len(part) + 1)))
        else:
            parts.append(_uneven_numbers(file, list(_data_lines(part, start + 1)), separator, width))
    values, lines = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return values, lines, separator


def _uneven_numbers(file: Path, rows: list[tuple[int, str]], separator: str, width: int) -> tuple[Floats, Integers]:
    """Numbers of some lines (number, text) with spaces, quotes or plus signs, or an error that names the bad one."""
    texts = [separator.join(_fields(text, separator)) for _, text in rows]
    values = _parse_numbers("\n".join(texts).encode(), separator, width)
    if values is None or len(values) != len(rows):
        _check_line(file, *rows[_first_bad(texts, separator, width)], separator, width)
        raise DataError(f"{file} cannot be parsed as numbers. Check its lines.")
    return values, np.array([number for number, _ in rows], dtype=np.int64)


def _data_lines(lines: list[bytes], start: int = 1) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines that are neither blank nor a comment; `start` is the number of the first."""
    for number, line in enumerate(lines, start):
        text = line.decode("utf-8", "replace").strip()  # as text: more characters are spaces than as bytes
        if text and text[0] not in "#%":
            yield number, text


def _fields(text: str, separator: str) -> list[str]:
    """Fields of a line, without spaces, quotes and leading plus signs; with semicolons, a comma is a decimal point."""
    text = text.replace(",", ".") if separator == ";" else text
    fields = [
        field.strip().strip('"').removeprefix("+") for field in text.split(None if separator == " " else separator)
    ]
    return fields[:-1] if len(fields) > 1 and fields[-1] == "" else fields


def _parse_numbers(data: bytes, separator: str, width: int) -> Floats | None:
    """Parse delimited text with Arrow, `[n, width]`; None if a line does not fit. See `_fields` for semicolons."""
    data = data.replace(b",", b".") if separator == ";" else data
    names = [str(i) for i in range(width)]
    types = dict.fromkeys(names, pa.float64())
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(column_names=names),
            parse_options=pa_csv.ParseOptions(delimiter=separator, quote_char=False, ignore_empty_lines=True),
            convert_options=pa_csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        )
    except pa.ArrowException:
        return None
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def _first_bad(texts: list[str], separator: str, width: int) -> int:
    """Index of the first line that cannot be parsed, by bisection."""
    first, end = 0, len(texts)
    while end - first > 1:
        middle = (first + end) // 2
        values = _parse_numbers("\n".join(texts[first:middle]).encode(), separator, width)
        first, end = (first, middle) if values is None or len(values) < middle - first else (middle, end)
    return first


def _check_line(file: Path, number: int, text: str, separator: str, width: int) -> None:
    """Raise an error if a line has another width or a field that is not a number."""
    fields = _fields(text, separator)
    bad = [field for field in fields if _parse_numbers(field.encode() or b"?", ",", 1) is None]
    if len(fields) != width:
        reason = f"has {len(fields)} values where the first line has {width}"
    elif bad:
        hint = "" if any(map(str.isdigit, fields)) else ". Put # before a header line"
        reason = f"contains {bad[0]!r}, which is not a number{hint}"
    else:
        return
    shown = text if len(text) <= 100 else text[:100] + "…"
    raise DataError(f"{file}, line {number}: {shown!r} {reason}. Correct or remove the line.")


def _layout(file: Path, values: Floats, separator: str, format: str) -> tuple[str, str]:
    """Layout of a text file, and the reason for it."""
    width = values.shape[1]
    need = 7 if format in ("aicity", "duke") else 6
    if width < need:
        what = FORMATS.get(format, f"{FORMATS['mot']} or {FORMATS['aicity']}")
        raise DataError(f"{file} has {width} columns, which is too few for tracks. Expected: {what}.")
    if format in ("aicity", "duke"):
        return format, f"{width} columns"
    by = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "spaces"}[separator]
    if format == "auto" and 7 <= width <= 9:
        whole = bool((values[:, :3] == np.round(values[:, :3])).all())
        if whole and not (np.abs(values[:, 6]) <= 1).all():
            if _is_percent(values):
                return "mot", f"{width} columns, the 7th a confidence in percent, {by}"
            why = f"columns 1 to 3 are whole numbers and column 7 is a height, not a confidence; {by}"
            return ("aicity" if separator == " " else "duke"), why
    if width == 9:
        consider, kind, visible = values[:, 6:].T
        is_class = (kind >= 1) & (kind == np.round(kind))
        if (np.isin(consider, (0, 1)) & is_class & (visible >= 0) & (visible <= 1)).all():
            return _GROUND_TRUTH, "9 columns, the 7th 0 or 1, the 8th a class from 1, the 9th in 0 to 1"
    return "mot", f"{width} columns" + ("" if width in (6, 10) else ", the 7th a confidence") + f", {by}"


def _is_percent(values: Floats) -> bool:
    """Whether column 7 is a confidence in percent and columns 1 and 2 are frame and id, not camera and id.

    A camera and an id repeat from frame to frame; a frame and an id never do.
    """
    if len(values) < _MIN_PERCENT_ROWS or not ((values[:, 6] >= 0) & (values[:, 6] <= 100)).all():
        return False
    return len(np.unique(values[:, :2], axis=0)) == len(values)


def _read_parquet(file: Path) -> _Part:
    try:
        schema = pq.read_schema(file)
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing:
            raise DataError(
                f"{file} has no column {', '.join(map(repr, missing))}. Tracks need {', '.join(_COLUMNS)}; it has: "
                f"{', '.join(schema.names) or 'none'}."
            )
        optional = [name for name in ("confidence",) if name in schema.names]
        table = pq.read_table(file, columns=[*_COLUMNS, *optional])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {first_line(error)}. Write it again.") from error
    numbers = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise DataError(f"{file}: column {name!r} has no value in row {row} (from 0). Fill it in.")
        if name != "camera":
            if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                raise DataError(f"{file}: column {name!r} must contain numbers; it contains {column.type}.")
            values = column.to_numpy()
            numbers[name] = values.astype(np.float64) if values.dtype.kind == "f" else values
    names, camera = _parquet_cameras(file, table, (schema.metadata or {}).get(METADATA_KEY))
    track, frame = (
        _whole_numbers(name, numbers[name], lambda row: f"{file}, row {row} (from 0)") for name in ("track", "frame")
    )
    boxes = np.stack([numbers[name].astype(np.float64) for name in BOX_COLUMNS], axis=1)
    confidence, rows = numbers.get("confidence", np.ones(len(table))).astype(np.float64), np.arange(len(table))
    reason = "the file begins with PAR1"
    return _Part(file, "parquet", reason, names, camera, track, frame, boxes, confidence, rows)


def _parquet_cameras(file: Path, table: pa.Table, note: bytes | None) -> tuple[list[str], Integers]:
    """Camera names (also those without rows, if `write_tracks` wrote the file), and each row's index into them."""
    column = table.column("camera")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{file}: column 'camera' must contain names or whole numbers; it contains {column.type}.")
    column = column.cast(pa.string())
    try:
        listed = [str(name) for name in parse_json(note or b"", f"the schema metadata of {file}")["cameras"]]
    except (ValueError, KeyError, TypeError):
        listed = []
    names = listed + sorted(set(pc.unique(column).to_pylist()) - set(listed), key=natural_sort_key)
    places = pc.index_in(column, value_set=pa.array(names, type=pa.string()))
    return names, places.to_numpy().astype(np.int64)


def _joined(
    path: Path, parts: Sequence[_Part], warnings: list[str], duplicates: str, first_frame: int | None
) -> Tracks:
    """Join all parts, without the rows that cannot be used."""
    names = sorted({name for part in parts for name in part.names}, key=natural_sort_key)
    place = {name: number for number, name in enumerate(names)}
    cameras = [np.array([place[n] for n in part.names], dtype=np.int64)[part.camera] for part in parts]
    start = np.cumsum([0, *(len(part.track) for part in parts)])

    def where(row: int) -> str:
        number = int(np.searchsorted(start, row, side="right")) - 1
        return parts[number].where(row - int(start[number]))

    def named(rows: Integers) -> str:
        more = f" and {len(rows) - _ROWS_NAMED:,} more" if len(rows) > _ROWS_NAMED else ""
        return ", ".join(where(row) for row in rows[:_ROWS_NAMED].tolist()) + more

    camera = np.concatenate(cameras)
    track, frame, boxes, confidence = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("track", "frame", "boxes", "confidence")
    )
    warnings = [*warnings, *(text for part in parts for text in part.warnings)]
    good = valid_boxes(boxes, confidence)
    if not good.all():
        bad = np.flatnonzero(~good)
        warnings.append(
            f"{len(bad):,} boxes skipped (no area, not finite, or beyond {MAX_PIXELS:,.0f} pixels): {named(bad)}."
        )

    order = np.lexsort((track, frame, camera))
    order = order[good[order]]
    keys = np.stack([camera, frame, track])[:, order]
    repeated = (np.diff(keys, axis=1, prepend=-1) == 0).all(axis=0)
    if repeated.any():
        first = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(order))))  # of its group
        differs = (boxes[order] != boxes[order[first]]).any(axis=1)
        if differs.any() and duplicates == "error":
            row = int(np.argmax(differs))
            raise DataError(
                f"{path}: {where(int(order[row]))} and {where(int(order[first[row]]))} both have id "
                f"{track[order[row]]} in frame {frame[order[row]]} of camera {names[camera[order[row]]]!r}, with "
                f"different boxes ({int(differs.sum()):,} such rows). Correct them, or set duplicates to 'first' or "
                "'confident'."
            )
        preference = -confidence[order] if duplicates == "confident" else np.zeros(len(order))
        kept = order[np.lexsort((preference, first))[~repeated]]
        skipped = np.setdiff1d(order, kept)
        equal, other = int((repeated & ~differs).sum()), int(differs.sum())
        kinds = [f"{equal:,} with an equal box"] * bool(equal) + [f"{other:,} with another box"] * bool(other)
        rule = "" if not other else f" (kept: the {'first' if duplicates == 'first' else 'most confident'})"
        warnings.append(
            f"{len(skipped):,} rows skipped whose id was already in that frame, {', '.join(kinds)}{rule}: "
            f"{named(skipped)}."
        )
        order = kept
    columns = [column[order] for column in (camera, track, frame, boxes, confidence)]
    tracks = Tracks.from_columns(names, *columns, first_frame=first_frame)
    if tracks.first_frame == 0:
        warnings.append("Frames count from 0 and are kept; camera clocks start at frame 1.")
    return replace(tracks, warnings=tuple(warnings))
