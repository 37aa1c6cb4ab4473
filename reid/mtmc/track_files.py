"""Read and write track files: MOTChallenge, AI City and DukeMTMC text, and Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from reid.core.atomic import atomic_file
from reid.core.errors import DataError, check_choice
from reid.core.reading import parse_json
from reid.data.tracks import Floats, Integers, Tracks, last_number, natural_sort_key, valid_boxes

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
_BOX = ("x", "y", "w", "h")
_COLUMNS = ("camera", "track", "frame", *_BOX)
_METADATA_KEY = b"reid"
_MAX_WHOLE = 2**53  # above it float64 cannot represent every whole number
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
    ignored: int = 0  # ground-truth rows that are marked as not to be considered

    def where(self, row: int) -> str:
        """Location of a row, for messages."""
        kind, note = ("row", " (from 0)") if self.layout == "parquet" else ("line", "")
        return f"{self.file.name} {kind} {self.lines[row]}{note}"


def read_tracks(path: str | Path, *, format: str = "auto", duplicates: str = "error") -> Tracks:
    """Read track files of any format in `FORMATS`; the format is detected from their content.

    Args:
        path: A folder, of which all `.txt` and `.parquet` files are read (except hidden ones), or one file. A text file
            without a camera column is named like its camera. An empty one is a camera without tracks.
        format: A key of `FORMATS`, if the content is ambiguous.
        duplicates: How to handle several boxes of one id in one frame of one camera. Equal boxes count as one. For
            different ones, `"error"` raises, `"first"` keeps the first in the file, and `"confident"` keeps the one of
            highest confidence (the first of equals).

    Returns:
        The tracks; `.format`, `.format_reason` and `.warnings` report what was found. Skipped and counted in
        `.warnings`: boxes without area or with NaN, repeated rows, ground-truth rows that are marked as not to be
        considered (7th column 0).

    Raises:
        DataError: Nothing to read; files of different formats; an invalid line (named with its number and text); ids of
            −1 (untracked detections); different boxes of one id in one frame (see `duplicates`).
        ConfigError: Unknown `format` or `duplicates`.
    """
    path = Path(path)
    check_choice("track format", format, ["auto", *FORMATS])
    check_choice("value of duplicates", duplicates, DUPLICATES)
    parts = [_read_file(file, format) for file in _files(path)]
    layouts = {part.layout: part for part in reversed(parts) if part.layout}
    if len(layouts) > 1:
        found = "; ".join(f"{part.file.name} is {part.layout} ({part.reason})" for part in reversed(layouts.values()))
        raise DataError(
            f"{path} contains files of different formats: {found}. Keep files of one format in a folder, or set the "
            f"format ({', '.join(FORMATS)})."
        )
    layout, reason = next(((name, part.reason) for name, part in layouts.items()), ("", ""))
    if format != "auto":
        layout, reason = layout or format, f"as given; {reason}" if reason else "as given"
    elif not layout:
        layout, reason = "mot", "the files are empty"
    tracks = _joined(path, parts, duplicates)
    name = "mot" if layout == _GROUND_TRUTH else layout
    return replace(tracks, format=name, format_reason=f"{layout}: {reason}")


def _track_files(folder: Path) -> list[str]:
    names = [p.name for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.name[0] != "." and p.is_file()]
    return sorted(names, key=natural_sort_key)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"There are no tracks at {path}. Give a folder of track files, or one file.")
    files = [path / name for name in _track_files(path)]
    if not files:
        folders = sorted((p.name for p in path.iterdir() if p.is_dir()), key=natural_sort_key)
        hint = f" It has the folders {', '.join(folders[:5])}: give one of them." if folders else ""
        raise DataError(f"{path} contains no .txt or .parquet file, so there are no tracks to read.{hint}")
    return files


def _read_file(file: Path, format: str) -> _Part:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}.") from error
    is_parquet = data[:4] == b"PAR1"
    if format != "auto" and is_parquet != (format == "parquet"):
        found = "a Parquet file" if is_parquet else "not a Parquet file"
        raise DataError(f"{file} is {found}, but the format is given as {format}. Use format auto, or the right one.")
    return _read_parquet(file) if is_parquet else _read_text(file, data, format)


def _whole_numbers(values: Floats, where: Callable[[int], str], name: str) -> Integers:
    """A column of whole numbers from 0; `where` describes the location of a row."""
    bad = ~((values >= 0) & (values < _MAX_WHOLE) & (values == np.floor(values)))
    if bad.any():
        row = int(np.argmax(bad))
        if name in ("id", "track") and values[row] == -1:
            raise DataError(
                f"{where(row)}: the {name} is -1 ({int((values == -1).sum())} such rows), which marks untracked "
                "detections. Run a tracker on each camera first, and use its output."
            )
        raise DataError(f"{where(row)}: the {name} is {values[row]:g}; it must be a whole number from 0. Correct it.")
    return values.astype(np.int64)


def _read_text(file: Path, data: bytes, format: str) -> _Part:
    values, lines, separator = _numbers(file, data)
    if not len(values):
        none, names = lines, [] if format in ("aicity", "duke") else [file.stem]
        return _Part(file, "", "empty", names, none, none, none, np.zeros((0, 4)), np.zeros(0), none)
    layout, reason = _layout(file, values, separator, format)
    camera_first = layout in ("aicity", "duke")
    column = {"camera": 0, "id": 1, "frame": 2} if camera_first else {"frame": 0, "id": 1}
    whole = {
        name: _whole_numbers(values[:, place], lambda row: f"{file}, line {lines[row]}", name)
        for name, place in column.items()
    }
    keep = np.ones(len(values), dtype=bool)
    confidence = np.ones(len(values))
    camera, names = np.zeros(len(values), dtype=np.int64), [file.stem]
    if camera_first:
        numbers, camera = np.unique(whole["camera"], return_inverse=True)
        names = [str(number) for number in numbers.tolist()]
    elif layout == _GROUND_TRUTH:
        keep = values[:, 6] != 0
    elif values.shape[1] > 6:
        confidence = np.where(values[:, 6] == -1, 1.0, values[:, 6])
    boxes = values[:, 3:7] if camera_first else values[:, 2:6]
    track, frame = whole["id"][keep], whole["frame"][keep]
    return _Part(
        file, layout, reason, names, camera[keep], track, frame, boxes[keep], confidence[keep], lines[keep],
        ignored=int((~keep).sum()),
    )  # fmt: skip


def _numbers(file: Path, data: bytes) -> tuple[Floats, Integers, str]:
    """Numbers of a text file `[n, columns]`, the line of each row (from 1), and the separator."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4096]:
        raise DataError(f"{file} is not plain text (it may be UTF-16). Save it as UTF-8 text.")
    data = data.removeprefix(b"\xef\xbb\xbf")
    first = next((text for _, text in _data_lines(data)), None)
    if first is None:
        return np.zeros((0, 0)), np.zeros(0, dtype=np.int64), ""
    separator = next((mark for mark in ",;\t" if mark in first), " ")
    width = len(_fields(first, separator))
    values = None if b"#" in data or b"%" in data else _parse_numbers(data, separator, width)
    line_count = data.count(b"\n") + (data[-1:] != b"\n")
    if values is not None and line_count == len(values) and b"\r" not in data.replace(b"\r\n", b""):
        return values, np.arange(1, len(values) + 1), separator
    lines = list(_data_lines(data))
    if values is None:
        tidy = "\n".join(separator.join(_fields(text, separator)) for _, text in lines)
        values = _parse_numbers(tidy.encode(), separator, width)
    if values is None:
        raise _bad_line(file, lines, separator, width)
    return values, np.array([number for number, _ in lines], dtype=np.int64), separator


def _data_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of the lines that are neither blank nor a comment."""
    for number, line in enumerate(data.splitlines(), start=1):
        text = line.strip()
        if text and text[:1] not in b"#%":
            yield number, text.decode("utf-8", "replace")


def _fields(text: str, separator: str) -> list[str]:
    """Fields of a line, without spaces and leading plus signs."""
    if separator == " ":
        return [field.removeprefix("+") for field in text.split()]
    fields = [field.strip().removeprefix("+") for field in text.split(separator)]
    return fields[:-1] if fields[-1] == "" else fields


def _parse_numbers(data: bytes, separator: str, width: int) -> Floats | None:
    """Parse delimited text with Arrow, `[n, width]`; None if a line does not fit."""
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


def _bad_line(file: Path, lines: list[tuple[int, str]], separator: str, width: int) -> DataError:
    """Describe the first line that cannot be parsed."""
    for place, (number, text) in enumerate(lines):
        fields = _fields(text, separator)
        bad = [field for field in fields if _parse_numbers(field.encode() or b"?", ",", 1) is None]
        if len(fields) != width:
            reason = f"has {len(fields)} values where the first line has {width}"
        elif bad:
            hint = "" if place else " Put # before a header line"
            reason = f"contains {bad[0]!r}, which is not a number.{hint}"
        else:
            continue
        shown = text if len(text) <= 100 else text[:100] + "…"
        return DataError(f"{file}, line {number}: {shown!r} {reason}. Correct or remove the line.")
    return DataError(f"{file} cannot be parsed as numbers. Check its lines.")


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
            why = f"columns 1 to 3 are whole numbers and column 7 is a height, not a confidence; {by}"
            return ("aicity" if separator == " " else "duke"), why
    if width == 9:
        consider, kind, visible = values[:, 6:].T
        is_class = (kind >= 1) & (kind == np.round(kind))
        if (np.isin(consider, (0, 1)) & is_class & (visible >= 0) & (visible <= 1)).all():
            return _GROUND_TRUTH, "9 columns, the 7th 0 or 1, the 8th a class from 1, the 9th in 0 to 1"
    return "mot", f"{width} columns" + ("" if width in (6, 10) else ", the 7th a confidence") + f", {by}"


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
        raise DataError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}. Write it again.") from error
    numbers = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise DataError(f"{file}: column {name!r} has no value in row {row} (from 0). Fill it in.")
        if name != "camera":
            if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                raise DataError(f"{file}: column {name!r} must contain numbers; it contains {column.type}.")
            numbers[name] = column.to_numpy().astype(np.float64)
    names, camera = _parquet_cameras(file, table, (schema.metadata or {}).get(_METADATA_KEY))
    track, frame = (
        _whole_numbers(numbers[name], lambda row: f"{file}, row {row} (from 0)", name) for name in ("track", "frame")
    )
    boxes = np.stack([numbers[name] for name in _BOX], axis=1)
    confidence, rows = numbers.get("confidence", np.ones(len(table))), np.arange(len(table))
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


def _joined(path: Path, parts: Sequence[_Part], duplicates: str) -> Tracks:
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
    warnings = []
    ignored = sum(part.ignored for part in parts)
    if ignored:
        warnings.append(f"{ignored:,} ground-truth rows skipped: their 7th column (consider) is 0.")
    good = valid_boxes(boxes, confidence)
    if not good.all():
        bad = np.flatnonzero(~good)
        warnings.append(f"{len(bad):,} boxes skipped, without area or not finite: {named(bad)}.")
    if len(frame) and not frame.all():
        warnings.append("Frames count from 0 and are kept; camera clocks start at frame 1.")

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
    tracks = Tracks.from_columns(names, camera[order], track[order], frame[order], boxes[order], confidence[order])
    return replace(tracks, warnings=tuple(warnings))


def write_tracks(tracks: Tracks, folder: str | Path, format: str = "mot") -> list[Path]:
    """Write tracks to a folder in a format of `FORMATS`, each file atomically; return the files' paths.

    `mot` writes `<camera>.txt` for each camera, also for those without boxes; the others write `tracks.txt` or
    `tracks.parquet`. Numbers are written so that reading gives the same float64. Text with a camera column has a number
    for each camera (`write_aicity`), no confidence, and no cameras without boxes.

    Raises:
        ConfigError: Unknown format.
        DataError: The folder contains other track files, which would be read as part of these; a camera name that is
            not a valid file name; or a file cannot be written.
    """
    folder = Path(folder)
    check_choice("track format", format, FORMATS)
    if format == "mot":
        for name in tracks.camera_names:
            if not name or name[0] == "." or re.search(r'[/\\:*?"<>|\0\n\r]', name):
                raise DataError(f"The camera name {name!r} is not a valid file name. Rename it, or write Parquet.")
        files = [folder / f"{name}.txt" for name in tracks.camera_names]
    else:
        files = [folder / ("tracks.parquet" if format == "parquet" else "tracks.txt")]
    if folder.is_dir():
        others = [name for name in _track_files(folder) if folder / name not in files]
        if others:
            raise DataError(
                f"{folder} contains other track files ({', '.join(others[:5])}), which would be read as part of these. "
                "Use an empty folder, or remove them."
            )
    if format == "parquet":
        note = json.dumps({"cameras": list(tracks.camera_names)})
        names = pa.array(tracks.camera_names, type=pa.string()).take(pa.array(tracks.camera))
        table = _table(tracks, names, ["camera", "track", "frame", *_BOX, "confidence"])
        with atomic_file(files[0]) as temporary:
            pq.write_table(table.replace_schema_metadata({_METADATA_KEY: note.encode()}), temporary)
    elif format == "mot":
        table = _table(tracks, tracks.camera, ["frame", "track", *_BOX, "confidence"], unused=3)
        for camera, file in enumerate(files):
            begin, end = np.searchsorted(tracks.camera, [camera, camera + 1]).tolist()
            _write_text(table.slice(begin, end - begin), file, ",")
    else:
        write_aicity(tracks, files[0], " " if format == "aicity" else ",")
    return files


def write_aicity(tracks: Tracks, file: str | Path, separator: str = " ") -> dict[str, int]:
    """Write AI City text, `camera id frame x y w h -1 -1`, atomically; return {camera name: its number}.

    A camera's number is the last in its name (`cam01` → 1). If a name has none or two share one, cameras are numbered
    from 1 in their order.
    """
    numbers = [last_number(name) for name in tracks.camera_names]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(numbers) + 1))
    camera = np.array(numbers, dtype=np.int64)[tracks.camera]
    _write_text(_table(tracks, camera, ["camera", "track", "frame", *_BOX], unused=2), Path(file), separator)
    return {name: int(number or 0) for name, number in zip(tracks.camera_names, numbers, strict=True)}


def _table(tracks: Tracks, camera: Any, columns: Sequence[str], unused: int = 0) -> pa.Table:
    """The columns of a file, of which `unused` last ones contain -1; `camera` is the column of that name."""
    values = dict(zip(_BOX, tracks.boxes.T, strict=True))
    values |= {"camera": camera, "track": tracks.track, "frame": tracks.frame, "confidence": tracks.confidence}
    table = {name: values[name] for name in columns}
    return pa.table(table | {f"unused {i}": np.full(len(tracks), -1) for i in range(unused)})


def _write_text(table: pa.Table, file: Path, separator: str) -> None:
    options = pa_csv.WriteOptions(include_header=False, delimiter=separator, quoting_style="none")
    with atomic_file(file) as temporary:
        pa_csv.write_csv(table, temporary, options)
